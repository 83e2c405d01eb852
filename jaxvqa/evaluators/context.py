"""What every evaluation works with, and running a predict function over a whole split, each example exactly once."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxvqa import logs
from jaxvqa.data.batches import DEFAULT_READERS, LoadBatch, Readers, Source, read_ahead, to_device
from jaxvqa.data.data_set import Split
from jaxvqa.data.order import EvalOrder
from jaxvqa.data.transforms import Transform
from jaxvqa.errors import ConfigError, DivergedError, choose, os_errors
from jaxvqa.logs import write_whole
from jaxvqa.sharding import batch_sharding, check_batch_size
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task
from jaxvqa.tasks.predictions import Predict
from jaxvqa.types import Arrays, Config

Row = dict[str, Any]
"""One line of a predictions file."""


@dataclass(frozen=True, eq=False)
class Context:
    """What an evaluation works with.

    Attributes:
      name: the evaluation's name in `config.evals`.
      config: its row there: `split`, `batch_size`, `predict`, and what its type takes besides.
      task: whose predict functions and transforms it runs.
      open_source: opens a split.
      mesh: the devices.
      workdir: where it writes `predictions/`.
      readers: how batches are read ahead.

    Raises:
      ConfigError: the task has no predict function of that name, or the row's batch size does not fit the mesh.
    """

    name: str
    config: Config
    task: Task
    open_source: Callable[[str], Split]
    mesh: Mesh
    workdir: Path
    readers: Readers = DEFAULT_READERS

    def __post_init__(self) -> None:
        check_batch_size(self.config.batch_size, 1, self.mesh, f"config.evals.{self.name}.batch_size")
        known, wanted = self.task.predictions, self.config.predict
        if wanted not in known:
            raise ConfigError(f"config.evals.{self.name}.predict is {wanted!r}{choose(wanted, known)}")

    @property
    def predict(self) -> Predict:
        """The predict function that the row names."""
        return self.task.predictions[self.config.predict]

    @functools.cached_property
    def source(self) -> Split:
        """The examples to evaluate."""
        return self.open_source(self.config.split)

    @functools.cached_property
    def images(self) -> list[int]:
        """The image of each example: what intervals resample."""
        return self.source.image_ids.tolist()

    def outputs(
        self,
        state: TrainState,
        *,
        predict: Predict | None = None,
        source: Source | None = None,
        transforms: Sequence[Transform] | None = None,
        names: Sequence[str] = (),
        what: str = "",
    ) -> dict[str, np.ndarray]:
        """Runs the row's predict function over its split with the task's transforms, or what is given instead of these.

        Arguments and errors as of `predict_all`.
        """
        return predict_all(
            self.predict if predict is None else predict,
            state,
            self.source if source is None else source,
            self.task.transforms(train=False) if transforms is None else transforms,
            batch_size=self.config.batch_size,
            mesh=self.mesh,
            readers=self.readers,
            names=names,
            what=what or f"evaluating {self.name}",
        )

    def write(self, step: int, rows: Iterable[Row], others: Mapping[str, str] | None = None) -> None:
        """Writes `predictions/NAME_STEP.jsonl`, and files whose names go on with `_` and the keys of `others`; in process 0."""
        if jax.process_index() != 0:
            return
        folder = self.workdir / "predictions"
        with os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{self.name}_{step}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for ending, text in (others or {}).items():
                write_whole(folder / f"{self.name}_{step}_{ending}", text)


def predict_all(
    predict: Predict,
    state: TrainState,
    source: Source,
    transforms: Sequence[Transform],
    *,
    batch_size: int,
    mesh: Mesh,
    readers: Readers = DEFAULT_READERS,
    names: Sequence[str] = (),
    what: str = "predicting",
) -> dict[str, np.ndarray]:
    """Returns what `predict` gives for every example of the source, in its order; the same in every process.

    Args:
      predict: one of a task's predict functions.
      state: whose `eval_variables` to predict with.
      source: the examples.
      transforms: make examples of a batch of them.
      batch_size: examples a step over all devices.
      mesh: the devices.
      readers: how batches are read ahead.
      names: the outputs that are wanted; none for all.
      what: what is done, as the progress shown calls it.

    Raises:
      DivergedError: an output is a NaN, though the state is finite; names the first examples.
    """
    kept = []
    with logs.Progress(what, EvalOrder(len(source), batch_size).steps) as progress:
        batches = predicted(predict, state, source, transforms, batch_size=batch_size, mesh=mesh, readers=readers)
        for places, found in progress.each(batches):
            gathered = on_host({name: found[name] for name in names or found})
            kept.append({name: value[places >= 0] for name, value in gathered.items()})
    outputs = {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}
    check_numbers(outputs)
    return outputs


def predicted(
    predict: Predict,
    state: TrainState,
    source: Source,
    transforms: Sequence[Transform],
    *,
    batch_size: int,
    mesh: Mesh,
    readers: Readers = DEFAULT_READERS,
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields the places int64[B] of each batch's examples, -1 for padding, and what `predict` gives, still on the devices.

    Arguments as of `predict_all`.
    """
    order = EvalOrder(len(source), batch_size)
    load = LoadBatch(source, order, transforms, jax.process_index(), jax.process_count())
    batches = to_device(read_ahead(load, 0, order.steps, readers), batch_sharding(mesh), predict.keys)
    for step, (batch, _) in enumerate(batches):
        yield order(step), predict.jitted(*state.eval_variables, batch)


def on_host(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays of all devices as NumPy's, whole in every process."""
    if jax.process_count() > 1:
        arrays = multihost_utils.process_allgather(arrays, tiled=True)
    return {name: np.asarray(value) for name, value in jax.device_get(arrays).items()}


def check_numbers(outputs: Mapping[str, np.ndarray], of: str = "examples", where: str = "of their split") -> None:
    """Checks what a model gives.

    Args:
      outputs: arrays by name, one row an example.
      of, where: what the rows are, and where their places are counted, in words.

    Raises:
      DivergedError: a number is a NaN; names the first rows.
    """
    for name, values in outputs.items():
        if np.issubdtype(values.dtype, np.floating) and (bad := np.isnan(values.reshape(len(values), -1)).any(1)).any():
            raise DivergedError(
                f"The model gives no number (NaN) as {name!r} for {bad.sum()} of {len(bad)} {of}, the first at the places "
                f"{np.flatnonzero(bad)[:5].tolist()} {where}. Look at the data there; with config.dtype = 'bfloat16', "
                "try 'float32'."
            )
