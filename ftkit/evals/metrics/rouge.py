"""ROUGE: how much of the reference's words, pairs of words or order of words an answer has (Lin 2004).

The configuration says which: ``rouge1`` counts words, ``rouge2`` pairs of neighbours, ``rouge_l`` the longest sequence
of words that both hold in this order (over the whole text: rougeL, not rougeLsum). Each is the F-measure of rouge-score
without stemming; of several references the best; the mean over the rows.

Words are runs of letters and digits of any script, in small letters. On ASCII text that is rouge-score's own rule; it
knows no other letters and finds no word in Greek. Of text without spaces, such as Chinese, a phrase is one word: chrf
says more there.
"""

import re
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from rouge_score.rouge_scorer import RougeScorer

Floats = npt.NDArray[np.float64]

_KINDS = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}
_WORD = re.compile(r"[^\W_]+")


class Words:
    """What rouge-score asks for words."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


class Rouge(evaluate.Metric):
    """The F-measure of overlapping words, averaged over the rows."""

    def _info(self) -> Any:
        if self.config_name not in _KINDS:
            raise ValueError(f"Unknown configuration {self.config_name!r}. Use rouge1, rouge2 or rouge_l.")
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin (2004). ROUGE: a package for automatic evaluation of summaries.",
            inputs_description="predictions: [n] texts; references: [n] lists of texts, any of which is right.",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, *, predictions: Any, references: Any, **_others: Any) -> dict[str, float]:
        values = self.statistics(predictions=predictions, references=references)
        return {str(self.config_name): float(values.mean())}

    def statistics(self, *, predictions: Any, references: Any, **_others: Any) -> Floats:
        """The F-measure of each answer [n, 1]."""
        kind = _KINDS[str(self.config_name)]
        scorer = RougeScorer([kind], tokenizer=Words())
        pairs = zip(predictions, references, strict=True)
        best = [scorer.score_multi(texts, answer)[kind].fmeasure for answer, texts in pairs]
        return np.array(best, dtype=np.float64)[:, None]

    def resample(self, weights: Floats, *, statistics: Floats, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B]."""
        return np.asarray((weights @ statistics[:, 0]) / weights.sum(axis=1))

    def each(self, statistics: Floats) -> Floats:
        """The metric of each row alone [n]."""
        return statistics[:, 0]
