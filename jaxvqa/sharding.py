"""The mesh, and which mesh axes each array is split over.

Mesh axes are `data` (examples), `fsdp` (examples and parameters) and `tensor` (parameters); any may be 1. Axes are
Auto: XLA propagates shardings from the inputs, so a model file never names the mesh. Parameters are placed by a table
`config.sharding.params` of (regex over the parameter path, mesh axis per dimension), collections that are memory by
`config.sharding.memory`, whose paths begin with the collection's name. Memory without a table is whole on every device.
"""

import math
import re
from typing import Any, get_args

import jax
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvqa import paths
from jaxvqa import state as states
from jaxvqa.errors import ConfigError
from jaxvqa.state import Kinds, TrainState
from jaxvqa.types import Config

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: ml_collections.ConfigDict, devices: Any = None) -> Mesh:
    """Builds the mesh of `config.mesh`: {axis: size}, where one size may be -1 for "all that is left".

    Raises:
      ConfigError: when the sizes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).ravel()
    sizes = {axis: int(config[axis]) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    if list(sizes.values()).count(-1) == 1 and known > 0 and devices.size % known == 0:
        sizes = {axis: devices.size // known if size == -1 else size for axis, size in sizes.items()}
    if any(size < 1 for size in sizes.values()) or math.prod(sizes.values()) != devices.size:
        asked = " x ".join(f"{axis}={config[axis]}" for axis in AXES)
        raise ConfigError(
            f"config.mesh asks for {asked}, but there are {devices.size} devices. "
            "The sizes must multiply to that number; one of them may be -1."
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices.tolist())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch is split: by example, over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh, name: str) -> None:
    """Checks that every device gets the same number of examples.

    Raises:
      ConfigError: names the field, the mesh and the nearest sizes that fit.
    """
    unit = batch_shards(mesh) * microbatches
    if batch_size % unit or batch_size < unit:
        below = batch_size // unit * unit
        fitting = " or ".join(str(size) for size in (below, below + unit) if size)
        raise ConfigError(
            f"{name} = {batch_size} cannot be split evenly: the mesh has data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']} and there are {microbatches} microbatches, so it must be a multiple of {unit}. "
            f"Use {fitting}, or change config.mesh."
        )


def specs(table: paths.Table, tree: Any, mesh: Mesh | AbstractMesh, what: str) -> Any:
    """The PartitionSpec of each leaf.

    A row's value is one mesh axis (or None) per dimension. An axis that does not divide its dimension is left out
    (3129 answers over tensor=2, say): the numbers are the same, only less is split, and `plan` says so.

    Args:
      table: rows of (regex over paths, axes); without any, all is whole.
      tree: arrays or their shapes.
      mesh: the devices.
      what: name of the table for messages, as the config spells it.

    Raises:
      ConfigError: for paths without a row, rows without a path, unknown axes or too many dimensions.
    """
    rows = paths.lookup(table, tree, what) if table else jax.tree.map(lambda _: (), tree)
    faults = []

    def spec(path: Any, leaf: Any, row: Any) -> P:
        row = tuple(row)
        if len(row) > len(leaf.shape) or any(axis not in (None, *AXES) for axis in row):
            faults.append(f"{paths.path_of(path)} of shape {leaf.shape} cannot be placed by {row}")
            return P()
        return P(*(a if a and size % mesh.shape[a] == 0 else None for a, size in zip(row, leaf.shape, strict=False)))

    # The rows are tuples, leaves here, so the tree's structure drives the map.
    found = jax.tree_util.tree_map_with_path(spec, tree, rows)
    if faults:
        raise ConfigError(f"config.{what} does not fit the model:\n  " + "\n  ".join(faults))
    return found


def placed(config: Config, state: TrainState, mesh: Mesh | AbstractMesh, kinds: Kinds) -> TrainState:
    """A state's shapes with their shardings: what mirrors a parameter lies where the parameter lies.

    Args:
      config: `config.sharding`, with a table of the parameters and one of the collections that are `memory`.
      state: the shapes.
      mesh: the devices.
      kinds: the kind of each collection.

    Raises:
      ConfigError: as in `specs`.
    """
    whole = NamedSharding(mesh, P())

    def by_table(name: str, tree: Any) -> Any:
        found = specs(config[name], tree, mesh, f"sharding.{name}")
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), found, is_leaf=lambda x: isinstance(x, P))

    params = by_table("params", state.params)
    of_path = {
        path: (leaf.shape, s)
        for (path, leaf), s in zip(paths.flatten(state.params).items(), jax.tree.leaves(params), strict=True)
    }

    def like_its_parameter(key_path: Any, leaf: Any) -> NamedSharding:
        # The optimiser's moments carry the parameter's path at the end of their own ("0/mu/encoder/…/kernel").
        parts = paths.path_of(key_path).split("/")
        for i in range(len(parts)):
            shape, sharding = of_path.get("/".join(parts[i:]), (None, whole))
            if shape == leaf.shape:
                return sharding
        return whole

    statistics, mirrors, memory = (states.of_kind(state.collections, kinds, kind) for kind in get_args(states.Kind))
    statistics = jax.tree.map(lambda _: whole, statistics)
    mirrors = {
        name: jax.tree_util.tree_map_with_path(lambda path, _: of_path[paths.path_of(path)][1], tree)
        for name, tree in mirrors.items()
    }
    shardings = TrainState(
        step=whole,
        params=params,
        collections=statistics | mirrors | by_table("memory", memory),
        opt_state=jax.tree_util.tree_map_with_path(like_its_parameter, state.opt_state),
        ema=None if state.ema is None else {"params": params, "collections": statistics},
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def plan(config: Config, state: TrainState, kinds: Kinds) -> str:
    """What lies where, as text: each row of the tables, and each dimension that stays whole though its row names an axis.

    Args:
      config: `config.sharding`.
      state: the shapes with their shardings.
      kinds: the kind of each collection.
    """
    lines = [f"the state takes {_size(state)} a device; of it"]
    whole = []
    for name, tree in {"params": state.params, "memory": states.of_kind(state.collections, kinds, "memory")}.items():
        leaves = paths.flatten(tree)
        left = dict(leaves)
        for regex, axes in (config[name] or ((r".*", ()),)) if leaves else ():
            matched = {path: left.pop(path) for path in list(left) if re.fullmatch(regex, path)}
            arrays = f"{len(matched)} of {len(leaves)} arrays"
            numbers = " of ".join(f"{sum(x.size for x in of.values()):,}" for of in (matched, leaves))
            cut = ", ".join(axis or "-" for axis in axes) or "whole"
            lines.append(f"  {name} {regex} ({cut}): {arrays}, {numbers} numbers, {_size(matched)} a device")
            whole += [
                f"  whole: {path}, dimension {d} of {leaf.shape[d]}: {axis}={leaf.sharding.mesh.shape[axis]} does not divide it"
                for path, leaf in matched.items()
                for d, axis in enumerate(axes)
                if axis and leaf.sharding.spec[d] is None
            ]
    return "\n".join(lines + whole)


def _size(tree: Any) -> str:
    """What a device holds of arrays with shardings."""
    size = float(
        sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)),
    )
    unit = min(int(math.log2(max(size, 1)) // 10), 3)
    return f"{size / 2 ** (10 * unit):.4g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
