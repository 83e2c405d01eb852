"""Few-shot prompting: which examples of another split stand before a prompt (docs/originals/flamingo.md, sections 18 and 19).

    <image> question: … <EOQ> answer: … <EOC> <image> question: … <EOQ> answer: … <EOC> <image> question: … <EOQ> answer:
    └──────────── an example ───────────────┘ └─────── the example nearest to it ─────┘ └──── what is asked ────────────┘

Examples are drawn by a seed, or are those whose images are most similar to the one asked about (RICES: Z. Yang and others,
"An Empirical Study of GPT-3 for Few-Shot Knowledge-Based VQA", AAAI 2022).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from jaxvqa.data.batches import Source
from jaxvqa.data.transforms import Example, Transform
from jaxvqa.data.views import Images
from jaxvqa.errors import ConfigError

WAYS = ("seed", "image")
"""`config.data.shots_by`: how examples are chosen."""

_CHUNK = 256  # images that are compared with all others at a time


@runtime_checkable
class Questions(Source, Protocol):
    """A source of questions, or captions, about images (`jaxvqa.data.Split`)."""

    @property
    def images(self) -> Images:
        """The images, each once."""


@dataclass(frozen=True)
class Shots:
    """What a task wants before its prompts.

    Attributes:
      count: number of examples k, at least 1.
      by: one of `WAYS`.
      split: where the examples are from.
      seed: of the draws.
      transforms: the task's transforms for prompts that have such examples.
    """

    count: int
    by: str
    split: str
    seed: int
    transforms: Callable[["Support"], Sequence[Transform]]


@dataclass(frozen=True)
class Support:
    """Chooses examples: `count` images, never the one asked about, and of each a question by (seed, question asked).

    Attributes:
      source: the examples.
      shots: how many, and the seed.
      images: theirs.
      similar: id of an image asked about -> positions in `images`, see `most_similar`; without, images are drawn too.
    """

    source: Questions = field(repr=False)
    shots: Shots
    images: Images = field(repr=False)
    similar: Mapping[int, Sequence[int]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, source: Questions, shots: Shots) -> "Support":
        """Those of a source.

        Raises:
          ConfigError: it has too few images.
        """
        images = source.images
        if len(images) <= shots.count:
            raise ConfigError(
                f"config.data.shots is {shots.count}, which takes {shots.count + 1} images, so that none is the one asked "
                f"about; config.data.shots_split = {shots.split!r} has {len(images)}. Lower it, or take a larger split."
            )
        return cls(source, shots, images)

    def __call__(self, asked: Example) -> list[Example]:
        """The examples for a question, with their images, in the order of the text."""
        rng = np.random.default_rng([self.shots.seed, int(asked["question_id"])])
        image = int(asked["image_id"])
        if self.similar is None:
            others = np.flatnonzero(self.images.ids != image)
            chosen: Sequence[int] = rng.choice(others, self.shots.count, replace=False).tolist()
        else:
            chosen = self.similar[image]
        return self.source.read([int(rng.choice(self.images.examples[i])) for i in chosen])


def most_similar(
    asked: Images,
    asked_vectors: Float[np.ndarray, "Q E"],
    images: Images,
    vectors: Float[np.ndarray, "N E"],
    count: int,
) -> dict[int, tuple[int, ...]]:
    """The `count` images nearest to each one by the cosine of their vectors, the most similar last; never itself.

    Returns:
      Id of an asked image -> positions in `images`, which has more than `count`.
    """
    asked_vectors, vectors = _unit(asked_vectors), _unit(vectors)
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(asked), _CHUNK):
        ids = asked.ids[start : start + _CHUNK]
        cosine = asked_vectors[start : start + _CHUNK] @ vectors.T
        cosine[ids[:, None] == images.ids[None]] = -np.inf
        best = np.argpartition(cosine, -count, axis=1)[:, -count:]
        order = np.argsort(np.take_along_axis(cosine, best, axis=1), axis=1)
        rows: Int[np.ndarray, "Q k"] = np.take_along_axis(best, order, axis=1)
        found.update((int(i), tuple(row.tolist())) for i, row in zip(ids, rows, strict=True))
    return found


def _unit(vectors: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N E"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class ShowExamples:
    """Adds `shots`, the records of k examples, and turns `image` [S, S, 3] into [k + 1, S, S, 3], in the text's order.

    Attributes:
      support: chooses them.
      see: the transforms that make an example's `image`.
    """

    support: Support = field(repr=False)
    see: Sequence[Transform]

    def __call__(self, example: Example) -> Example:
        """Adds the examples and their images."""
        shots = self.support(example)
        images = [self._image(shot | {"draw": (*example["draw"], i)}) for i, shot in enumerate(shots)]
        return example | {"shots": shots, "image": np.stack([*images, example["image"]])}

    def _image(self, example: Example) -> np.ndarray:
        for transform in self.see:
            example = transform(example)
        return example["image"]
