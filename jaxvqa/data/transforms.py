"""Example transforms: small frozen objects from one dict to another, the same ones in training and evaluation."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxvqa.data.answers import AnswerList
from jaxvqa.data.text import Vocabulary
from jaxvqa.errors import DataError

Example = dict[str, Any]
Transform = Callable[[Example], Example]


def random_of(example: Example, stream: str) -> np.random.Generator:
    """The random numbers of one kind for an example: its `draw` (`jaxvqa.data.batches.LoadBatch`), folded by a name."""
    return np.random.default_rng([*example["draw"], zlib.crc32(stream.encode())])


@dataclass(frozen=True)
class EncodeQuestion:
    """`question` str -> int32[T] word ids, cut or filled up to `max_tokens`."""

    vocabulary: Vocabulary = field(repr=False)
    max_tokens: int

    def __call__(self, example: Example) -> Example:
        return example | {"question": self.vocabulary.encode(example["question"], self.max_tokens)}


@dataclass(frozen=True)
class ScoreAnswers:
    """`answers` list of str -> `answer_scores` float32[A].

    `rule` is one of `jaxvqa.data.answers.ANSWER_RULES`.
    """

    answers: AnswerList = field(repr=False)
    rule: str

    def __call__(self, example: Example) -> Example:
        return example | {"answer_scores": self.answers.scores(example["answers"], self.rule)}


@dataclass(frozen=True)
class ClassOfAnswer:
    """`multiple_choice_answer` str -> `answer_class` int32, -1 where it is not one of the classes, or is missing."""

    classes: AnswerList = field(repr=False)

    def __call__(self, example: Example) -> Example:
        return example | {"answer_class": np.int32(self.classes.label(example.get("multiple_choice_answer", "")))}


@dataclass(frozen=True)
class PadRegions:
    """`features` [n, F] and `boxes` [n, 4] -> `regions` [R, F] and `boxes` [R, 4]: the first R, zero rows at the end."""

    max_regions: int

    def __call__(self, example: Example) -> Example:
        return example | {
            "regions": _pad(example["features"], self.max_regions),
            "boxes": _pad(example["boxes"], self.max_regions),
        }


@dataclass(frozen=True)
class BlindRegions:
    """One all-zero region instead of the image: what a question-only baseline sees."""

    width: int

    def __call__(self, example: Example) -> Example:
        return example | {"regions": np.zeros((1, self.width), np.float16), "boxes": np.zeros((1, 4), np.float32)}


@dataclass(frozen=True)
class RegionsAsImage:
    """`features` [n, F] and `boxes` [n, 4] -> `image` float16[R, 1, F + 4], the first R, zero rows at the end.

    What takes images takes regions so: a row for each, whose channels are its features and its box, x1, y1, x2, y2 in shares
    of the image's width and height. All zero if `blind`.

    Raises:
        DataError: it is not known where the regions lie.
    """

    max_regions: int
    width: int
    blind: bool = False

    def __call__(self, example: Example) -> Example:
        rows = np.zeros((0, self.width + 4), np.float16)
        if not self.blind:
            size = np.asarray([example["image_w"], example["image_h"]] * 2, np.float32)
            if not ((size > 0).all() and np.any(example["boxes"])):
                raise DataError(
                    f"Nothing says where the regions of image {example['image_id']} lie: its region file had no bbox, or no "
                    "image_w and image_h. This model reads boxes: build the data set from files with them, or take a part with "
                    "images (config.data.images)."
                )
            rows = np.concatenate(
                [example["features"], example["boxes"] / size], axis=1, dtype=np.float16, casting="same_kind"
            )
        return example | {"image": _pad(rows, self.max_regions)[:, None]}


@dataclass(frozen=True)
class BothImages:
    """`image` of an example and of its `second` image, each made by the same steps -> `image` [2, …].

    In training each image draws random numbers of its own.
    """

    steps: Sequence[Transform]

    def __call__(self, example: Example) -> Example:
        made = []
        for place, own in enumerate(({}, example["second"])):
            one = example | own | {"draw": (*example.get("draw", ()), place)}
            for step in self.steps:
                one = step(one)
            made.append(one["image"])
        return example | {"image": np.stack(made)}


def boxes_of(example: Mapping[str, Any], steps: Sequence[Transform]) -> np.ndarray:
    """The boxes of an example's regions, float32[n, 4] in pixels, after the steps that give it regions, if there are any."""
    found = dict(example)
    for step in steps:
        found = step(found)
    return np.asarray(found["boxes"], np.float32)


@dataclass(frozen=True)
class Label:
    """An entry -> its position in `values`, int32.

    Raises:
        DataError: it is not one of them.
    """

    key: str
    values: Sequence[Any]

    def __call__(self, example: Example) -> Example:
        value = example[self.key]
        value = value if isinstance(value, str) else int(value)
        if value not in self.values:
            raise DataError(
                f"Example {example['question_id']} has {self.key} = {value!r}; expected one of {list(self.values)}."
            )
        return example | {self.key: np.int32(self.values.index(value))}


@dataclass(frozen=True)
class Constant:
    """An entry of the same value in every example."""

    key: str
    value: Any

    def __call__(self, example: Example) -> Example:
        return example | {self.key: self.value}


@dataclass(frozen=True)
class Keep:
    """Keeps the named entries; `id` is the question's id."""

    keys: Sequence[str]

    def __call__(self, example: Example) -> Example:
        return {key: example[key] for key in self.keys} | {"id": np.int64(example["question_id"])}


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    if len(array) >= length:
        return array[:length]
    padded = np.zeros((length, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
