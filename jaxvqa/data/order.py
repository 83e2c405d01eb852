"""Which examples make up the batch of a step: seeded, resumable at any step, the same for any number of readers.

The position in the data is a pure function of the step. Step s belongs to epoch s // n with n = floor(size / batch
size); each epoch is one seeded permutation of the split, of which the incomplete last batch is dropped. So a run goes
on exactly where it stopped, with any number of reader threads, workers or processes, and nothing but the step is saved.
An epoch that a curriculum keeps to a part of the split is as long as any other: it visits that part several times.

Examples of one image may be kept together (`Together`), so that a model encodes it once for all of them.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import ml_collections
import numpy as np

from jaxvqa.data.data_set import DataSet, Split
from jaxvqa.errors import ConfigError, DataError

Parts = tuple[tuple[int, int], ...]
"""Positions of a split, each from a start to an end."""

Stage = tuple[int, Parts]
"""A first epoch, and the positions (start, end) of the split that epochs from then on draw from."""


@dataclass(frozen=True, eq=False)
class Together:
    """Keeps `count` examples of one image side by side in a batch, in an order that is drawn anew each epoch.

    An image with a number of examples that `count` does not divide has some of them twice.

    Attributes:
      images: int[N], the image of each position of the split.
      count: how many examples stand together.
    """

    images: np.ndarray
    count: int

    def permuted(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A permutation of positions, in groups of one image each."""
        groups: list[np.ndarray] = []
        shuffled = rng.permutation(members)
        shuffled = shuffled[np.argsort(self.images[shuffled], kind="stable")]
        ends = np.flatnonzero(np.diff(self.images[shuffled])) + 1
        for mine in np.split(shuffled, ends):
            groups.extend(np.resize(mine, (-(-len(mine) // self.count), self.count)))
        return np.concatenate([groups[i] for i in rng.permutation(len(groups))])


@functools.lru_cache(maxsize=4)
def epoch_order(
    size: int, seed: int, epoch: int, parts: Sequence[tuple[int, int]], together: Together | None = None
) -> np.ndarray:
    """The positions int64[size] that an epoch visits: a permutation of those in `parts`, and more of them until it is full."""
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    members = np.concatenate([np.arange(start, end) for start, end in parts])

    def once() -> np.ndarray:
        return together.permuted(members, rng) if together else rng.permutation(members)

    return np.concatenate([once() for _ in range(-(-size // len(members)))])[:size]


@dataclass(frozen=True)
class TrainOrder:
    """Which examples make up the batch of a step.

    Attributes:
      size: examples in an epoch: those in the split, unless epochs have parts of it in turn.
      batch_size: examples in the batch of all processes together.
      seed: decides the order.
      stages: in ascending order; before the first of them all of the split.
      together: which examples stand side by side; None: none.
      in_turn: the positions (start, end) that epochs draw from, in turn, instead of all of the split; none: all.
    """

    size: int
    batch_size: int
    seed: int
    stages: tuple[Stage, ...] = ()
    together: Together | None = None
    in_turn: tuple[Parts, ...] = ()

    def __post_init__(self) -> None:
        if self.size < self.batch_size:
            raise DataError(
                f"The training set has {self.size} examples, fewer than one batch of {self.batch_size}: "
                "lower config.batch_size or use more data."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the split."""
        return self.size // self.batch_size

    def __call__(self, step: int) -> np.ndarray:
        """Indices into the split, int64[B]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        whole = self.in_turn[epoch % len(self.in_turn)] if self.in_turn else ((0, self.size),)
        parts = next((parts for first, parts in reversed(self.stages) if epoch >= first), whole)
        return epoch_order(self.size, self.seed, epoch, parts, self.together)[start : start + self.batch_size]


@dataclass(frozen=True)
class EvalOrder:
    """Every example once, in the split's order; the last batch is filled up with -1."""

    size: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Batches that cover the split."""
        return -(-self.size // self.batch_size)

    def __call__(self, step: int) -> np.ndarray:
        """Indices into the split, int64[B]; -1 is padding."""
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.where(indices < self.size, indices, -1)


def train_order(config: ml_collections.ConfigDict, data: DataSet) -> TrainOrder:
    """The order of a run: `config.seed`, `batch_size`, `curriculum` and `config.data.examples_per_image` over `train_split`.

    Of the splits that `config.data.in_turn` names an epoch has one, and it is as long as the first epoch.

    Raises:
      ConfigError, DataError: the curriculum, the groups or the batches cannot be made of these examples.
    """
    split = data.split(config.data.train_split)
    stages, together = curriculum_stages(config, data), examples_together(config, split)
    in_turn = parts_in_turn(config, data)
    size = sum(end - start for start, end in in_turn[0]) if in_turn else len(split)
    return TrainOrder(size, config.batch_size, config.seed, stages, together, in_turn)


def _places(config: ml_collections.ConfigDict, data: DataSet) -> dict[str, tuple[int, int]]:
    """Where each split of `config.data.train_split` lies in it."""
    splits = config.data.train_split.split("+")
    ends = list(itertools.accumulate(len(data.split(split)) for split in splits))
    if config.data.limit:
        ends = [min(end, config.data.limit) for end in ends]
    return dict(zip(splits, itertools.pairwise([0, *ends]), strict=True))


def parts_in_turn(config: ml_collections.ConfigDict, data: DataSet) -> tuple[Parts, ...]:
    """What each epoch draws from, until the turn is over: one split of `config.data.in_turn`, and all others of `train_split`.

    Raises:
      ConfigError: a split is not trained with, or there is a curriculum too; lists all faults.
    """
    names = [name for name in config.data.get("in_turn", "").split("+") if name]
    if not names:
        return ()
    where = _places(config, data)
    faults = [
        f"{name!r} is not in config.data.train_split = {config.data.train_split!r}"
        for name in names
        if name not in where
    ]
    if config.curriculum:
        faults.append("config.curriculum says which splits epochs draw from, too; empty one of the two")
    if faults:
        raise ConfigError("config.data.in_turn:\n  " + "\n  ".join(faults))
    always = tuple(place for name, place in where.items() if name not in names)
    return tuple((*always, where[name]) for name in names)


def curriculum_stages(config: ml_collections.ConfigDict, data: DataSet) -> tuple[Stage, ...]:
    """Where the stages of `config.curriculum` lie in `config.data.train_split`.

    Args:
      config: the whole config. Rows of `curriculum` are (first epoch, splits joined by "+"); a split that is named twice is
        visited twice as often.
      data: the data set.

    Raises:
      ConfigError: epochs do not ascend, or a stage has no examples or splits that are not trained with; lists all faults.
    """
    if not config.curriculum:
        return ()
    where = _places(config, data)
    stages: list[Stage] = []
    faults: list[str] = []
    for first, names in config.curriculum:
        parts = tuple(where.get(name, (0, 0)) for name in names.split("+"))
        unknown = [name for name in names.split("+") if name not in where]
        faults += [f"{name!r} is not in config.data.train_split = {config.data.train_split!r}" for name in unknown]
        if not unknown and not any(end > start for start, end in parts):
            faults.append(f"{names!r} has no examples")
        if stages and first <= stages[-1][0]:
            faults.append(f"epoch {first} stands behind epoch {stages[-1][0]}")
        stages.append((first, parts))
    if faults:
        raise ConfigError("config.curriculum:\n  " + "\n  ".join(faults))
    return tuple(stages)


def examples_together(config: ml_collections.ConfigDict, split: Split) -> Together | None:
    """Which examples of a split stand together, as `config.data.examples_per_image` says; None for 1.

    Raises:
      ConfigError: batches or microbatches cannot be cut into such groups.
    """
    count = config.data.examples_per_image
    if count == 1:
        return None
    if count < 1 or config.batch_size % count or config.microbatches > 1:
        raise ConfigError(
            f"config.data.examples_per_image is {count}: config.batch_size has to be a multiple of it, and "
            f"config.microbatches 1, since a microbatch takes every n-th example; they are {config.batch_size} and "
            f"{config.microbatches}."
        )
    return Together(split.image_ids, count)
