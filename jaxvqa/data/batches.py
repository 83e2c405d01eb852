"""Reading batches: each process its part, ahead of the step, bounded in memory. Which examples: `jaxvqa.data.order`."""

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
        costs more than reading them). Worth it for heavy Python work such as decoding and augmenting images.
    """

    threads: int = 4
    prefetch_mib: float = 512
    workers: int = 0


DEFAULT_READERS = Readers()


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
        """The batch of a step.

        Raises:
          DataError: examples lack what a transform reads; names it, and what they have.
        """
        indices = self.order(step)
        local = np.split(indices, self.process_count)[self.process_index]
        first = self.process_index * len(local)
        # A row of -1 repeats the first example, so that every number in it is an ordinary one; its mask is 0.
        read = self.source.read([max(int(index), 0) for index in local])
        examples = [self._transform(raw | {"draw": (self.seed, step, first + i)}) for i, raw in enumerate(read)]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        return batch | {"mask": (local >= 0).astype(np.float32)}

    def _transform(self, example: Example) -> Example:
        for transform in self.transforms:
            try:
                example = transform(example)
            except KeyError as error:
                if error.args[0] in example:
                    raise
                there = ", ".join(sorted(example.keys() - {"draw"}))
                raise DataError(
                    f"Example {example.get('question_id')} has no {error.args[0]!r}, which this model reads; it has {there}. "
                    "Take parts of a data set that have it (config.data.examples, config.data.images), or a model that reads "
                    "what there is."
                ) from error
        return example


def read_ahead(load: LoadBatch, first_step: int, end_step: int, readers: Readers = DEFAULT_READERS) -> Iterator[Batch]:
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
