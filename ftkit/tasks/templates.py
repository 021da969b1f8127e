"""Which chat template is used, and what it does, found out on a small conversation before any data is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ftkit.errors import MachineError, Problem, RecipeError, did_you_mean
from ftkit.files import read_json, sha256_text, write_json
from ftkit.models.base import GENERATION, load_tokenizer
from ftkit.models.chatml import END, START, chatml
from ftkit.models.locate import BaseFiles
from ftkit.records import Conversation, Decision, Turn
from ftkit.tasks.chat import Chat
from ftkit.tasks.rendering import Unfit, render, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = (Turn("user", "which of them?"), Turn("assistant", "the first"))


def load_chat(
    files: BaseFiles,
    template: str,
    folder: Path,
    *,
    max_length: int | None,
    trust_remote_code: bool,
    key: str = "task.template",
) -> Chat:
    """The base's tokenizer with the chosen template on it, so that the two are saved together.

    ``template``: model (the base's own; chatml where it has none), chatml, or a Jinja file relative to ``folder``.
    Raises RecipeError, at ``key``, for a file that is missing or broken, and for a template that ends no answer with a
    special token, writes no generation prompt, or begins twice; MachineError for a tokenizer without tokenizer.json.
    """
    tokenizer = load_tokenizer(files, max_length=max_length, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        fix = "Convert it to tokenizer.json, or name another base: the place of each token in the text must be known."
        raise MachineError(f"the tokenizer of {files.name} has no tokenizer.json", [Problem("", "base", fix)])
    _keep_legacy(tokenizer, files)
    source, decision = template, None
    if template == "model" and not tokenizer.chat_template:
        source, decision = "chatml", Decision(key, "chatml", f"{files.name} has no chat template of its own")
    added: tuple[str, ...] = ()
    if source == "chatml":
        added = _add_marks(tokenizer)
        tokenizer.chat_template = chatml(bos=_writes_bos(tokenizer))
    elif source != "model":
        tokenizer.chat_template = _read(source, folder, key)
    opening, stop = _probe(tokenizer, source, key)
    eos = tokenizer.eos_token_id
    chat = Chat(
        tokenizer=tokenizer,
        source=source,
        sha256=_sha256(tokenizer.chat_template),
        stop_ids=(stop,) if eos is None or eos == stop else (stop, int(eos)),
        opening=opening,
        added=added,
        marks=_marks(tokenizer),
        key=key,
        decision=decision,
    )
    _try(chat)
    return chat


def save_chat(chat: Chat, files: BaseFiles, folder: Path) -> None:
    """Writes tokenizer and template, and the base's settings for generation with the tokens that end an answer.

    These are the template's own, which the base's settings need not know: a model that is served by them alone would
    not stop.
    """
    chat.tokenizer.save_pretrained(folder)
    own = files.folder / GENERATION
    settings = {"bos_token_id": chat.tokenizer.bos_token_id, **(read_json(own) if own.is_file() else {})}
    write_json(folder / GENERATION, settings | {"eos_token_id": [*chat.stop_ids], "pad_token_id": chat.pad_token_id})


def _keep_legacy(tokenizer: PreTrainedTokenizerBase, files: BaseFiles) -> None:
    """Lets the saved tokenizer split text as this one does.

    In transformers 5.23 a LlamaTokenizer reads ``legacy`` (a space before each piece of text, as Llama 2 has it) and
    does not save it: loaded again, it would give other ids.
    """
    path = files.folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "legacy" in settings:
        tokenizer.init_kwargs.setdefault("legacy", settings["legacy"])


def _add_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Adds what ChatML needs and the tokenizer does not treat as special tokens; gives those that are new to it."""
    special = set(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))))
    missing = [mark for mark in (START, END) if mark not in special]
    known = tokenizer.get_vocab()
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tuple(mark for mark in missing if mark not in known)


def _writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that decoding leaves out where it skips special tokens."""
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def _marks(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the special tokens in a text, the longest first."""
    words = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)")


def _read(name: str, folder: Path, key: str) -> str:
    path = folder / Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        meant = did_you_mean(name, ("model", "chatml"))
        fix = meant or f"Write model, chatml, or the path of a Jinja file that is there: looked for {path}."
        raise RecipeError(f"there is no chat template {name}", [Problem("", key, fix)]) from None
    except (OSError, UnicodeDecodeError) as error:
        fix = f"{path} cannot be read: {error}. Give a text file in UTF-8."
        raise RecipeError(f"the chat template {name} cannot be read", [Problem("", key, fix)]) from None


def _sha256(template: Any) -> str:
    """Of the template's text; of all of them, by name, where a tokenizer has several."""
    return sha256_text(template if isinstance(template, str) else json.dumps(template, sort_keys=True))


def _refuse(source: str, key: str, why: str, correction: str) -> NoReturn:
    """``correction``: what to change in the template, for who has it as a file."""
    fix = f"Write {key}: chatml, or a Jinja file of your own."
    if source not in ("model", "chatml"):
        fix = f"{correction} Or write {key}: chatml."
    name = "of the base" if source == "model" else source
    raise RecipeError(f"the chat template {name} cannot be trained with", [Problem("", key, f"{why}. {fix}")])


def _probe(tokenizer: PreTrainedTokenizerBase, source: str, key: str) -> tuple[str, int]:
    """What the template lets each answer begin with, and the id of the special token that it ends with."""
    try:
        prompt = render(tokenizer, _PROBE[:1], (), asked=True)
        text = render(tokenizer, _PROBE, (), asked=False)
    except Unfit as error:
        why = str(error.__cause__).strip().rstrip(".")
        line = getattr(error.__cause__, "lineno", None)
        _refuse(source, key, f"line {line}: {why}" if line else why, "Correct it.")
    answer = _PROBE[-1].content
    if not text.startswith(prompt) or answer not in text[len(prompt) :]:
        why = "what it asks for an answer with (add_generation_prompt) is not what it writes before one"
        _refuse(source, key, why, "Make the two equal.")
    opening, _, closing = text[len(prompt) :].partition(answer)
    special = special_ids(tokenizer)
    if special & set(tokenise(tokenizer, opening)[0]):
        why = f"it writes {opening.strip()!r} before an answer, and not where add_generation_prompt asks for one"
        _refuse(source, key, why, "End it with {% if add_generation_prompt %} and what stands before an answer.")
    bos, ids = tokenizer.bos_token_id, tokenise(tokenizer, text)[0]
    if bos is not None and ids[:2] == [bos, bos]:
        _refuse(source, key, f"it begins with {tokenizer.bos_token} twice", "Remove one.")
    stops = [token for token in tokenise(tokenizer, closing)[0] if token in special]
    if not stops:
        why = "it ends an answer with no special token, so the model would never learn to stop"
        _refuse(source, key, why, "Write {{ eos_token }} after an answer.")
    return opening if opening.strip() else "", stops[0]


def _try(chat: Chat) -> None:
    """Whether the probe can be trained on at all: no row could, where it cannot."""
    try:
        chat.encode(Conversation("", "", _PROBE[0].content, (), turns=_PROBE), "answers")
    except Unfit as error:
        why = str(error).partition(" Write ")[0].rstrip(".")
        _refuse(chat.source, chat.key, why, "Correct it.")
