"""``ftkit push``, and ``ftkit export --card``: a run's model and its card for the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.console import Console
from ftkit.errors import DataError, GateNotMet, MachineError, NotProved, Problem, RecipeError
from ftkit.files import write_text
from ftkit.hub_card import Product, hub_card, is_usable, product_of, refuse_private
from ftkit.report import numbers, wording
from ftkit.report.story import Story
from ftkit.rundir import RunDir, find_run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
_STDOUT = Path("-")
_NAME = re.compile(r"[A-Za-z0-9_]+(?:[-.][A-Za-z0-9_]+)*")
_TEXTS = (".json", ".jinja", ".txt", ".md")


def write_card(run: str, out: Path | None) -> None:
    """Writes the model card of a run for the hub: to RUN/export/README.md, to ``out``, or to stdout where that is "-".

    Raises what ``hub_card`` raises.
    """
    found = find_run(run)
    text = hub_card(found.folder)
    console = Console()
    if out == _STDOUT:
        console.result(text.rstrip("\n"))
        return
    path = out or found.folder / "export" / CARD
    write_text(path, text)
    if out is None and found.manifest.exists():
        found.note_in_manifest(path)
    console.result(str(path))


def push_run(run: str, repository: str, *, public: bool, json: bool) -> None:
    """Makes a new repository on the hub, private unless ``public``, and puts a run's model and its card there.

    Raises RecipeError for a wrong or taken name, GateNotMet and NotProved for a model that is not shown to be good,
    DataError for a file that names a folder of this machine, MachineError where the hub cannot be had.
    """
    found, console = find_run(run), Console(results=not json)
    _check_name(repository)
    story = Story.read(found.folder)
    product = product_of(story)
    _refuse_unproved(story)
    files = _as_proved(found, product)
    _refuse_unusable(story, product)
    card = hub_card(found.folder, repository)
    for name, path in files.items():
        if path.suffix in _TEXTS:
            refuse_private(path.read_text(encoding="utf-8"), f"{product}/{name}", story)
    api = _hub()
    sizes = {CARD: len(card.encode()), **{name: path.stat().st_size for name, path in files.items()}}
    console.note(f"{found.folder}: {product}/ goes to {repository}, {'public' if public else 'private'}:")
    for name, size in sizes.items():
        console.note(f"  {name}  {numbers.size(size)}")
    url = _send(api, repository, card, files, public=public)
    if json:
        console.json({"repository": repository, "url": url, "private": not public, "model": product, "files": sizes})
    console.result(url)


def _check_name(repository: str) -> None:
    owner, slash, name = repository.partition("/")
    if not (slash and _NAME.fullmatch(owner) and _NAME.fullmatch(name)):
        fix = "Write owner/name, each of letters, digits, _ and, between these, - and . (never two of them together)."
        raise RecipeError(f"{repository} is no name of a repository", [Problem("", "REPOSITORY", fix)])


def _refuse_unproved(story: Story) -> None:
    """A model that did not reach what its recipe asks for, or is not shown to be the trained one, stays here."""
    report = story.eval
    if report is not None and not report.gate.passed:
        failed = [reason for reason in report.gate.reasons if not reason.passed]
        problems = [Problem("", reason.metric, wording.reason_line(reason)) for reason in failed]
        raise GateNotMet(f"{story.folder} did not meet its gate, so it is not pushed", problems)
    if story.merge is not None and not story.merge["passed"]:
        raise NotProved(
            f"{story.folder} has no proved model, so it is not pushed",
            [
                Problem(
                    "", "merge.json", f"{wording.proof_line(story.merge, story.kind)} Merge it again: ftkit merge RUN."
                )
            ],
        )


def _as_proved(run: RunDir, product: Product) -> dict[str, Path]:
    """The files of the model, by name. Raises what ``RunDir.unchanged`` does."""
    folder = run.folder / product
    return {path.name: path for path in run.unchanged(folder) if path.parent == folder and path.name != CARD}


def _refuse_unusable(story: Story, product: Product) -> None:
    if not is_usable(story, product):
        fix = "Merge it (merge: true) to push a whole model, or name the base by its hub id."
        raise DataError(
            f"nobody else can use {story.folder / product}",
            [Problem("", "base", f"its base is a local folder, which others do not have. {fix}")],
        )


def _hub() -> HfApi:
    """The hub with the user's token. Raises MachineError where the network is forbidden or there is no token."""
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        fix = "Unset it to allow the network."
        raise MachineError("HF_HUB_OFFLINE is set, so nothing is pushed", [Problem("", "HF_HUB_OFFLINE", fix)])
    token = get_token()
    if token is None:
        fix = "Run: hf auth login, with a token that may write. Or set HF_TOKEN."
        raise MachineError("there is no token for the hub", [Problem("", "HF_TOKEN", fix)])
    return HfApi(token=token)


def _send(api: HfApi, repository: str, card: str, files: Mapping[str, Path], *, public: bool) -> str:
    """Makes the repository and puts everything there in one commit; gives its address."""
    from huggingface_hub import CommitOperationAdd

    with _told(repository, "cannot be made", "Look at the token's rights and at the network, then try again."):
        url = api.create_repo(repository, private=not public, exist_ok=False)
    added = [CommitOperationAdd(CARD, card.encode())]
    added += [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    fix = "The repository was made and may be empty. Delete it on the hub, then try again."
    with _told(repository, "was not filled", fix):
        api.create_commit(repository, added, commit_message="Model and card by ftkit")
    return str(url)


@contextmanager
def _told(repository: str, failed: str, fix: str) -> Iterator[None]:
    """Says what the hub or the network raises in this block in the words of ftkit."""
    # The hub's HTTP library, whose errors these are, has another name in other versions.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            fix = "It is there already. Choose another name, or delete it on the hub."
            raise RecipeError(f"{repository} cannot be made", [Problem("", "REPOSITORY", fix)]) from None
        raise MachineError(f"{repository} {failed}", [Problem("", "hub", f"{_reason(error)} {fix}")]) from None
    except (HTTPError, OSError, ValueError) as error:
        raise MachineError(f"{repository} {failed}", [Problem("", "hub", f"{_reason(error)} {fix}")]) from None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines) or type(error).__name__
    return reason if reason.endswith(".") else f"{reason}."
