"""Confidence intervals of a mean by the percentile bootstrap (Efron 1979). NumPy only."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

# Upper bound on the counts held at once: 2^22 int64 values are 32 MiB.
_MAX_CELLS = 1 << 22


def confidence_interval(
    values: Sequence[float | int] | Shaped[np.ndarray, " N"], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Returns the interval that holds the mean of `values` at the given confidence level.

    Draws `resamples` samples of N values with replacement and takes the quantiles of their means. How often each
    distinct value occurs in a sample is multinomial, so the counts are drawn instead of the values: per-question
    accuracies have few distinct values, which makes this fast for hundreds of thousands of questions.

    Args:
        values: N per-example results, at least one, finite; true and false count as 1 and 0.
        seed: the same seed gives the same interval.
        resamples: number of samples drawn.
        level: share of the means inside the interval, between 0 and 1.

    Raises:
        ValueError: `values` is empty or not finite, or an argument is out of range.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"A bootstrap needs a non-empty list of values, got an array of shape {data.shape}.")
    if not np.isfinite(data).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(data))} of {data.size} values are not finite.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"Expected 0 < level < 1 and resamples >= 1, got {level} and {resamples}.")
    distinct, counts = np.unique(data, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_CELLS // distinct.size)
    means = np.concatenate(
        [
            rng.multinomial(data.size, counts / data.size, size=min(chunk, resamples - start)) @ distinct / data.size
            for start in range(0, resamples, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
