"""What a table of a report is: evaluators make those of their own metrics (`jaxvqa.evaluators.tables`)."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxvqa.metrics.score import Score
from jaxvqa.report.numbers import percent

Values = Mapping[str, float]
"""The newest value of each metric of a run: NAME/MEASURE, with the interval's NAME/MEASURE/low and …/high."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      title: what stands above it.
      head: the columns' names. The first column names the row, the second says in words what it is, the others are numbers.
      rows: as many cells each as `head`.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def cell(values: Values, key: str) -> str:
    """A metric in percent with its interval where it has one; a dash where there is no such metric."""
    score = Score.of_row(values, key)
    if score is None:
        return "–"
    return (
        percent(score.value) if score.low is None else f"{percent(score.value)} ({score.low:.1f} to {score.high:.1f})"
    )
