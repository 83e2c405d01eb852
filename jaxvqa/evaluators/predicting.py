"""Running a predict function over a whole split, each example exactly once."""

from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxvqa import logs
from jaxvqa.data import pipeline
from jaxvqa.data.transforms import Transform
from jaxvqa.errors import ConfigError, DivergedError
from jaxvqa.sharding import batch_sharding, check_batch_size
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task


def predict_function(name: str, config: ml_collections.ConfigDict, task: Task, mesh: Mesh) -> Any:
    """The task's predict function that a row of `config.evals` names, jitted.

    Raises:
      ConfigError: the task has no such function, or the row's batch size does not fit the mesh.
    """
    check_batch_size(config.batch_size, 1, mesh, f"config.evals.{name}.batch_size")
    if config.predict not in task.predict_fns:
        raise ConfigError(
            f"config.evals.{name}.predict is {config.predict!r}; the task has {', '.join(task.predict_fns)}."
        )
    return jax.jit(task.predict_fns[config.predict])


def predict_all(
    predict: Any,
    state: TrainState,
    *,
    task: Task,
    source: pipeline.Source,
    batch_size: int,
    mesh: Mesh,
    readers: pipeline.Readers,
    transforms: Sequence[Transform] | None = None,
    what: str = "predicting",
) -> dict[str, np.ndarray]:
    """Returns what `predict` gives for every example of the source, in its order; the same in every process.

    Args:
      predict: one of the task's predict functions, jitted.
      state: whose `eval_variables` to predict with.
      task: whose transforms make the batches, and which entries of them it reads.
      source: the examples.
      batch_size: examples a step over all devices.
      mesh: the devices.
      readers: how batches are read ahead.
      transforms: in place of the task's own.
      what: what is done, as the progress shown calls it.

    Raises:
      DivergedError: an output is a NaN, though the state is finite; names the first examples.
    """
    order = pipeline.EvalOrder(len(source), batch_size)
    steps = task.transforms(train=False) if transforms is None else transforms
    load = pipeline.LoadBatch(source, order, steps, jax.process_index(), jax.process_count())
    host = pipeline.batches(load, 0, order.steps, readers)
    batches = pipeline.to_device(host, batch_sharding(mesh), tuple(task.batch_keys))
    kept = []
    with logs.Progress(what, order.steps) as progress:
        for step, (batch, _) in enumerate(progress.each(batches)):
            predicted = predict(*state.eval_variables, batch)
            real = order(step) >= 0
            gathered = (
                multihost_utils.process_allgather(predicted, tiled=True)
                if jax.process_count() > 1
                else jax.device_get(predicted)
            )
            kept.append({key: np.asarray(value)[real] for key, value in gathered.items()})
    outputs = {key: np.concatenate([k[key] for k in kept]) for key in kept[0]}
    for key, values in outputs.items():
        if (
            np.issubdtype(values.dtype, np.floating)
            and (bad := np.isnan(values.reshape(len(values), -1)).any(axis=1)).any()
        ):
            raise DivergedError(
                f"The model gives no number (NaN) as {key!r} for {bad.sum()} of {len(bad)} examples, the first at the places "
                f"{np.flatnonzero(bad)[:5].tolist()} of their split. Look at the data there; with config.dtype = 'bfloat16', "
                "try 'float32'."
            )
    return outputs
