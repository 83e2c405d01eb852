"""Means of the scores that a task gives each example, with confidence intervals; the scores are kept by id."""

from dataclasses import dataclass

from jaxvqa.evaluators.context import Context
from jaxvqa.metrics.score import Score, Scores
from jaxvqa.state import TrainState


@dataclass(frozen=True)
class ScoresEvaluator:
    """Runs a predict function that gives scores in [0, 1] by name, float[B], over a split."""

    context: Context

    def run(self, state: TrainState) -> Scores:
        """Yields each score's mean in percent with its interval; writes `predictions/NAME_STEP.jsonl`."""
        context, found = self.context, self.context.outputs(state)
        ids = [int(example["question_id"]) for example in context.source.all_records()]
        rows = ({"id": i} | {name: round(float(v[n]), 6) for name, v in found.items()} for n, i in enumerate(ids))
        context.write(int(state.step), rows)
        yield from ((f"{context.name}/{name}", Score.mean(each, context.images)) for name, each in found.items())
