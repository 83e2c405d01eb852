"""The best state of a run by one of its evaluations, kept in a folder of its own, and when to stop training."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from jaxvqa.errors import ConfigError, choose

DIRECTIONS = {"min": -1, "max": 1}


def chosen_by_test(config: Mapping[str, Any]) -> str:
    """The test split by whose evaluation `config.best` chooses the best state; empty where it chooses by none."""
    evaluation = config.get("best", {}).get("metric", "").partition("/")[0]
    split = config.get("evals", {}).get(evaluation, {}).get("split", "")
    return split if any(part.startswith("test") for part in split.split("+")) else ""


@dataclasses.dataclass
class Best:
    """Follows a metric through a run.

    Its state follows from the metrics that were written down, so that a run that was stopped goes on as one that was not.

    Attributes:
      metric: what is followed, such as "likelihood/loss"; empty: nothing.
      mode: whether a `min` or a `max` is wanted.
      patience: how many evaluations without a better value end the run; 0: none do.
      value: the best so far; None before the first.
      step: where that was.
      since: evaluations since then.
    """

    metric: str = ""
    mode: str = "min"
    patience: int = 0
    value: float | None = None
    step: int = 0
    since: int = 0

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, rows: Iterable[Mapping[str, Any]]) -> "Best":
        """Reads `config.best` and the rows of metrics.jsonl so far.

        Raises:
          ConfigError: the metric is not one of an evaluation, or the mode is not known.
        """
        best = cls(**config.best)
        faults = []
        evaluation = best.metric.partition("/")[0]
        if best.metric and evaluation not in config.evals:
            hint = choose(evaluation, config.evals)
            faults.append(f"config.best.metric is {best.metric!r}, and no evaluation is called {evaluation!r}{hint}")
        if best.mode not in DIRECTIONS:
            faults.append(f"config.best.mode is {best.mode!r}{choose(best.mode, DIRECTIONS)}")
        if best.patience and not best.metric:
            faults.append(f"config.best.patience is {best.patience}; it needs a config.best.metric to look at.")
        if faults:
            raise ConfigError("\n".join(faults))
        for row in rows:
            best.add(row["step"], row)
        return best

    def add(self, step: int, values: Mapping[str, Any]) -> bool:
        """Takes an evaluation's values, and says whether they are the best so far; it passes over those without the metric."""
        if not self.metric or self.metric not in values:
            return False
        value = float(values[self.metric])
        sign = DIRECTIONS[self.mode]
        if math.isfinite(value) and (self.value is None or sign * value > sign * self.value):
            self.value, self.step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def check(self, name: str, values: Mapping[str, Any]) -> None:
        """Checks that the evaluation `name` has given the metric.

        Raises:
          ConfigError: it has not; names what it gives.
        """
        if self.metric.partition("/")[0] == name and self.metric not in values:
            raise ConfigError(
                f"config.best.metric is {self.metric!r}, which the evaluation does not give{choose(self.metric, values)}"
            )

    @staticmethod
    def folder(workdir: Path) -> Path:
        """A work directory of its own under the run's, with the best checkpoint: to evaluate, predict or start from."""
        return workdir / "best"

    @property
    def is_enough(self) -> bool:
        """Whether the patience is at its end."""
        return bool(self.patience) and self.since >= self.patience
