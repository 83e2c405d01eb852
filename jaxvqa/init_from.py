"""What `config.init_from` takes from other runs: parameters and other collections of their newest checkpoints, by name."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxvqa import paths
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.logs import log
from jaxvqa.models.towers.vit import resized_positions
from jaxvqa.runs import Run
from jaxvqa.state import Kinds, TrainState, start_ema
from jaxvqa.types import Config

LEADING_ROWS = "leading rows"
"""In a table: take the leaf of the same path, which may have fewer rows."""


OTHER_GRID = "another grid"
"""In a table: take the leaf of the same path, position embeddings that may be of images of another size."""

CHANGES = (LEADING_ROWS, OTHER_GRID)


def started(
    config: Config, state: TrainState, mesh: Mesh, kinds: Kinds, starts: Collection[str] = ()
) -> tuple[TrainState, list[str]]:
    """A fresh state with what `config.init_from` takes from other runs; says what should come from one, and does not.

    Args:
      config: `config.init_from`.
      state: the fresh state.
      mesh: the devices.
      kinds: the kind of each collection.
      starts: paths of parameters that begin with what a file says, such as word vectors.

    Returns:
      The state, and which parameters are random numbers in it (`paths.tops`): neither `starts` nor taken from a run that had
      read or trained them.

    Raises:
      CheckpointError: another run has no checkpoint, or one that does not fit.
    """
    every = paths.flatten(state.params)
    fresh = set(every) - set(starts)
    for name, row in config.items():
        if row.workdir:
            run = Run.open(row.workdir)
            state = take(name, row.workdir, run.variables(mesh), state, row.table, kinds)
            there = {path: other for path, (other, _) in _sources(name, row.table, state).items()}
            fresh -= {path for path, other in there.items() if not paths.under(run.untrained, [other])}
            log.info("init_from.%s: parameters taken from %s", name, row.workdir)
    for name, without in missing_starts(config.to_dict()).items():
        log.warning("init_from.%s is not given: %s", name, without)
    return state, paths.tops(fresh, every)


def take(
    name: str, workdir: str, theirs: Mapping[str, Any], state: TrainState, table: paths.Table, kinds: Kinds
) -> TrainState:
    """Takes parameters and other collections (batch statistics) from another run's newest checkpoint, by name.

    Args:
      name: the row of `config.init_from`, for messages.
      workdir: the other run's folder, for messages.
      theirs: `params` and the other collections of that run, with its moving averages where it keeps them.
      state: this run's freshly initialised state.
      table: the row's `table`, rows of (regex over this model's path, what): True takes the leaf of the same path; False
        keeps the fresh one; `LEADING_ROWS` takes the leaf of the same path, which may have fewer rows, and keeps the fresh
        ones behind them, as for a vocabulary that has grown; `OTHER_GRID` resizes position embeddings; another text
        is the other path, with regex groups as in `re.sub`; a pair is another path and one of `CHANGES`. A path is the
        same in every collection, as in "backbone/stem/norm/scale" and "backbone/stem/norm/mean".
      kinds: the kind of each collection.

    Returns:
      The state with what was taken over, its moving averages made equal to it. What the other run does not hold
      of a mirror is copied from the parameter at its path.

    Raises:
      CheckpointError: lists every leaf that the other checkpoint lacks or has in another shape.
    """
    source = {collection: paths.flatten(tree) for collection, tree in theirs.items()}
    fresh = {"params": state.params, **state.collections}
    sources = _sources(name, table, state)
    faults = []

    def take(collection: str, path: str, leaf: jax.Array) -> jax.Array:
        if path not in sources:
            return leaf
        there, how = sources[path]
        found = source.get(collection, {}).get(there)
        if how == LEADING_ROWS and found is not None and len(found) < len(leaf):
            found = jnp.concatenate([found.astype(leaf.dtype), leaf[len(found) :]])
        if how == OTHER_GRID and found is not None and found.shape != leaf.shape:
            found = resized_positions(found, len(leaf))
        if found is None and kinds.get(collection) == "mirror":
            return jnp.copy(taken["params"][path])
        if found is None:
            hint = nearest(there, source.get(collection, {}))
            faults.append(f"missing there: {there} of {collection} (for {path}).{hint}")
        elif found.shape != leaf.shape:
            faults.append(f"shape: {there} is {found.shape} there, {path} is {leaf.shape} here")
        else:
            # A copy: two parameters may start from one, and a step donates each.
            return jax.device_put(jnp.array(found, leaf.dtype, copy=True), leaf.sharding)
        return leaf

    taken: dict[str, dict[str, jax.Array]] = {}  # the parameters first, which mirrors are copied from
    for collection, tree in fresh.items():
        taken[collection] = {path: take(collection, path, leaf) for path, leaf in paths.flatten(tree).items()}
    if faults:
        raise CheckpointError(
            f"config.init_from.{name}: the checkpoint in {workdir} does not fit:\n  "
            + "\n  ".join(faults)
            + f"\nExcuse a parameter with a row (regex, False) in config.init_from.{name}.table."
        )
    variables = {
        name: jax.tree.unflatten(jax.tree.structure(fresh[name]), leaves.values()) for name, leaves in taken.items()
    }
    params = variables.pop("params")
    ema = None if state.ema is None else start_ema(params, variables, kinds)
    return dataclasses.replace(state, params=params, collections=variables, ema=ema)


def _sources(name: str, table: paths.Table, state: TrainState) -> dict[str, tuple[str, str]]:
    """Of each path of any collection that a table takes from another run: its path there, and which of `CHANGES` is made."""
    every = {
        path: leaf for tree in (state.params, *state.collections.values()) for path, leaf in paths.flatten(tree).items()
    }
    choice = paths.lookup(table, every, f"init_from.{name}.table")
    regex = {path: next(regex for regex, _ in table if re.fullmatch(regex, path)) for path in choice}
    found = {}
    for path, wanted in choice.items():
        where, how = _source(wanted)
        if where is not False:
            found[path] = (path if where is True else re.sub(regex[path], where, path), how)
    return found


def _source(wanted: Any) -> tuple[bool | str, str]:
    """A table's value as (True, False or the other path, how the leaf is changed)."""
    if wanted in CHANGES:
        return True, wanted
    return (wanted, "") if isinstance(wanted, bool | str) else tuple(wanted)


def missing_starts(rows: Mapping[str, Any]) -> dict[str, str]:
    """The rows of `config.init_from` whose part of the model should come from another run, and does not: name -> why it should.

    A row that is given and takes the whole of another run stands for all of them.
    """
    given = [row for row in rows.values() if row.get("workdir")]
    if any(regex == ".*" and what for row in given for regex, what in row["table"]):
        return {}
    return {name: row["without"] for name, row in rows.items() if row.get("without") and not row.get("workdir")}
