"""What flows between the stages: frozen values without behaviour, each of which can be written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text. ``labels`` holds one name for a single-label task, any number for a multi-label task.

    ``id`` is stable and unique in its split ("train.csv:17"), ``where`` the place to show in messages
    ("data/train.csv line 17").
    """

    id: str
    where: str
    text: str
    labels: tuple[str, ...]
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says. ``trained``: the row's own wish; only assistant turns can be trained.

    ``calls``: the tools that the assistant calls, each {"name", "arguments"}.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    trained: bool = True
    calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation(Example):
    """A row of instruction data; the last turn is the assistant's. ``text``: all that comes before it, as plain text.

    ``references``: equally good last answers, the trained one first. ``tools``: JSON schemas of the tools on offer.
    ``labels`` is empty.
    """

    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be answered: all ``turns`` before the answer. ``where`` and ``text`` are those of a Conversation."""

    where: str
    text: str
    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """A value that the recipe left open and ftkit chose: printed, and kept in plan.json."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What training took. ``seconds``: from the first batch requested to the last optimiser step, caches included.

    Validation and checkpoints are timed beside it. Memory is in MiB; ``peak_gpu_mb`` is null without a GPU.
    ``best_sha256``: of the weights that were exported, which are those that were scored best. ``loss_moved``: whether
    the training loss changed more than by chance.
    """

    steps: int
    epochs: float
    train_loss: float
    seconds: float
    validation_seconds: float
    checkpoint_seconds: float
    rows: int
    tokens: int
    tokens_per_s: float
    peak_rss_mb: int
    peak_gpu_mb: int | None
    trainable_parameters: int
    total_parameters: int
    micro_batch_size: int
    best_step: int | None
    best_metric: str | None
    best_value: float | None
    best_sha256: str | None = None
    stopped_early: bool = False
    loss_moved: bool = True


@dataclass(frozen=True, slots=True)
class ClassScore:
    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Average:
    """Precision, recall and F1 over all labels, by one way of averaging: macro, micro or weighted."""

    average: str
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """One bin of a reliability diagram: mean confidence and accuracy of the rows that fall in it."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, slots=True)
class ModelScores:
    """One model's results on the evaluated rows.

    ``confusion``: rows are references, columns predictions (single-label); one 2x2 table for each label
    ([[tn, fp], [fn, tp]]) for a multi-label task. ``ci95``: percentile bootstrap over rows.
    """

    metrics: Mapping[str, float | None]
    ci95: Mapping[str, tuple[float, float]]
    per_class: tuple[ClassScore, ...]
    confusion: tuple[Any, ...]
    reliability: tuple[Reliability, ...] = ()
    averages: tuple[Average, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison of one metric on the same rows: ``difference`` = first model minus second."""

    test: Literal["mcnemar", "paired_bootstrap"]
    metric: str
    p_value: float
    difference: float
    ci95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class GateReason:
    """One condition of the gate: what the recipe needs, what was measured, and whether that is enough."""

    metric: str
    need: str
    got: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer. ``passed`` with no reasons means that the recipe sets no condition.

    ``undecided``: the test set is too small for a condition to be decided; said, and counted as not passed.
    """

    passed: bool
    reasons: tuple[GateReason, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """A model on disk: an export of a run's model, or that model itself. Its scores stand in ``models``.

    ``path``: its folder within the run's; ``bytes``: of all its files; ``exact``: whether its type holds every number
    of the model it was made from. Where it was scored: by which ``reader``, how many ``rows`` in how many ``seconds``,
    and how far it is from that model, ``metric_fall`` by ``metric`` (above 0: it is worse).
    """

    path: str
    bytes: int
    exact: bool
    reader: str | None = None
    rows: int | None = None
    seconds: float | None = None
    max_abs_logit_diff: float | None = None
    argmax_agreement: float | None = None
    metric: str | None = None
    metric_fall: float | None = None


@dataclass(frozen=True, slots=True)
class EvalReport:
    """eval.json: every model on the same rows, the paired comparisons, and the verdict.

    ``seconds``: what scoring took: ``baseline`` (features for the probe), ``validation`` (the check of the adapter on
    disk, and thresholds) and ``adapter`` (these rows). ``seeds``: metrics of the same training with other seeds.
    ``unit``: what ``n`` counts, "window" (of text) for a language model. ``exports``: by their names in ``models``, and
    beside them the model that they were made from.
    """

    task: str
    split: str
    n: int
    labels: tuple[str, ...]
    multi_label: bool
    data_sha256: str
    metrics_average: str
    seed: int
    models: Mapping[str, ModelScores]
    comparison: Mapping[str, Sequence[Comparison]]
    gate: Verdict
    thresholds: tuple[float, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    seeds: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    unit: str = "row"
    exports: Mapping[str, ExportFacts] = field(default_factory=dict)


def as_json(record: Any) -> Any:
    """The record as plain dictionaries, lists and scalars."""
    return asdict(record)
