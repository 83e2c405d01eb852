"""Tables of a report, as evaluators make them of their own metrics.

The module of an evaluator may have a function

    def tables(name: str, config: Config, values: Values) -> Iterable[Table]

which makes the tables of the evaluation `name` of a run's config from the newest value of each of the run's metrics. `values`
has the other evaluations' metrics too. Where it has none that a table needs, there is no table.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence

from jaxvqa.evaluators import EVALUATORS
from jaxvqa.report.numbers import percent
from jaxvqa.types import Config

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
    if key not in values:
        return "–"
    low, high = values.get(f"{key}/low"), values.get(f"{key}/high")
    return percent(values[key]) if low is None else f"{percent(values[key])} ({low:.1f} to {high:.1f})"


def tables(name: str, config: Config, values: Values) -> Iterator[Table]:
    """The tables that the evaluation `name` brings."""
    kind = config.get("evals", {}).get(name, {}).get("type")
    if kind in EVALUATORS:
        module = importlib.import_module(EVALUATORS[kind].partition(":")[0])
        yield from getattr(module, "tables", lambda *_: ())(name, config, values)
