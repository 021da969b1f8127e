"""Exact match: the share of answers that say what a reference says (Rajpurkar et al. 2016, SQuAD's normalisation).

Case, ASCII punctuation, the articles a, an, the and the amount of white space do not count. Of a text that is nothing
else ("+", or "A" as a choice), the text itself counts, in small letters: SQuAD's script takes all of these for equal.
Punctuation goes without a trace, as it does there: "-1" is "1", and "1.5" is "15".
"""

import re
import string
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class ExactMatch(evaluate.Metric):
    """Answers equal to one of their references / answers."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Rajpurkar et al. (2016). SQuAD: 100,000+ questions for machine comprehension of text.",
            inputs_description="predictions: [n] texts; references: [n] lists of texts, any of which is right.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Any, references: Any, **_others: Any) -> dict[str, float]:
        return {"exact_match": float(self.statistics(predictions=predictions, references=references).mean())}

    def statistics(self, *, predictions: Any, references: Any, **_others: Any) -> Floats:
        """Whether each answer is right [n, 1]."""
        pairs = zip(predictions, references, strict=True)
        right = [_normalised(answer) in {_normalised(text) for text in texts} for answer, texts in pairs]
        return np.array(right, dtype=np.float64)[:, None]

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return np.asarray((weights @ statistics[:, 0]) / weights.sum(axis=1))

    def each(self, statistics: Floats) -> Floats:
        """The metric of each row alone [n]."""
        return statistics[:, 0]


def _normalised(text: str) -> str:
    words = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return " ".join(words or text.lower().split())
