"""Evaluators: each runs a predict function over a split and yields (name, score).

A new evaluator adds a module here and a row to `EVALUATORS`.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from jaxvqa.errors import ConfigError, choose
from jaxvqa.evaluators.context import Context
from jaxvqa.metrics.score import Scores
from jaxvqa.report.tables import Table, Values
from jaxvqa.state import TrainState
from jaxvqa.types import Config


@runtime_checkable
class Evaluator(Protocol):
    """What a row of `config.evals` becomes."""

    def run(self, state: TrainState) -> Scores:
        """Evaluates the state's parameters and yields each score with its name, `NAME/…`."""


EVALUATORS = {
    "vqa": "jaxvqa.evaluators.vqa:evaluator",
    "vqa_med": "jaxvqa.evaluators.vqa_med:evaluator",
    "vqa_rad": "jaxvqa.evaluators.vqa_rad:evaluator",
    "generation": "jaxvqa.evaluators.generation:evaluator",
    "likelihood": "jaxvqa.evaluators.likelihood:LikelihoodEvaluator",
    "scores": "jaxvqa.evaluators.scores:ScoresEvaluator",
    "retrieval": "jaxvqa.evaluators.retrieval:RetrievalEvaluator",
}
"""Name -> what makes the evaluator of a context."""

WITHOUT_PREDICTIONS = ("likelihood",)
"""The evaluators that write no `predictions/NAME_STEP.jsonl`."""

WITHOUT_ANSWERS = ("scores", "retrieval")
"""The evaluators that give no accuracy of answers, but measures of their own, whose first ones a report shows and draws."""


def tables(name: str, config: Config, values: Values) -> Iterator[Table]:
    """The report's tables of an evaluation: those that are made of any answers, and what its type brings.

    The module of a type may have a function `tables` of the same arguments; so may those of other evaluations of the same
    split, which show theirs beside it.

    Args:
      name: the evaluation's, in `config.evals`.
      config: the run's.
      values: the newest value of each of the run's metrics; without those that it shows, there is no table.
    """
    if name not in config.get("evals", {}):
        return
    answers, split = importlib.import_module("jaxvqa.evaluators.answers"), config.evals[name].get("split")
    beside = [row for row in config.evals.values() if row.get("split") == split]
    yield from answers.rule_table(name, config, values)
    for kind in dict.fromkeys(row.get("type") for row in (config.evals[name], *beside)):
        if kind in EVALUATORS:
            module = importlib.import_module(EVALUATORS[kind].partition(":")[0])
            yield from getattr(module, "tables", lambda *_: ())(name, config, values)
    yield from answers.control_table(name, config, values)


def evaluator(name: str) -> Callable[[Context], Evaluator]:
    """What makes the evaluator of that name.

    Raises:
      ConfigError: names the known ones.
    """
    if name not in EVALUATORS:
        raise ConfigError(f"An evaluator's type is {name!r}{choose(name, EVALUATORS)}")
    module, _, attribute = EVALUATORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
