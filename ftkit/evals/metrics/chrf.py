"""chrF: how many runs of one to six characters answers and references share, recall counting twice; 0 to 100.

sacrebleu's corpus score with its defaults (chrF2): white space left out, case counts, no words; of several references
the one that fits best. One figure over all rows, not a mean over them. It needs no words, so it works in any script.
"""

from collections import Counter
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.chrf import CHRF

ORDER = 6
BETA = 2
Floats = npt.NDArray[np.float64]


class Chrf(evaluate.Metric):
    """The F-measure of the mean precision and the mean recall of character n-grams of order 1 to 6."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Popović (2015). chrF: character n-gram F-score for automatic MT evaluation.",
            inputs_description="predictions: [n] texts; references: [n] lists of texts, any of which is right.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Any, references: Any, **_others: Any) -> dict[str, float]:
        most = max(len(texts) for texts in references)
        columns: Any = [[texts[place] if place < len(texts) else None for texts in references] for place in range(most)]
        return {"chrf": float(CHRF().corpus_score(predictions, columns).score)}

    def statistics(self, *, predictions: Any, references: Any, **_others: Any) -> Floats:
        """What each row adds [n, 18]: for each order the n-grams of the answer, of the reference, and shared."""
        pairs = zip(predictions, references, strict=True)
        return np.array([_best(_counts(answer), [_counts(text) for text in texts]) for answer, texts in pairs])

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return _score(weights @ statistics)

    def each(self, statistics: Floats) -> Floats:
        """The metric of each row alone [n]."""
        return _score(statistics)


def _counts(text: str) -> list[Counter[str]]:
    """How often the text holds each n-gram, for each order."""
    dense = "".join(text.split())
    orders = range(1, ORDER + 1)
    return [Counter(dense[start : start + order] for start in range(len(dense) - order + 1)) for order in orders]


def _best(answer: list[Counter[str]], references: list[list[Counter[str]]]) -> Floats:
    """The counts [18] against the reference with the highest score, the first of equals."""
    rows = np.array(
        [[_shared(ours, theirs) for ours, theirs in zip(answer, reference, strict=True)] for reference in references],
        dtype=np.float64,
    ).reshape(len(references), 3 * ORDER)
    return np.asarray(rows[_score(rows).argmax()])


def _shared(ours: Counter[str], theirs: Counter[str]) -> tuple[int, int, int]:
    """An answer's n-grams do not count in an order for which the reference is too short."""
    return ours.total() if theirs else 0, theirs.total(), sum(min(count, theirs[run]) for run, count in ours.items())


def _score(sums: Floats) -> Floats:
    """chrF of these sums [B, 18] -> [B]; precision and recall are means over the orders that both sides have."""
    ours, theirs, shared = np.moveaxis(sums.reshape(len(sums), ORDER, 3), 2, 0)  # [B, 6] each
    both = (ours > 0) & (theirs > 0)
    orders = np.maximum(both.sum(axis=1), 1)
    precision = np.divide(shared, ours, out=np.zeros_like(ours), where=both).sum(axis=1) / orders
    recall = np.divide(shared, theirs, out=np.zeros_like(ours), where=both).sum(axis=1) / orders
    weighted = BETA**2 * precision + recall
    product = (1 + BETA**2) * precision * recall
    return np.asarray(100 * np.divide(product, weighted, out=np.zeros_like(product), where=weighted > 0))
