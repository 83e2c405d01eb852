"""Means of the scores that a task gives each example, with confidence intervals; the scores are kept by id."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh

from jaxvqa.data import pipeline
from jaxvqa.data.sources import VqaSource
from jaxvqa.errors import os_errors
from jaxvqa.evaluators.predicting import predict_all, predict_function
from jaxvqa.evaluators.vqa import write_whole
from jaxvqa.metrics.bootstrap import percentages
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task


class ScoresEvaluator:
    """Runs a predict function that gives scores in [0, 1] by name, float[B], over a split."""

    def __init__(
        self,
        name: str,
        config: ml_collections.ConfigDict,
        *,
        task: Task,
        open_source: Callable[[str], VqaSource],
        mesh: Mesh,
        workdir: Path,
        readers: pipeline.Readers,
    ):
        """Args: the evaluator's name and its row of `config.evals` (`split`, `batch_size`, `predict`), and what it reads."""
        self.name, self._task, self._mesh, self._workdir = name, task, mesh, workdir
        self._source, self._batch_size, self._readers = open_source(config.split), config.batch_size, readers
        self._predict = predict_function(name, config, task, mesh)

    def run(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields each score's mean in percent and its interval (`/low`, `/high`); writes `predictions/NAME_STEP.jsonl`."""
        scores = predict_all(
            self._predict,
            state,
            task=self._task,
            source=self._source,
            batch_size=self._batch_size,
            mesh=self._mesh,
            readers=self._readers,
            what=f"evaluating {self.name}",
        )
        if jax.process_index() == 0:
            ids = [int(example["question_id"]) for example in self._source.all_questions()]
            rows = [{"id": i} | {name: round(float(v[n]), 6) for name, v in scores.items()} for n, i in enumerate(ids)]
            folder = self._workdir / "predictions"
            with os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                write_whole(folder / f"{self.name}_{int(state.step)}.jsonl", lines)
        images = [int(example["image_id"]) for example in self._source.all_questions()]
        for name, values in scores.items():
            yield from percentages(f"{self.name}/{name}", values, images)
