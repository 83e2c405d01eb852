"""Evaluators: each runs a predict function over a split and yields (name, score).

A new evaluator adds a module here and a row to `EVALUATORS`; one of a user's own package is named by its place, as
"package.module:name".
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from jaxvqa.evaluators.context import Context
from jaxvqa.metrics.score import Scores
from jaxvqa.named import Named
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

NAMED = Named("an evaluator", EVALUATORS, "a function of a jaxvqa.evaluators.context.Context, or a class", callable)
"""What a type of `config.evals` may be."""


def has_own_measures(kind: Any) -> bool:
    """Whether a report shows an evaluator's measures as they come: of those of `WITHOUT_ANSWERS`, and of a user's own."""
    return kind in WITHOUT_ANSWERS or NAMED.is_own(kind)


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
        yield from getattr(NAMED.module(kind), "tables", lambda *_: ())(name, config, values)
    yield from answers.control_table(name, config, values)


def evaluator(name: str) -> Callable[[Context], Evaluator]:
    """What makes the evaluator of that name, or of a user's own at "package.module:name".

    Raises:
      ConfigError: names the known ones, or says what is wrong with the user's own.
    """
    return NAMED.get(name, "An evaluator's type")
