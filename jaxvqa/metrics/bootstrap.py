"""Confidence intervals of a mean, with one rule for many and for few examples.

Questions about one image are not independent of one another, so what is drawn, or counted, are images.

- Many: the percentile bootstrap (Efron 1979). Images are drawn with replacement, with all of their questions.
- Few, so that fewer than `FEW` images' worth of answers are right, or wrong: the exact interval of Clopper and Pearson (1934).
  Resampling says nothing about what was not seen there: three right answers of three would give "100 to 100". It counts
  N² / Σ nᵢ² images, where nᵢ of the N questions are about image i (Kish 1965), however alike one image's answers are.
- Differences of two results on the same questions: the same, where few means that few differ; what one gains and what it loses
  each have an exact interval then, which hold together (Bonferroni).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

FEW = 10
"""Images' worth of right, or of wrong answers, from which on the bootstrap is used."""

_ROUNDING = 1e-6  # of scores that float32 makes a little more than 1

# Upper bound on the counts held at once: 2^22 int64 values are 32 MiB.
_MAX_CELLS = 1 << 22

Values = Sequence[float | int] | Shaped[np.ndarray, " N"]
ImageIds = Sequence[int] | Shaped[np.ndarray, " N"]


def confidence_interval(
    values: Values,
    images: ImageIds | None = None,
    *,
    paired: bool = False,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the interval that holds the mean of `values` at the given confidence level, by the rule of this module.

    How often each distinct (sum, count) of an image occurs in a sample is multinomial, so these counts are drawn instead of
    the images: accuracies have few distinct values, which makes this fast for hundreds of thousands of questions.

    Args:
        values: N per-example results in [0, 1], at least one; true and false count as 1 and 0.
        images: which image each is about; without, each is about another one.
        paired: values are differences of two results on the same examples, in [-1, 1].
        seed: the same seed gives the same interval.
        resamples: number of samples drawn.
        level: share of the means inside the interval, between 0 and 1.

    Raises:
        ValueError: `values` is empty, not finite or out of range, `images` of another length, an argument out of range.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"An interval needs a non-empty list of values, got an array of shape {data.shape}.")
    if not np.isfinite(data).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(data))} of {data.size} values are not finite.")
    lowest = -1 if paired else 0
    least, most = float(np.min(data)), float(np.max(data))
    if most > 1 + _ROUNDING or least < lowest - _ROUNDING:
        raise ValueError(f"Expected values in [{lowest}, 1], got some from {least} to {most}.")
    data = np.clip(data, lowest, 1)
    if images is not None and len(images) != data.size:
        raise ValueError(f"There are {data.size} values, and images of {len(images)}.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"Expected 0 < level < 1 and resamples >= 1, got {level} and {resamples}.")
    which = np.arange(data.size) if images is None else np.unique(np.asarray(images), return_inverse=True)[1]
    sizes, sums = np.bincount(which).astype(np.float64), np.bincount(which, data)
    count = data.size**2 / (sizes**2).sum()
    gained, lost = count * np.maximum(data, 0).mean(), count * np.maximum(-data, 0).mean()
    if gained + lost < FEW or count - max(gained, lost) < FEW:
        if not paired:
            return _exact(gained, count, level)
        gain, loss = (_exact(part, count, (1 + level) / 2) for part in (gained, lost))
        return gain[0] - loss[1], gain[1] - loss[0]
    distinct, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, _MAX_CELLS // len(distinct))
    drawn = [
        rng.multinomial(sizes.size, counts / sizes.size, size=min(chunk, resamples - start)) @ distinct
        for start in range(0, resamples, chunk)
    ]
    totals = np.concatenate(drawn)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _exact(right: float, count: float, level: float) -> tuple[float, float]:
    """The interval of Clopper and Pearson for a share; counts need not be whole, as those of partly right answers are not."""
    from scipy import special  # takes a tenth of what the program takes to start, and many runs need it late or never

    tail = (1 - level) / 2
    wrong = max(count - right, 0.0)
    low = special.betaincinv(right, wrong + 1, tail) if right > 0 else 0.0
    high = special.betaincinv(right + 1, wrong, 1 - tail) if wrong > 0 else 1.0
    return float(low), float(high)
