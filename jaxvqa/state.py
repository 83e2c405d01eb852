"""The train state: everything that a step reads and writes, and nothing else."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxvqa import paths
from jaxvqa.errors import ConfigError, nearest
from jaxvqa.types import Collections, Params

Kind = Literal["statistics", "mirror", "memory"]
"""What a collection is for, which decides how a run treats it.

- `statistics`: what belongs to parameters as they are, such as batch statistics. Whole on every device; averaged with the
  parameters (`config.optim.ema`); with microbatches each part updates those of the part before.
- `mirror`: copies at the paths of parameters, such as momentum encoders. They start as copies, lie on the devices where the
  parameters lie, have no gradient, and are not averaged. `Task.before` moves them.
- `memory`: queues, their positions, histories of losses. Placed by `config.sharding.memory`, not averaged, and written once a
  step from the whole batch.
"""

Kinds = Mapping[str, Kind]
"""The kind of each collection by its name."""


@flax.struct.dataclass
class TrainState:
    """One step's parameters and optimiser. The leaves may also be their shapes (ShapeDtypeStruct) or shardings.

    Attributes:
      step: steps done so far, int32 scalar.
      params: the model's parameters, float32.
      collections: the model's other collections by name (batch statistics, momentum encoders, queues); often empty.
      opt_state: the optimiser's state.
      ema: exponential moving averages {"params", "collections"} of the parameters and of the collections that are
        `statistics`, or None when `config.optim.ema` is 0.
    """

    step: Any
    params: Any
    collections: Any
    opt_state: optax.OptState
    ema: Any = None

    @property
    def eval_variables(self) -> tuple[Params, Collections]:
        """The (params, collections) to predict with: the averages where they are kept."""
        averages = self.ema or {"params": self.params, "collections": {}}
        return averages["params"], {**self.collections, **averages["collections"]}


def of_kind(collections: Collections, kinds: Kinds, kind: Kind) -> dict[str, Any]:
    """The collections of one kind."""
    return {name: tree for name, tree in collections.items() if kinds[name] == kind}


def start_ema(params: Params, collections: Collections, kinds: Kinds) -> dict[str, Any]:
    """The averages before the first step: copies of the variables, since a step donates both."""
    return jax.tree.map(jnp.copy, {"params": params, "collections": of_kind(collections, kinds, "statistics")})


def update_ema(ema: Any, decay: float, params: Params, collections: Collections) -> dict[str, Any]:
    """The averages after a step: decay · average + (1 - decay) · new value.

    Batch statistics are averaged as the parameters are: those of the parameters in training would not fit the averaged ones.
    Leaves that are not floats, such as counters, have no average and are taken over.
    """

    def average(old: Array, new: Array) -> Array:
        return decay * old + (1 - decay) * new if jnp.issubdtype(new.dtype, jnp.floating) else new

    statistics = {name: collections[name] for name in ema["collections"]}
    return jax.tree.map(average, ema, {"params": params, "collections": statistics})


def not_finite(tree: Any) -> list[str]:
    """The paths of the leaves with a NaN or an infinity in them, sorted; one flag a leaf leaves the devices."""
    floats = {path: leaf for path, leaf in paths.flatten(tree).items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    flags = jax.device_get({path: _all_finite(leaf) for path, leaf in floats.items()})
    return sorted(path for path, fine in flags.items() if not fine)


# Leaf by leaf, not the tree as a whole: parameters and moments have few shapes, and each is compiled once.
@jax.jit
def _all_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


def create(
    init: Callable[[Key[Array, ""]], Any],
    optimizer: optax.GradientTransformation,
    kinds: Kinds,
    *,
    seed: int,
    with_ema: bool,
) -> Callable[[], TrainState]:
    """Returns a pure function that makes a fresh state, to be run inside jit with output shardings.

    Args:
      init: a key to the model's variables, a dict with "params" and the other collections.
      optimizer: makes the optimiser's state.
      kinds: the kind of each collection.
      seed: decides the parameters.
      with_ema: whether moving averages are kept.

    Raises:
      ConfigError: lists collections without a kind, and leaves of a mirror that are not where a parameter is.
    """

    def fresh() -> TrainState:
        # The key is made in here too: nothing may touch a device that is only compiled for.
        variables = dict(init(fold(jax.random.key(seed), "params")))
        params = variables.pop("params")
        _check_kinds(params, variables, kinds)
        collections = variables | mirrored(params, of_kind(variables, kinds, "mirror"))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=collections,
            opt_state=optimizer.init(params),
            ema=start_ema(params, collections, kinds) if with_ema else None,
        )

    return fresh


def mirrored(params: Params, mirrors: Collections) -> dict[str, Any]:
    """The mirrors made equal to the parameters at their paths."""
    of_path = paths.flatten(params)
    return {
        name: jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.copy(of_path[paths.path_of(path)]), tree)
        for name, tree in mirrors.items()
    }


def _check_kinds(params: Params, collections: Collections, kinds: Kinds) -> None:
    known = get_args(Kind)
    faults = [f"that of {name} is {kinds.get(name)!r}" for name in collections if kinds.get(name) not in known]
    if faults:
        raise ConfigError(f"Task.kinds gives each collection one of {', '.join(known)}, but {', '.join(faults)}.")
    of_path = paths.flatten(params)
    for name, tree in of_kind(collections, kinds, "mirror").items():
        for path, leaf in paths.flatten(tree).items():
            if path not in of_path:
                faults.append(f"{name}: {path} is not the path of a parameter.{nearest(path, of_path)}")
            elif of_path[path].shape != leaf.shape:
                faults.append(f"{name}: {path} is {leaf.shape}, the parameter {of_path[path].shape}")
    if faults:
        raise ConfigError("A mirror has the paths and shapes of parameters:\n  " + "\n  ".join(faults))


def fold(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of one purpose ("params", "step", "dropout", …): it depends on the name alone, not on what others there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
