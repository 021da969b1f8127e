"""Token F1: how far the words of an answer are those of a reference, their order aside (Rajpurkar et al. 2016, SQuAD).

The harmonic mean of the share of the answer's words that the reference has and the share of the reference's words that
the answer has, a word counting as often as both have it; of several references the best; the mean over the rows. Words
stand between white space, after the normalisation of exact match (exact_match.py says what that leaves out).
"""

import re
import string
from collections import Counter
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class TokenF1(evaluate.Metric):
    """2 * shared words / (words of the answer + words of the reference), averaged over the rows."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rajpurkar et al. (2016). SQuAD: 100,000+ questions for machine comprehension of text.",
            inputs_description="predictions: [n] texts; references: [n] lists of texts, any of which is right.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Any, references: Any, **_others: Any) -> dict[str, float]:
        return {"token_f1": float(self.statistics(predictions=predictions, references=references).mean())}

    def statistics(self, *, predictions: Any, references: Any, **_others: Any) -> Floats:
        """The F1 of each answer [n, 1]."""
        pairs = zip(predictions, references, strict=True)
        best = [max(_f1(_words(answer), _words(text)) for text in texts) for answer, texts in pairs]
        return np.array(best, dtype=np.float64)[:, None]

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return np.asarray((weights @ statistics[:, 0]) / weights.sum(axis=1))

    def each(self, statistics: Floats) -> Floats:
        """The metric of each row alone [n]."""
        return statistics[:, 0]


def _words(text: str) -> Counter[str]:
    words = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return Counter(words or text.lower().split())


def _f1(answer: Counter[str], reference: Counter[str]) -> float:
    """Nothing where nothing was asked for is right, as it is for exact match."""
    both = answer.total() + reference.total()
    return 2 * (answer & reference).total() / both if both else 1.0
