"""Code that uses a run's product without ftkit, as its card shows it: peft, transformers and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from ftkit.report import untrusted
from ftkit.report.story import Story

# What the hub calls the task of each kind of model.
PIPELINES = {
    "classify": "text-classification",
    "words": "text-generation",
    "causal": "text-generation",
    "masked": "fill-mask",
    "sft": "text-generation",
}


def _multi_label(story: Story) -> bool:
    return story.eval.multi_label if story.eval else bool(story.planned("recipe", "task", "multi_label"))


def uses(story: Story) -> list[tuple[str, str]]:
    """What there is to load in the run's folder, and the code that does it without ftkit."""
    adapter, folder = _loaders(story)
    found = []
    if story.has_adapter:
        found.append(("the adapter on its base", adapter(story, "adapter")))
        if story.has_merged:
            found.append(("the merged model", folder(story, "merged")))
    elif story.has_model:
        found.append(("the model", folder(story, "model")))
    return found


def of_repository(story: Story, product: Literal["adapter", "merged", "model"], place: str) -> str:
    """The code that loads what stands at ``place``, a repository of the hub or a folder, without ftkit."""
    adapter, folder = _loaders(story)
    return adapter(story, place) if product == "adapter" else folder(story, place)


def _loaders(story: Story) -> tuple[Callable[[Story, str], str], Callable[[Story, str], str]]:
    """What writes the code for an adapter, and for a whole model, of the story's kind."""
    loaders = {
        "causal": (_causal_adapter, _causal_folder),
        "masked": (_masked_adapter, _masked_folder),
        "sft": (_answering_adapter, _answering_folder),
        "words": (_words_adapter, _words_folder),
    }
    return loaders.get(story.kind, (_classifier_adapter, _classifier_folder))


def is_shipped(story: Story) -> bool:
    """Whether the base is the one that ftkit carries in its package."""
    return str(story.planned("base", "source") or "").startswith("ftkit ")


def _imports(story: Story) -> str:
    return "from importlib.resources import files\n\n" if is_shipped(story) else ""


def _base_arguments(story: Story) -> str:
    """The base that was trained on, at its commit, as arguments of ``from_pretrained``."""
    if is_shipped(story):
        return 'str(files("ftkit") / "tiny_lm")'
    name, _, revision = str(story.planned("base", "ref") or "the base model").partition("@")
    folder = story.planned("base", "folder")
    if folder:
        name, revision = str(folder), ""
    pinned = str(story.planned("base", "revision") or revision)
    at = f", revision={_quoted(untrusted.visible(pinned))}" if pinned else ""
    return _quoted(untrusted.visible(name)) + at


def _classifier_adapter(story: Story, place: str) -> str:
    """Plain peft: nothing of ftkit is needed."""
    length = story.planned("data", "lengths", "max_length")
    cut = f", max_length={int(length)}" if length else ""
    scores = "logits.sigmoid()" if _multi_label(story) else "logits.softmax(-1)"
    base = _base_arguments(story)
    libraries = """\
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
"""
    if place == "adapter":
        begin = f'import json\n{libraries}\nlabels = json.load(open("adapter/labels.json", encoding="utf-8"))["labels"]'
    else:
        begin = f"{libraries}\nlabels = {json.dumps(story.planned('data', 'labels') or [])}"
    return f"""\
{_imports(story)}{begin}
names = dict(enumerate(labels))
base = AutoModelForSequenceClassification.from_pretrained({base}, num_labels=len(labels), id2label=names)
model = PeftModel.from_pretrained(base, {_quoted(place)}).eval()
tokenizer = AutoTokenizer.from_pretrained({_quoted(place)})

with torch.no_grad():
    logits = model(**tokenizer("your text", return_tensors="pt", truncation=True{cut})).logits
print(dict(zip(labels, {scores}[0].tolist())))
"""


def _classifier_folder(story: Story, folder: str) -> str:
    """Plain transformers."""
    length = story.planned("data", "lengths", "max_length")
    cut = f", truncation=True, max_length={int(length)}" if length else ", truncation=True"
    many = ', function_to_apply="sigmoid"' if _multi_label(story) else ""
    return f"""\
from transformers import pipeline

classifier = pipeline("text-classification", model={_quoted(folder)}, tokenizer={_quoted(folder)})
print(classifier("your text", top_k=None{many}{cut}))
"""


_WRITE = """
start = tokenizer("The start of a text", return_tensors="pt")
written = model.generate(input_ids=start.input_ids, attention_mask=start.attention_mask, max_new_tokens=50)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""


def _causal_adapter(story: Story, place: str) -> str:
    return f"""\
{_imports(story)}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({_base_arguments(story)})
model = PeftModel.from_pretrained(base, {_quoted(place)}).eval()
tokenizer = AutoTokenizer.from_pretrained({_quoted(place)})
{_WRITE}"""


def _causal_folder(_story: Story, folder: str) -> str:
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({_quoted(folder)}).eval()
tokenizer = AutoTokenizer.from_pretrained({_quoted(folder)})
{_WRITE}"""


def _masked_adapter(story: Story, place: str) -> str:
    return f"""\
import torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM, AutoTokenizer

base = AutoModelForMaskedLM.from_pretrained({_base_arguments(story)})
model = PeftModel.from_pretrained(base, {_quoted(place)}).eval()
tokenizer = AutoTokenizer.from_pretrained({_quoted(place)})

text = tokenizer(f"A text with a hidden {{tokenizer.mask_token}} in it.", return_tensors="pt")
with torch.no_grad():
    logits = model(**text).logits[text.input_ids == tokenizer.mask_token_id]
for chance, token in zip(*logits.softmax(-1)[0].topk(5)):
    print(f"{{chance:.3f}} {{tokenizer.decode(token)}}")
"""


def _masked_folder(_story: Story, folder: str) -> str:
    return f"""\
from transformers import pipeline

fill = pipeline("fill-mask", model={_quoted(folder)}, tokenizer={_quoted(folder)})
print(fill(f"A text with a hidden {{fill.tokenizer.mask_token}} in it."))
"""


def _loaded_adapter(story: Story, place: str) -> str:
    """The lines that load a decoder, its adapter and the tokenizer with the template that was trained."""
    resized = ""
    if story.planned("data", "template", "added"):
        resized = """\
if len(tokenizer) > base.get_input_embeddings().num_embeddings:
    base.resize_token_embeddings(len(tokenizer))
"""
    return f"""\
tokenizer = AutoTokenizer.from_pretrained({_quoted(place)})
base = AutoModelForCausalLM.from_pretrained({_base_arguments(story)})
{resized}model = PeftModel.from_pretrained(base, {_quoted(place)}).eval()
"""


def _turns(story: Story) -> str:
    """A conversation as the recipe asks: its system turn, and its prompt with the names of columns in braces."""
    system, prompt = (story.planned("recipe", "task", key) for key in ("system", "prompt"))
    said = [("system", system)] if system else []
    turns = [
        f'{{"role": "{role}", "content": {_quoted(untrusted.visible(str(text)))}}}'
        for role, text in (*said, ("user", prompt or "your prompt"))
    ]
    return f"turns = [{', '.join(turns)}]"


def _stop(story: Story) -> str:
    """The tokens that end an answer, as a list in Python."""
    return json.dumps([str(token) for token in story.planned("data", "template", "stop") or []])


def _new_tokens(story: Story) -> int:
    return int(story.planned("data", "max_new_tokens") or 256)


def _answering_adapter(story: Story, place: str) -> str:
    """Greedy, as the answers that were measured."""
    return f"""\
{_imports(story)}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

{_loaded_adapter(story, place)}
{_turns(story)}
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(
    input_ids=prompt["input_ids"],
    attention_mask=prompt["attention_mask"],
    eos_token_id=tokenizer.convert_tokens_to_ids({_stop(story)}),
    max_new_tokens={_new_tokens(story)},
    do_sample=False,
)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _answering_folder(story: Story, folder: str) -> str:
    return f"""\
from transformers import pipeline

answering = pipeline("text-generation", model={_quoted(folder)}, tokenizer={_quoted(folder)})
{_turns(story)}
found = answering(
    turns,
    eos_token_id=answering.tokenizer.convert_tokens_to_ids({_stop(story)}),
    max_new_tokens={_new_tokens(story)},
    do_sample=False,
    return_full_text=False,
)
print(found[0]["generated_text"])
"""


def _words(story: Story) -> str:
    """Chooses the label whose word, with the end of the answer, is likeliest."""
    said = story.planned("recipe", "task", "words", "say") or {}
    words = {str(label): str(said.get(label, label)).strip() for label in story.planned("data", "labels") or []}
    prompt = str(story.planned("recipe", "task", "words", "prompt") or "{text}")
    stop = next(iter(story.planned("data", "template", "stop") or []), "")
    return f"""
words = {json.dumps(words)}
prompt = {_quoted(prompt)}
stop = tokenizer.convert_tokens_to_ids({_quoted(str(stop))})


def log_probability(text, word):
    turns = [{{"role": "user", "content": prompt.replace("{{text}}", text)}}]
    start = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*turns, {{"role": "assistant", "content": word}}], tokenize=False)
    begin = len(tokenizer(start, add_special_tokens=False).input_ids)
    ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids[0]
    end = begin + ids[begin:].tolist().index(stop) + 1
    with torch.no_grad():
        chances = model(ids[None, :end]).logits[0, begin - 1 : -1].log_softmax(-1)
    return chances.gather(1, ids[begin:end, None]).sum()


found = torch.stack([log_probability("your text", word) for word in words.values()])
print(dict(zip(words, found.softmax(0).tolist())))
"""


def _words_adapter(story: Story, place: str) -> str:
    return f"""\
{_imports(story)}import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

{_loaded_adapter(story, place)}{_words(story)}"""


def _words_folder(story: Story, folder: str) -> str:
    return f"""\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({_quoted(folder)})
model = AutoModelForCausalLM.from_pretrained({_quoted(folder)}).eval()
{_words(story)}"""


def _quoted(text: str) -> str:
    """A Python string in double quotes, ASCII only: JSON's escapes are Python's too."""
    return json.dumps(text)
