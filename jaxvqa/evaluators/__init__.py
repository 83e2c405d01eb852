"""Evaluators: each runs a predict function over a split and yields (name, value).

A new evaluator adds a module here and a row to `EVALUATORS`.
"""

import importlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxvqa.errors import ConfigError, nearest
from jaxvqa.state import TrainState


@runtime_checkable
class Evaluator(Protocol):
    """What a row of `config.evals` becomes."""

    def run(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Evaluates the state's parameters and yields (name, value)."""


EVALUATORS = {
    "vqa": "jaxvqa.evaluators.vqa:VqaEvaluator",
    "vqa_med": "jaxvqa.evaluators.vqa_med:VqaMedEvaluator",
    "vqa_rad": "jaxvqa.evaluators.vqa_rad:VqaRadEvaluator",
    "generation": "jaxvqa.evaluators.generation:GenerationEvaluator",
    "likelihood": "jaxvqa.evaluators.likelihood:LikelihoodEvaluator",
    "scores": "jaxvqa.evaluators.scores:ScoresEvaluator",
}


def evaluator_class(name: str) -> Any:
    """The evaluator of that name.

    Raises:
      ConfigError: names the known ones.
    """
    if name not in EVALUATORS:
        raise ConfigError(
            f"An evaluator's type is {name!r}; known are {', '.join(EVALUATORS)}.{nearest(name, EVALUATORS)}"
        )
    module, _, attribute = EVALUATORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def writes_predictions(name: str) -> bool:
    """Whether the evaluator of that name writes `predictions/NAME_STEP.jsonl`."""
    return getattr(evaluator_class(name), "writes_predictions", True)
