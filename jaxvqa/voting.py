"""How SYSU-HCP answers: classes allowed by the question, a rule of confidence, a vote of several models (spec section 6).

NumPy only. M models, A classes. Logits are raw: the original never takes a softmax here.
"""

import collections
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxvqa.errors import ConfigError, DataError
from jaxvqa.inputs import read_json

Masks = Mapping[str, Collection[int]]
"""Modality, as questions spell it -> the classes that it may show; in the order of the original's `modelmask.json`."""

CONFIDENT = 0.5
"""A raw logit above this is believed, whatever the question asks about."""

CANDIDATES = 20
"""How many of a model's best classes are looked through for an allowed one."""

READINGS = ("intended", "as_written")
"""What an allowed class among the candidates does: `intended`: it is the answer; `as_written`: the script stops there.

The original's script keeps the class's rank in place of the class, and fails at the next statement. Where it runs to its end,
no image has met an allowed class, so its answers are the plain best ones.
"""

VOTES = ("majority", "mean_probabilities")
"""How models answer together: see `vote` and `mean_vote`."""


def read_masks(path: str | Path, classes: int) -> dict[str, frozenset[int]]:
    """Reads the original's `modelmask.json`: {modality: [class ids]}, keeping its order.

    Args:
      path: the file.
      classes: A.

    Raises:
      DataError: the file is missing or of another form, or an id is not below A.
    """
    content = read_json(path, "the original's modelmask.json: {modality: [class ids]}", {str: [int]})
    masks = {name: frozenset(ids) for name, ids in content.items()}
    wrong = {name: sorted(i for i in ids if not 0 <= i < classes) for name, ids in masks.items()}
    faults = [f"{name}: {ids[:10]}" for name, ids in wrong.items() if ids]
    if faults:
        raise DataError(f"{path}: class ids that are not from 0 to {classes - 1}:\n  " + "\n  ".join(faults))
    return masks


def modalities_in(question: str, masks: Masks) -> list[str]:
    """Returns the modalities whose name is part of the question's text, in the masks' order, case-sensitive.

    Parts of words count: "fracture" holds "ct", "petrous" holds "pet"; "CT" holds neither.
    """
    return [name for name in masks if name in question]


def allowed_classes(question: str, masks: Masks) -> Collection[int]:
    """Returns the classes of the last modality found in the question; none when there is no modality."""
    found = modalities_in(question, masks)
    return masks[found[-1]] if found else ()


def first_allowed_rank(logits: Float[np.ndarray, " A"], allowed: Collection[int]) -> int | None:
    """Returns the rank, from 0, of the best allowed class, if the question's mask decides at all.

    None where the best class is confident, where all are allowed (no modality), and where none of the candidates is allowed.
    """
    if not allowed or logits.max() > CONFIDENT:
        return None
    return next((rank for rank, i in enumerate(_best(logits)[:CANDIDATES]) if int(i) in allowed), None)


def predict(logits: Float[np.ndarray, " A"], allowed: Collection[int], reading: str = "intended") -> int | None:
    """Returns one model's class for an image; None where, `as_written`, the original's script stops.

    Args:
      logits: the model's.
      allowed: see `allowed_classes`.
      reading: one of `READINGS`.

    Raises:
      ConfigError: the reading is not known.
    """
    if reading not in READINGS:
        raise ConfigError(f"The reading of the mask is {reading!r}; known are {', '.join(READINGS)}.")
    rank = first_allowed_rank(logits, allowed)
    if rank is not None and reading == "as_written":
        return None
    return int(_best(logits)[rank or 0])


def majority(votes: Sequence[int]) -> int:
    """Returns the class with the most votes; among equals the one that was voted for first.

    Raises:
      DataError: there is no vote.
    """
    if not votes:
        raise DataError("A majority needs at least one vote.")
    return collections.Counter(votes).most_common(1)[0][0]  # equal counts keep the order of their first votes


def vote(logits: Float[np.ndarray, "M A"], question: str, masks: Masks, reading: str = "intended") -> int | None:
    """Returns the ensemble's class for an image: each model's own, then the majority.

    None where, `as_written`, the original's script stops at one of the models.

    Args:
      logits: a row for each model; the original's order is resnet50, resnet50HGap, resnest50, resnest50HGap, vgg16,
        vgg16HGap, vgg19, vgg19HGap, and decides ties.
      question: the text; `allowed_classes`.
      masks: the modalities' classes; {} for a vote without masks.
      reading: one of `READINGS`.
    """
    allowed = allowed_classes(question, masks)
    classes = [predict(row, allowed, reading) for row in logits]
    decided = [i for i in classes if i is not None]
    return majority(decided) if len(decided) == len(classes) else None


def mean_vote(logits: Float[np.ndarray, "M A"], question: str, masks: Masks) -> int:
    """Returns the class with the largest mean probability among those that the question allows; arguments as of `vote`.

    The original has no such vote, and its rule of confidence, one of raw logits, no meaning here.
    """
    mean = mean_probabilities(logits)
    return max(sorted(allowed_classes(question, masks)) or range(len(mean)), key=mean.__getitem__)


def mean_probabilities(logits: Float[np.ndarray, "M *batch A"]) -> Float[np.ndarray, "*batch A"]:
    """Returns the mean over the models of softmax(logits), in float64: an ensemble that the original does not have."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).mean(axis=0)


def _best(logits: Float[np.ndarray, " A"]) -> np.ndarray:
    """Classes from the largest logit down; equal ones in the order of their ids."""
    return np.argsort(-logits, kind="stable")
