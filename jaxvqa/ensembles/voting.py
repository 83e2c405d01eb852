"""How SYSU-HCP answers: classes allowed by the question, a rule of confidence, a vote of several models.

docs/originals/sysu_hcp.md, section 6.

M models, N images, A classes. Logits are raw: the original never takes a softmax here.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxvqa.errors import DataError

CONFIDENT = 0.5
"""A raw logit above this is believed, whatever the question asks about."""

CANDIDATES = 20
"""How many of a model's best classes are looked through for an allowed one."""

VOTES = ("majority", "mean_probabilities")
"""How an ensemble answers: see `vote` and `mean_vote`."""


# --- which class is the answer: from logits and the classes that the question allows, arrays of NumPy or of JAX ----------


def best(logits: Float[Any, "*batch A"], allowed: Bool[Any, "*batch A"]) -> Int[Any, "*batch"]:
    """The class with the largest logit, whatever the question allows. So are the answers of the original's released script."""
    return logits.argmax(axis=-1)


def best_allowed(logits: Float[Any, "*batch A"], allowed: Bool[Any, "*batch A"]) -> Int[Any, "*batch"]:
    """The allowed class with the largest logit."""
    return logits.__array_namespace__().where(allowed, logits, -math.inf).argmax(axis=-1)


def allowed_unless_confident(logits: Float[Any, "*batch A"], allowed: Bool[Any, "*batch A"]) -> Int[Any, "*batch"]:
    """The original's rule as intended: the first allowed one of the best `CANDIDATES`.

    The best class stays where its logit is confident, and where none of the candidates is allowed.
    """
    xp = logits.__array_namespace__()
    candidates, open_to = _candidates(logits, allowed)
    # The first maximum of flags is the first that is set, and the first of all where none is.
    return xp.take_along_axis(candidates, open_to.argmax(axis=-1)[..., None], axis=-1)[..., 0]


def as_written(logits: Float[Any, "*batch A"], allowed: Bool[Any, "*batch A"]) -> Int[Any, "*batch"]:
    """The original's rule as its script has it: the best class, but -1, no answer, where it meets an allowed one and stops.

    The script keeps the class's rank instead of the class, and fails at the next statement. Where it runs to its end, no image
    has met an allowed class, so its answers are the plain best ones. A mask of all classes is not a mask.
    """
    candidates, open_to = _candidates(logits, allowed)
    stops = open_to.any(axis=-1) & ~allowed.all(axis=-1)
    return logits.__array_namespace__().where(stops, -1, candidates[..., 0])


def _candidates(logits: Any, allowed: Any) -> tuple[Any, Any]:
    """The best classes from the largest logit down, equal ones by their ids; and which are allowed: none where confident."""
    xp = logits.__array_namespace__()
    candidates = xp.argsort(-logits, axis=-1, stable=True)[..., :CANDIDATES]
    unsure = logits.max(axis=-1, keepdims=True) <= CONFIDENT
    return candidates, xp.take_along_axis(allowed, candidates, axis=-1) & unsure


READINGS = {"intended": allowed_unless_confident, "as_written": as_written}
"""What an allowed class among the candidates does -> rule."""


# --- votes ---------------------------------------------------------------------------------------------------------------


def majority(votes: Sequence[int]) -> int:
    """Returns the class with the most votes; among equals the one that was voted for first.

    Raises:
      DataError: there is no vote.
    """
    if not votes:
        raise DataError("A majority needs at least one vote.")
    return collections.Counter(votes).most_common(1)[0][0]  # equal counts keep the order of their first votes


def vote(own: Int[np.ndarray, "M N"]) -> Int[np.ndarray, " N"]:
    """Returns the ensemble's class for each image: the majority of its models' own; -1 where one of them has none.

    Args:
      own: each model's class by one of `READINGS`; the original's order is resnet50, resnet50HGap, resnest50, resnest50HGap,
        vgg16, vgg16HGap, vgg19, vgg19HGap, and decides ties.
    """
    return np.asarray([-1 if -1 in votes else majority(votes) for votes in own.T.tolist()])


def mean_vote(
    logits: Float[np.ndarray, "M *batch A"], allowed: Bool[np.ndarray, "*batch A"]
) -> Int[np.ndarray, "*batch"]:
    """Returns the class with the largest mean probability among those that the question allows.

    The original has no such vote, and its rule of confidence, one of raw logits, no meaning here.
    """
    return best_allowed(mean_probabilities(logits), allowed)


def mean_probabilities(logits: Float[np.ndarray, "M *batch A"]) -> Float[np.ndarray, "*batch A"]:
    """Returns the mean over the models of softmax(logits), in float64: an ensemble that the original does not have."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).mean(axis=0)
