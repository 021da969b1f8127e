"""Bits per byte: the bits that the model needs for a byte of UTF-8 text; lower is better.

The sum of the negative log-likelihoods in bits, over the sum of the bytes that they predict. It does not depend on how
the text is cut into tokens, so models with different tokenizers compare. Undefined without a byte.
"""

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class BitsPerByte(evaluate.Metric):
    """The size of the text, compressed by the model, against its size."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Gao et al. (2020). The Pile: an 800GB dataset of diverse text for language modeling.",
            inputs_description="nll: [n] nats over the predicted tokens of a window; bytes: [n] their bytes of text.",
            features=datasets.Features({"nll": datasets.Value("float64"), "bytes": datasets.Value("int64")}),
        )

    def _compute(self, *, nll: Any, bytes: Any, **_others: Any) -> dict[str, float | None]:
        once = np.ones((1, len(nll)))
        value = float(self.resample(once, nll=np.asarray(nll), bytes=np.asarray(bytes))[0])
        return {"bits_per_byte": None if np.isnan(value) else value}

    def resample(self, weights: Floats, *, nll: Floats, bytes: Array, **_others: Any) -> Floats:
        """The metric in each resample: weights [B, n] -> [B], nan where no byte was drawn."""
        count = weights @ bytes  # [B]
        bits = (weights @ nll) / np.log(2)
        return np.asarray(np.divide(bits, count, out=np.full(len(weights), np.nan), where=count > 0))
