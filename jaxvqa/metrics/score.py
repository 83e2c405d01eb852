"""A score and its confidence interval: as evaluations give it, and as a row of metrics.jsonl holds it. NumPy only."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvqa.metrics.bootstrap import ImageIds, Values, confidence_interval


@dataclass(frozen=True)
class Score:
    """What an evaluation measures.

    Attributes:
      value: in percent, but for losses, perplexity and CIDEr.
      low: lower end of its 95 % interval; None for a measure without one.
      high: upper end.
      n: the examples that it is about; 0 where that is not known, as in a row of metrics.jsonl.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    @classmethod
    def mean(cls, values: Values, images: ImageIds | None = None, *, paired: bool = False) -> "Score":
        """The mean of values in percent with its interval: see `confidence_interval` for the arguments."""
        low, high = confidence_interval(values, images, paired=paired)
        return cls(share(values), 100 * low, 100 * high, len(values))

    @classmethod
    def of_row(cls, row: Mapping[str, Any], name: str) -> "Score | None":
        """The score of that name in a row of metrics.jsonl; None where there is none."""
        if name not in row:
            return None
        return cls(row[name], row.get(f"{name}/low"), row.get(f"{name}/high"))

    def entries(self, name: str) -> Iterator[tuple[str, float]]:
        """What a row of metrics.jsonl holds of it: `NAME`, and `NAME/low` and `NAME/high` where it has an interval."""
        yield name, self.value
        if self.low is not None and self.high is not None:
            yield f"{name}/low", self.low
            yield f"{name}/high", self.high


Scores = Iterator[tuple[str, Score]]
"""What an evaluation gives, by name."""


def as_row(scores: Iterable[tuple[str, Score]]) -> dict[str, float]:
    """The entries of scores in a row of metrics.jsonl."""
    return {key: value for name, score in scores for key, value in score.entries(name)}


def share(values: Values) -> float:
    """The mean of values in percent."""
    return 100 * float(np.mean(values))
