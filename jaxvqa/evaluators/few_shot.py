"""The examples that an evaluation puts before its prompts; their images are compared by the evaluated model's own encoder."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from jaxvqa.data.few_shot import Shots, Support, most_similar
from jaxvqa.data.transforms import Transform
from jaxvqa.data.views import Images
from jaxvqa.evaluators.context import Context
from jaxvqa.state import TrainState


def with_examples(
    context: Context,
    shots: Shots | None,
    asked: Images | None = None,
    vectors: Float[np.ndarray, "N E"] | None = None,
) -> Callable[[TrainState], Sequence[Transform] | None]:
    """Returns a function that makes the transforms of an evaluation with a state: None, the task's own, without `shots`.

    By similarity, all images of both splits go through the model first, those of the examples unless `vectors` are given.

    Args:
      context: the evaluation.
      shots: the examples that are wanted.
      asked: the images that are asked about; by default those of the evaluation's split.
      vectors: `image_vectors` of the examples' images, which belong to one state.
    """
    if shots is None:
        return lambda state: None
    support = Support.of(context.open_source(shots.split), shots)
    if shots.by == "seed":
        return lambda state: shots.transforms(support)
    about = asked or context.source.images

    def by_similarity(state: TrainState) -> Sequence[Transform]:
        of_asked = image_vectors(context, state, about)
        of_support = image_vectors(context, state, support.images) if vectors is None else vectors
        similar = most_similar(about, of_asked, support.images, of_support, shots.count)
        return shots.transforms(dataclasses.replace(support, similar=similar))

    return by_similarity


def image_vectors(context: Context, state: TrainState, images: Images) -> Float[np.ndarray, "N E"]:
    """The vectors by which images are compared."""
    predict = context.task.predictions["image_vectors"]
    return context.outputs(state, predict=predict, source=images, what="comparing images")["vector"]
