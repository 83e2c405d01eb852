"""Pre-training data from the generated phantoms, so that it runs anywhere."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfds_builders.mtpt.release import ABDOMEN_CLASSES, fitting_questions, png
from tfds_builders.phantom_vqa.questions import make_questions
from tfds_builders.phantom_vqa.render import ORGANS, render
from tfds_builders.phantom_vqa.scenes import Scene, make_scene

FIRST_IDS = {"train": 1_000_000, "test": 2_000_000}
"""Where the search for a split's phantoms starts; phantom_vqa's own ids are below 4000."""

CLASSES = {
    "abdomen": ABDOMEN_CLASSES,
    "brain": ("normal", "hemorrhage", "mass", "cyst", "infarct", "calcification"),
    "chest": ("normal", "nodule", "consolidation", "effusion"),
}
"""Names of the labels, or of a mask's values, by body part."""

# Phantoms have fewer organs than the real set and the numbers of that one; all else is background.
_MASK_VALUES = np.array([ABDOMEN_CLASSES.index(name) if name in ABDOMEN_CLASSES else 0 for name in ORGANS], np.uint8)


def scenes(body_part: str, split: str, count: int) -> Iterator[Scene]:
    """Yields the first `count` scenes of a body part from the split's first id on."""
    image_id = FIRST_IDS[split]
    while count:
        scene = make_scene(image_id)
        image_id += 1
        if scene.view.body_part == body_part:
            count -= 1
            yield scene


def image_examples(body_part: str, split: str, count: int, first: int) -> Iterator[dict[str, Any]]:
    """Yields phantoms with their masks (abdomen) or labels, as the builder stores them, numbered from `first`."""
    for number, scene in enumerate(scenes(body_part, split, count), start=first):
        picture = render(scene)
        example: dict[str, Any] = {"question_id": number, "image_id": scene.image_id}
        example |= {"image_name": f"phantom_{scene.image_id}.png", "image": png(picture.image)}
        if body_part == "abdomen":
            example["mask"] = png(_MASK_VALUES[picture.organ_map])
        else:
            example["label"] = CLASSES[body_part].index(scene.abnormality)
        yield example


@functools.lru_cache(maxsize=4)
def _asked(first: int, count: int) -> tuple[tuple[str, str], ...]:
    return tuple(
        (question.text, make_scene(image_id).view.body_part)
        for image_id in range(first, first + count)
        for question in make_questions(image_id)
    )


def questions(body_part: str, first: int, count: int) -> list[tuple[str, int]]:
    """Returns (question, whether it fits the body part) of the questions that phantom_vqa asks about its images.

    Args:
      body_part: "abdomen", "brain" or "chest".
      first: phantom_vqa's id of the first image.
      count: Number of images.
    """
    return fitting_questions(_asked(first, count), body_part)
