"""The examples that an evaluation puts before its prompts; their pictures are compared by the evaluated model's own eyes."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvqa.data import pipeline
from jaxvqa.data.few_shot import Pictures, Shots, Support, most_similar
from jaxvqa.data.sources import VqaSource
from jaxvqa.data.transforms import Transform
from jaxvqa.evaluators.predicting import predict_all
from jaxvqa.state import TrainState
from jaxvqa.tasks import AnswerTask


class PromptExamples:
    """Makes the transforms of an evaluation whose prompts are preceded by examples."""

    def __init__(
        self,
        shots: Shots,
        source: VqaSource,
        *,
        task: AnswerTask,
        open_source: Callable[[str], VqaSource],
        batch_size: int,
        mesh: Mesh,
        readers: pipeline.Readers,
    ):
        """Args: which examples, the questions to evaluate, and what the evaluator itself reads."""
        self._shots, self._source, self._support = shots, source, Support.of(open_source(shots.split), shots)
        self._task, self._batch_size, self._mesh, self._readers = task, batch_size, mesh, readers
        self._vectors = jax.jit(task.predict_fns["image_vectors"])

    def transforms(self, state: TrainState) -> Sequence[Transform]:
        """The task's transforms with examples; by similarity, all pictures of both splits go through the model first."""
        if self._shots.by == "seed":
            return self._shots.transforms(self._support)
        asked, others = Pictures(self._source), self._support.pictures
        vectors = [self._seen(state, pictures) for pictures in (asked, others)]
        similar = most_similar(asked, vectors[0], others, vectors[1], self._shots.count)
        return self._shots.transforms(dataclasses.replace(self._support, similar=similar))

    def _seen(self, state: TrainState, pictures: Pictures) -> np.ndarray:
        return predict_all(
            self._vectors,
            state,
            task=self._task,
            source=pictures,
            batch_size=self._batch_size,
            mesh=self._mesh,
            readers=self._readers,
            what="comparing pictures",
        )["vector"]
