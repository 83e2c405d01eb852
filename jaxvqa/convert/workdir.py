"""Work directories from converted parameters, and parameters from work directories."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from jaxvqa import checkpoints, fields, optim
from jaxvqa.convert.adam import AdamState
from jaxvqa.errors import CheckpointError
from jaxvqa.runs import Run
from jaxvqa.state import TrainState, not_finite, start_ema
from jaxvqa.tasks import task_class

SETTINGS = "optimizer_settings"
"""What is noted of an optimiser that came with a file: its parameter groups, without `params`."""


@dataclasses.dataclass
class Contents:
    """What a work directory's newest checkpoint holds.

    Attributes:
      config: its config.
      assets: vocabulary, answer list and the like.
      meta: the position in the data, the versions that wrote it, and what the converter noted.
      params: the parameters that training goes on from, not their moving average; the optimiser's state is theirs.
      collections: the other collections, such as `batch_stats`.
      adam: the optimiser's state, or None when it is not an Adam or Adamax, or has not made a step.
    """

    config: ml_collections.ConfigDict
    assets: dict[str, Any]
    meta: dict[str, Any]
    params: Any
    collections: dict[str, Any]
    adam: AdamState | None


def write(
    folder: Path,
    config: ml_collections.ConfigDict,
    variables: Mapping[str, Any],
    adam: AdamState | None,
    assets: Mapping[str, Any],
    notes: Mapping[str, Any],
    command: str = "",
) -> int:
    """Writes a work directory that evaluates, predicts, and serves as `config.init_from.NAME.workdir`.

    Args:
      folder: where; must hold no checkpoints yet.
      config: the config to run it with.
      variables: `params` and the other collections.
      adam: the optimiser's state, kept when the config's optimiser is an Adam or Adamax.
      assets: what the checkpoint needs to read questions and write answers.
      notes: JSON values to keep beside the config.
      command: what a user typed to get this, without --to.

    Returns:
      The step under which it was saved: the optimiser's, 0 without one.
    """
    fields.final(config)
    if (folder / checkpoints.FOLDER).exists():
        raise CheckpointError(f"{folder} already holds checkpoints; give --to= another folder, or remove it.")
    collections = jax.tree.map(jnp.asarray, dict(variables))
    params = collections.pop("params")
    opt_state = optim.make_optimizer(config.optim, params).init(params)
    if adam is not None:
        mu, nu = jax.tree.map(jnp.asarray, (adam.mu, adam.nu))
        opt_state = _replace_adam(opt_state, optax.ScaleByAdamState(jnp.asarray(adam.step, jnp.int32), mu, nu))
    step = 0 if adam is None else adam.step
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        collections=collections,
        opt_state=opt_state,
        ema=start_ema(params, collections, task_class(config.task).kinds) if config.optim.ema else None,
    )
    if faults := not_finite(state):
        raise CheckpointError(f"The converted weights hold numbers that are not finite: {', '.join(faults[:5])} …")
    run = Run.start(folder, config, command)
    position = {"examples": config.data.examples, "split": config.data.train_split, "size": None}
    with contextlib.closing(checkpoints.Checkpoints(folder)) as saved:
        settings = {} if adam is None else {SETTINGS: [adam.settings, *adam.later_settings]}
        run.save(saved, state, assets, position, converted={**notes, **settings})
    return step


def read(folder: Path) -> Contents:
    """Reads the newest checkpoint of a work directory."""
    run = Run.open(folder)
    config, state = run.config, run.training_state()
    found, adam = _find_adam(state.opt_state), None
    if found is not None and int(found.count):
        noted = (run.meta.get("converted") or {}).get(SETTINGS)
        first, *later = map(_as_noted, noted) if noted else [_settings(config.optim)]
        adam = AdamState(int(found.count), found.mu, found.nu, first, later)
    return Contents(config, run.assets, run.meta, state.params, state.collections, adam)


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The parameter group of PyTorch's that `config.optim` describes; it has one share of decay."""
    settings = {"lr": config.lr, "betas": (config.b1, config.b2), "eps": config.eps}
    shares = {share for _, share in config.decay} or {0}
    if len(shares) == 1 and not config.coupled_decay:
        settings["weight_decay"] = shares.pop()
    return settings | ({"decoupled_weight_decay": True} if settings.get("weight_decay") else {})


def _as_noted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were before JSON, which has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def _find_adam(opt_state: Any) -> Any:
    return next((n for n in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(n)), None)


def _replace_adam(opt_state: Any, adam: optax.ScaleByAdamState) -> Any:
    return jax.tree.map(lambda n: adam if _is_adam(n) else n, opt_state, is_leaf=_is_adam)
