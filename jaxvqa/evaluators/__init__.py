"""Evaluators: each runs a predict function over a split and yields (name, score).

A new evaluator adds a module here and a row to `EVALUATORS`.
"""

import importlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxvqa.errors import ConfigError, nearest
from jaxvqa.evaluators.context import Context
from jaxvqa.metrics.score import Scores
from jaxvqa.state import TrainState


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
}
"""Name -> what makes the evaluator of a context."""

WITHOUT_PREDICTIONS = ("likelihood",)
"""The evaluators that write no `predictions/NAME_STEP.jsonl`."""


def evaluator(name: str) -> Callable[[Context], Evaluator]:
    """What makes the evaluator of that name.

    Raises:
      ConfigError: names the known ones.
    """
    if name not in EVALUATORS:
        raise ConfigError(
            f"An evaluator's type is {name!r}; known are {', '.join(EVALUATORS)}.{nearest(name, EVALUATORS)}"
        )
    module, _, attribute = EVALUATORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
