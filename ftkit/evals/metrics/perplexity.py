"""Perplexity: exp of the mean negative log-likelihood of a token; lower is better.

The mean is over all predicted tokens of all windows: a window counts by its tokens, and cutting one in two changes
nothing but the tokens' context. Figures compare only between models with the same tokens. Undefined without a token.
A mean above ln(1e300), about 691 nats a token, counts as that: exp would overflow, and the figure stays finite.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

LARGEST = 1e300
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Perplexity(evaluate.Metric):
    """Between how many equally likely tokens the model would be as unsure."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Jelinek, Mercer, Bahl & Baker (1977). Perplexity: a measure of the difficulty of speech tasks.",
            inputs_description="nll: [n] nats over the predicted tokens of a window; tokens: [n] how many these are.",
            features=datasets.Features({"nll": datasets.Value("float64"), "tokens": datasets.Value("int64")}),
        )

    def _compute(self, *, nll: Any, tokens: Any, **_others: Any) -> dict[str, float | None]:
        once = np.ones((1, len(nll)))
        value = float(self.resample(once, nll=np.asarray(nll), tokens=np.asarray(tokens))[0])
        return {"perplexity": None if np.isnan(value) else value}

    def resample(self, weights: Floats, *, nll: Floats, tokens: Array, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B], nan where no token was drawn."""
        count = weights @ tokens  # [B]
        mean = np.divide(weights @ nll, count, out=np.full(len(weights), np.nan), where=count > 0)
        return np.asarray(np.exp(np.minimum(mean, np.log(LARGEST))))
