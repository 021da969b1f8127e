"""BLEU: how many of the answers' runs of one to four words a reference has, with a penalty for brevity; 0 to 100.

sacrebleu's corpus score with its defaults (Post 2018): 13a tokenisation, case counts, exponential smoothing, any
number of references a row. One figure over all rows, not a mean over them. Of a row alone it is sacrebleu's sentence
score with effective order: runs longer than the answer are left out.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU

ORDER = 4
Floats = npt.NDArray[np.float64]


class Bleu(evaluate.Metric):
    """The geometric mean of the n-gram precisions of order 1 to 4, times the brevity penalty."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Papineni et al. (2002). BLEU: a method for automatic evaluation of machine translation.",
            inputs_description="predictions: [n] texts; references: [n] lists of texts, any of which is right.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Any, references: Any, **_others: Any) -> dict[str, float]:
        most = max(len(texts) for texts in references)
        columns: Any = [[texts[place] if place < len(texts) else None for texts in references] for place in range(most)]
        # force: 100 answers that end in " ." are no reason for a warning.
        return {"bleu": float(BLEU(force=True).corpus_score(predictions, columns).score)}

    def statistics(self, *, predictions: Any, references: Any, **_others: Any) -> Floats:
        """What each row adds [n, 10]: words, words of the closest reference, n-grams found and n-grams of order 1-4."""
        bleu = BLEU(effective_order=True)
        found = [bleu.sentence_score(answer, texts) for answer, texts in zip(predictions, references, strict=True)]
        return np.array([[row.sys_len, row.ref_len, *row.counts, *row.totals] for row in found], dtype=np.float64)

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return _score(weights @ statistics, effective=False)

    def each(self, statistics: Floats) -> Floats:
        """The metric of each row alone [n]."""
        return _score(statistics, effective=True)


def _score(sums: Floats, *, effective: bool) -> Floats:
    """BLEU of these sums [B, 10] -> [B]. ``effective``: the mean is over orders that the answer is long enough for."""
    words, closest, found, total = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + ORDER], sums[:, 2 + ORDER :]
    missed = (found == 0) & (total > 0)
    smoothed = np.where(missed, 0.5 ** missed.cumsum(axis=1), found)  # the k-th order without a hit counts 2^-k hits
    with np.errstate(divide="ignore"):
        logs = np.log(_ratio(smoothed, total))  # [B, 4], -inf where there is no n-gram of this order
    orders = np.full(len(sums), ORDER)
    if effective:
        logs = np.where(total > 0, logs, 0)
        orders = np.maximum((total > 0).sum(axis=1), 1)
    penalty = np.where(words > 0, np.exp(np.minimum(0, 1 - _ratio(closest, words))), 0)
    return np.where(found.any(axis=1), 100 * penalty * np.exp(logs.sum(axis=1) / orders), 0)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, and 0 where there is nothing to divide by."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
