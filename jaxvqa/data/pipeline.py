"""Batches from a source: seeded order, sharded by process, resumable at any step, bounded in memory.

The position in the data is a pure function of the step. Step s belongs to epoch s // n with n = floor(size / batch
size); each epoch is one seeded permutation of the source, of which the incomplete last batch is dropped. So a run goes
on exactly where it stopped, with any number of reader threads, workers or processes, and nothing but the step is saved.
An epoch that a curriculum keeps to a part of the source is as long as any other: it visits that part several times.

Questions about one picture may be kept together (`Together`), so that a model looks at it once for all of them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxvqa.data.transforms import Example, Transform
from jaxvqa.errors import DataError

Batch = dict[str, np.ndarray]

Stage = tuple[int, tuple[tuple[int, int], ...]]
"""A first epoch, and the positions (start, end) of the source that epochs from then on draw from."""


@runtime_checkable
class Source(Protocol):
    """Random access to raw examples."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Example]:
        """The examples at these positions."""


@dataclass(frozen=True)
class Readers:
    """How batches are read ahead.

    Attributes:
      threads: batches read at the same time, by threads.
      prefetch_mib: an upper bound for the batches held ready, in MiB.
      workers: worker processes; 0 for threads alone, which is faster for arrays (moving batches between processes
        costs more than reading them). Worth it for heavy Python work such as decoding and augmenting pictures.
    """

    threads: int = 4
    prefetch_mib: float = 512
    workers: int = 0


DEFAULT_READERS = Readers()


@dataclass(frozen=True, eq=False)
class Together:
    """Keeps `count` examples of one picture side by side in a batch, in an order that is drawn anew each epoch.

    A picture with a number of examples that `count` does not divide has some of them twice.

    Attributes:
      pictures: int[N], the picture of each position of the source.
      count: how many examples stand together.
    """

    pictures: np.ndarray
    count: int

    def permuted(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A permutation of positions, in groups of one picture each."""
        groups: list[np.ndarray] = []
        shuffled = rng.permutation(members)
        shuffled = shuffled[np.argsort(self.pictures[shuffled], kind="stable")]
        ends = np.flatnonzero(np.diff(self.pictures[shuffled])) + 1
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
      size: examples in the source.
      batch_size: examples in the batch of all processes together.
      seed: decides the order.
      stages: in ascending order; before the first of them all of the source.
      together: which examples stand side by side; None: none.
    """

    size: int
    batch_size: int
    seed: int
    stages: tuple[Stage, ...] = ()
    together: Together | None = None

    def __post_init__(self) -> None:
        if self.size < self.batch_size:
            raise DataError(
                f"The training set has {self.size} examples, fewer than one batch of {self.batch_size}: "
                "lower config.batch_size or use more data."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the source."""
        return self.size // self.batch_size

    def __call__(self, step: int) -> np.ndarray:
        """Indices into the source, int64[B]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        parts = next((parts for first, parts in reversed(self.stages) if epoch >= first), ((0, self.size),))
        return epoch_order(self.size, self.seed, epoch, parts, self.together)[start : start + self.batch_size]


@dataclass(frozen=True)
class EvalOrder:
    """Every example once, in the source's order; the last batch is filled up with -1."""

    size: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Batches that cover the source."""
        return -(-self.size // self.batch_size)

    def __call__(self, step: int) -> np.ndarray:
        """Indices into the source, int64[B]; -1 is padding."""
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.where(indices < self.size, indices, -1)


@dataclass(frozen=True)
class LoadBatch:
    """Reads this process's part of a step's batch: examples through the transforms, stacked, with `mask` and `id`.

    Transforms find `draw` in an example, (seed, step, place in the whole batch): all that their randomness may depend on, so
    that a step's batch is the same however the run came there, and on any number of processes.
    """

    source: Source
    order: Callable[[int], np.ndarray]
    transforms: Sequence[Transform]
    process_index: int
    process_count: int
    seed: int = 0

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        indices = self.order(step)
        mine = np.split(indices, self.process_count)[self.process_index]
        first = self.process_index * len(mine)
        # A row of -1 repeats the first example, so that every number in it is an ordinary one; its mask is 0.
        read = self.source.read([max(int(index), 0) for index in mine])
        examples = [self._transform(raw | {"draw": (self.seed, step, first + i)}) for i, raw in enumerate(read)]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        return batch | {"mask": (mine >= 0).astype(np.float32)}

    def _transform(self, example: Example) -> Example:
        for transform in self.transforms:
            example = transform(example)
        return example


def batches(load: LoadBatch, first_step: int, end_step: int, readers: Readers = DEFAULT_READERS) -> Iterator[Batch]:
    """Yields the batches of steps first_step … end_step - 1, read ahead by grain."""
    if first_step >= end_step:
        return
    first = load(first_step)
    yield first
    if first_step + 1 == end_step:
        return
    nbytes = sum(array.nbytes for array in first.values())
    ahead = int(np.clip(readers.prefetch_mib * 2**20 // max(nbytes, 1), 1, 64))
    # Threads read a whole batch each, so that a step's batch never depends on how many there are.
    dataset = grain.MapDataset.range(first_step + 1, end_step).map(load)
    rest = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=min(readers.threads, ahead), prefetch_buffer_size=ahead)
    )
    if readers.workers:
        _mark_flags_as_parsed()
        rest = rest.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=readers.workers, per_worker_buffer_size=max(ahead // readers.workers, 1)
            )
        )
    iterator = iter(rest)
    try:
        yield from iterator
    finally:
        close = getattr(iterator, "close", None)
        if close:
            close()


def _mark_flags_as_parsed() -> None:
    """grain's worker processes read absl flags, which only a program started through absl has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def to_device(
    host_batches: Iterator[Batch], sharding: NamedSharding, keys: Sequence[str], ahead: int = 2
) -> Iterator[tuple[Mapping[str, jax.Array], Batch]]:
    """Puts each batch's `keys` on the devices, `ahead` batches early, and yields (device batch, host batch).

    Each process gives its own part of the batch; the device arrays are global.
    """

    def put(batch: Batch) -> tuple[dict[str, jax.Array], Batch]:
        return {key: jax.make_array_from_process_local_data(sharding, batch[key]) for key in keys}, batch

    ready: list[Any] = [put(batch) for batch in itertools.islice(host_batches, ahead)]
    while ready:
        yield ready.pop(0)
        ready += [put(batch) for batch in itertools.islice(host_batches, 1)]
