"""Evaluation: of the checkpoint of a run, and what a training evaluates with."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from jaxvqa import checkpoints, configs, fields, sharding
from jaxvqa import state as states
from jaxvqa.data.batches import Readers
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import CheckpointError, ConfigError
from jaxvqa.evaluators import WITHOUT_PREDICTIONS, Evaluator, evaluator
from jaxvqa.evaluators.context import Context
from jaxvqa.logs import log
from jaxvqa.metrics.score import Score, as_row
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task, task_with_assets


def evaluate(config: ml_collections.ConfigDict, workdir: Path, split: str = "") -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir`: all of `config.evals`, or just `split` under its own name.

    Returns:
      All values by name; predictions are written as during training.
    """
    config = fields.final(config)
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    assets, _ = saved.read_json()
    task = task_with_assets(config, assets)
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        log.info("restoring the checkpoint of step %s …", saved.latest_step())
        state = restore_for_prediction(saved, config, task, mesh)
        results: dict[str, float] = {}
        for each in make_evaluators(for_split(config, split), task, DataSet(config.data), mesh, workdir).values():
            results |= as_row(each.run(state))
    saved.close()
    return results


def for_split(config: ml_collections.ConfigDict, split: str) -> ml_collections.ConfigDict:
    """The config with one evaluation, of `split` and named so; as it is where `split` is empty.

    It is like the config's own of that name where that is of the split, else like the main one.

    Raises:
      ConfigError: there is no main evaluation, or it writes no predictions.
    """
    if not split:
        return config
    name = split if split in config.evals and config.evals[split].split == split else configs.main_evaluation(config)
    row = config.evals[name]
    if row.type in WITHOUT_PREDICTIONS:
        raise ConfigError(
            f"config.evals.{name}, by which {split!r} would be predicted, is of the type {row.type!r}, which writes no "
            "predictions. Name one that does with --config.main_eval=NAME; there is "
            + (", ".join(n for n, r in config.evals.items() if r.type not in WITHOUT_PREDICTIONS) or "none")
            + "."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.main_eval = split
        config.evals = ml_collections.ConfigDict({split: row.to_dict() | {"split": split}})
    return config


def restore_for_prediction(
    saved: checkpoints.Checkpoints, config: ml_collections.ConfigDict, task: Task, mesh: Mesh
) -> TrainState:
    """Restores what predictions need of the newest checkpoint: parameters, other collections, averages; no optimiser."""
    step = saved.latest_step()
    if step is None:
        raise CheckpointError(f"{saved.folder} holds no complete checkpoint to predict from.")
    with_ema = saved.model_shapes(step).get("ema") is not None
    shapes = jax.eval_shape(states.create(task.init, optax.identity(), task.kinds, seed=config.seed, with_ema=with_ema))
    placed = sharding.state_shardings(config.sharding, shapes, mesh, task.kinds)
    shapes = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    model = saved.restore_model(checkpoints.model_item(shapes), step)
    return TrainState(step=jnp.asarray(step, jnp.int32), opt_state=optax.EmptyState(), **model)


def make_evaluators(
    config: ml_collections.ConfigDict, task: Task, data: DataSet, mesh: Mesh, workdir: Path
) -> dict[str, Evaluator]:
    """The evaluators of `config.evals`, by name."""
    readers = Readers(**config.data.readers)
    return {
        name: evaluator(row.type)(Context(name, row, task, data.split, mesh, workdir, readers))
        for name, row in config.evals.items()
    }


def headline(name: str, values: Mapping[str, float]) -> str:
    """One line about an evaluation: the first of its values."""
    if not values:
        return f"{name}: predictions written"
    first = next(iter(values))
    measure = first.rpartition("/")[2]
    score = Score.of_row(values, first)
    assert score
    if score.low is None:  # a loss, which is not a share
        return f"{name}: {measure} {score.value:.4g}"
    return f"{name}: {measure} {score.value:.2f} % (95 % interval {score.low:.2f} to {score.high:.2f})"
