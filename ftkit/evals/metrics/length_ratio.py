"""Length ratio: the characters of all answers over those of their references; 1 is as long, 2 twice as long.

In characters, so that it does not depend on the tokenizer. Of several references the closest in length counts, the
shorter of equals. Neither more nor less is better: it tells of answers that ramble or stop early. Undefined (None)
where the references hold no character.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class LengthRatio(evaluate.Metric):
    """The sum of the answers' lengths / the sum of their references' lengths."""

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: [n] texts; references: [n] lists of texts, any of which is right.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Any, references: Any, **_others: Any) -> dict[str, float | None]:
        statistics = self.statistics(predictions=predictions, references=references)
        value = float(self.resample(np.ones((1, len(statistics))), statistics=statistics)[0])
        return {"length_ratio": None if np.isnan(value) else value}

    def statistics(self, *, predictions: Any, references: Any, **_others: Any) -> Floats:
        """Characters of each answer and of its closest reference [n, 2]."""
        pairs = [
            (len(answer), [len(text) for text in texts]) for answer, texts in zip(predictions, references, strict=True)
        ]
        closest = [(size, min(sizes, key=lambda other: (abs(other - size), other))) for size, sizes in pairs]
        return np.array(closest, dtype=np.float64)

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B], nan where no character of a reference was drawn."""
        answers, references = (weights @ statistics).T  # [B] each
        return np.asarray(np.divide(answers, references, out=np.full(len(weights), np.nan), where=references > 0))
