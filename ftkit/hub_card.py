"""The model card of a run for the hub: metadata with the results, and what a stranger must know to use the model.

The format of the metadata is that of huggingface_hub's ``ModelCardData`` (https://huggingface.co/docs/hub/model-cards).
The card names no file or folder of the machine and shows no row of the data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftkit.data.hub import HubId
from ftkit.errors import DataError, NotProved, Problem, RecipeError
from ftkit.report import facts, markdown, numbers, tables, untrusted, usage, wording
from ftkit.report.story import Story

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

Product = Literal["merged", "adapter", "model"]

_ON_THE_HUB = ("hub", "hub cache")
# What the hub calls a metric, where it has another name for it, and the metrics that it lists.
_HUB_METRICS = {"mcc": "matthews_correlation", "rouge_l": "rougeL"}
_LISTED = {name: name for name in ("accuracy", "precision", "recall", "f1", "roc_auc", "perplexity", "exact_match")}
_LISTED |= {"mcc": "matthews_correlation", "bleu": "bleu", "chrf": "chrf"}
_LISTED |= {"rouge1": "rouge", "rouge2": "rouge", "rouge_l": "rouge"}
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_AVERAGED = ("precision", "recall", "f1")
_OWN_DATA = "custom"  # the type of a data set that is not on the hub
_PURPOSES = {
    "classify": "labels texts like those that it was trained on",
    "words": "labels texts like those that it was trained on, by saying the label",
    "causal": "goes on with texts like those that it was trained on, and is a base for further training",
    "masked": "fills in words that are hidden in texts like those that it was trained on, and is a base for further "
    "training",
    "sft": "answers prompts like those that it was trained on, in the chat template that is saved with it",
}
_NOT_MEASURED = (
    "Not measured: bias, harmful output, answers to inputs that are made to mislead it, and personal data that it may "
    "have learned by heart."
)


def hub_card(folder: Path, repository: str | None = None) -> str:
    """README.md for the hub, of the run in ``folder``; ``repository`` is where it will stand (owner/name).

    Raises RecipeError for a run that was not evaluated or trained nothing, DataError where the card would name a place
    of this machine, NotProved where huggingface_hub does not read the metadata back as written.
    """
    story = Story.read(folder)
    product = product_of(story)
    metadata = _metadata(story, product)
    text = _text(story, product, metadata.to_yaml(), repository)
    refuse_private(text, "the model card", story)
    _read_back(text, metadata)
    return text


def product_of(story: Story) -> Product:
    """What of the run is for others: the merged model, else the adapter; of a run from scratch its model."""
    if story.eval is None:
        fix = f"Go on with it first: ftkit run {story.folder / 'recipe.yaml'} --out {story.folder} --resume"
        raise RecipeError(f"{story.folder} was not evaluated", [Problem("", "RUN", fix)])
    found: list[tuple[bool, Product]] = [
        (story.has_merged, "merged"), (story.has_adapter, "adapter"), (story.has_model, "model"),
    ]  # fmt: skip
    for there, product in found:
        if there:
            return product
    message = "it has neither merged/ nor adapter/ nor model/. Run its recipe again."
    raise RecipeError(f"{story.folder} has no model", [Problem("", "RUN", message)])


def base_id(story: Story) -> str | None:
    """The hub id of the base, without revision; None for a folder, for what ftkit ships, and from scratch."""
    source = str(story.planned("base", "source") or "")
    if source not in _ON_THE_HUB and not source.startswith("package "):
        return None
    return str(story.planned("base", "ref")).partition("@")[0]


def is_usable(story: Story, product: Product) -> bool:
    """Whether others can load it: an adapter needs a base that others can have."""
    return product != "adapter" or base_id(story) is not None or usage.is_shipped(story)


def refuse_private(text: str, what: str, story: Story) -> None:
    """Raises DataError where a text that others will see names the home, the working or a run's folder, or a base's."""
    folder = story.planned("base", "folder")
    places = [Path.home(), Path.cwd(), story.folder.resolve(), *([Path(folder)] if folder else [])]
    for place in map(str, places):
        # As it is, and as JSON writes it; not as the beginning of another name.
        forms = "|".join(re.escape(form) for form in (place, json.dumps(place)[1:-1]))
        if place != "/" and re.search(rf"(?<![\w.-])(?:{forms})(?![\w.-])", text):
            fix = "Others must not see it: take it out of the recipe, or name the base by its hub id, and run again."
            raise DataError(f"{what} names a folder of this machine", [Problem("", place, fix)])


def _metadata(story: Story, product: Product) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base = base_id(story)
    relation = None if base is None else "adapter" if product == "adapter" else "finetune"
    report = story.eval
    assert report is not None  # product_of has seen to it
    metrics = [_LISTED[name] for name in report.models[tables.main_model(report)].metrics if name in _LISTED]
    results = _results(story, product)
    return ModelCardData(
        base_model=base,
        base_model_relation=relation,
        datasets=_data_sets(story) or None,
        eval_results=results or None,
        language=list(story.planned("recipe", "data", "clean", "languages") or []) or None,
        library_name="peft" if product == "adapter" else "transformers",
        license=_licence(story),
        metrics=list(dict.fromkeys(metrics)) or None,
        model_name=story.name if results else None,
        pipeline_tag=usage.PIPELINES[story.kind],
        tags=["ftkit", *(["lora"] if story.planned("recipe", "adapter", "type") == "lora" else [])],
    )


def _licence(story: Story) -> str | None:
    """The base's licence as its own card names it, where that has the form of the hub's names of licences."""
    found = str(story.planned("base", "licence") or "").strip("'\"").lower()
    return found if _LICENCE.fullmatch(found) else None


def _data_sets(story: Story) -> list[str]:
    """The hub ids among the sources of the data, each once."""
    sources = [HubId.parse(file["path"]) for file in story.planned("data", "files") or [] if file.get("hub")]
    return list(dict.fromkeys(source.name for source in sources if source is not None))


def _tested_on(story: Story) -> dict[str, str | None]:
    """The data set of the results: the hub's where the test rows are one of its data sets, else the run's own."""
    report = story.eval
    assert report is not None
    files = [file for file in story.planned("data", "files") or [] if file.get("split") == "test"]
    source = HubId.parse(files[0]["path"]) if len(files) == 1 and files[0].get("hub") else None
    if source is None:
        name = f"{story.name}, {report.split} {report.unit}s"
        return {"dataset_type": _OWN_DATA, "dataset_name": name, "dataset_split": report.split}
    split = source.split or report.split
    return {
        "dataset_type": source.name, "dataset_name": source.name, "dataset_config": source.config,
        "dataset_split": split,
    }  # fmt: skip


def _results(story: Story, product: Product) -> list[EvalResult]:
    """The figures of the model that the card is about; those that could not be computed are left out."""
    from huggingface_hub import EvalResult

    report = story.eval
    assert report is not None
    model = product if product in report.models else tables.main_model(report)
    tested: dict[str, Any] = _tested_on(story)
    return [
        EvalResult(
            # Labels that are said are measured as labels.
            task_type=usage.PIPELINES["classify" if story.kind == "words" else story.kind],
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_name=numbers.metric_name(metric),
            metric_value=round(value, 6),
            metric_args={"average": report.metrics_average} if metric in _AVERAGED and report.metrics_average else None,
            **tested,
        )
        for metric, value in report.models[model].metrics.items()
        if value is not None and math.isfinite(value)
    ]


def _text(story: Story, product: Product, front_matter: str, repository: str | None) -> str:
    place = repository or f"OWNER/{story.name}"
    page = markdown.page(
        "hub.md.j2",
        **markdown.results(story),
        story=story,
        front_matter=markdown.Markdown(front_matter),
        headline=wording.headline(story),
        about=_about(story, product),
        purpose=_PURPOSES[story.kind],
        code=markdown.code(usage.of_repository(story, product, place)) if is_usable(story, product) else None,
        placeholder=None if repository else place,
        data=_data(story),
        labels=story.planned("data", "labels") or [],
        training=facts.training(story),
        limits=[*facts.limits(story), _NOT_MEASURED],
        # The command names the recipe's place.
        origin=[(term, value) for term, value in facts.origin(story) if term != "Command"],
    )
    return f"{page}\n{untrusted.fenced(_public_recipe(story), 'yaml')}\n"


def _about(story: Story, product: Product) -> facts.Facts:
    """What the model is made of, as (term, value)."""
    holds = {
        "adapter": "the adapter alone, to be put on its base",
        "merged": "the adapter merged into its base: a whole model",
        "model": "a whole model, trained from scratch",
    }
    base = base_id(story)
    revision = story.planned("base", "revision")
    if base is None and not story.from_scratch:
        base = "ftkit/tiny-lm, which ships with ftkit" if usage.is_shipped(story) else "a local folder, without a name"
    adapter = story.planned("recipe", "adapter") or {}
    shape = {key: adapter[key] for key in ("type", "r", "alpha", "quantize") if adapter.get(key) is not None}
    licence = f"{_licence(story)}; whether the data allow it for this model, its owner must say"
    if _licence(story) is None:
        licence = "not known; which one this model has, its owner must say"
    found = [
        ("This repository holds", holds[product]),
        ("Base model", f"{base}, revision {revision}" if base and revision else base),
        ("SHA-256 of the base's weights", story.planned("base", "sha256")),
        ("Adapter", numbers.plain(shape) if shape else None),
        ("Licence of the base", None if story.from_scratch else licence),
        *facts.template(story),
    ]
    return [(term, str(value)) for term, value in found if value]


def _data(story: Story) -> facts.Facts:
    """The data in brief: sizes, hashes, and the names of data sets that the hub has."""
    names = _data_sets(story)
    return [("Data sets on the hub", ", ".join(names) if names else "none"), *facts.data(story)]


def _public_recipe(story: Story) -> str:
    """The recipe with all its values, as YAML; a path is replaced by what stands there."""
    import yaml

    recipe: dict[str, Any] = dict(story.planned("recipe") or {})
    on_hub = {file["path"] for file in story.planned("data", "files") or [] if file.get("hub")}
    if not story.from_scratch and base_id(story) is None and not usage.is_shipped(story):
        recipe["base"] = "(a local folder)"
    data = dict(recipe.get("data") or {})
    recipe["data"] = data | {
        key: _public_source(data[key], on_hub) for key in ("train", "valid", "test") if key in data
    }
    task = dict(recipe.get("task") or {})
    recipe["task"] = _public_template(task | ({"words": _public_template(task["words"])} if task.get("words") else {}))
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110)


def _public_source(value: Any, on_hub: set[str]) -> Any:
    if isinstance(value, list | tuple):
        return [_public_source(item, on_hub) for item in value]
    if isinstance(value, Mapping) or value in on_hub or str(value).endswith("%"):
        return value
    return "(a local file)"


def _public_template(task: Mapping[str, Any]) -> dict[str, Any]:
    named = task.get("template") in (None, "model", "chatml")
    return dict(task) if named else {**task, "template": "(a local file)"}


def _read_back(text: str, metadata: ModelCardData) -> None:
    """Raises NotProved where huggingface_hub reads other metadata, or other results, than were written."""
    import yaml
    from huggingface_hub import ModelCard

    # Written again from what was read, which has gone through the hub's own objects for results.
    if yaml.safe_load(ModelCard(text).data.to_yaml()) != yaml.safe_load(metadata.to_yaml()):
        fix = "Report it with the run's plan.json and eval.json."
        raise NotProved("the metadata of the model card is not read back as written", [Problem("", "--card", fix)])
