"""The train state: everything that a step reads and writes, and nothing else."""

import zlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jaxvqa import paths


@flax.struct.dataclass
class TrainState:
    """One step's parameters and optimiser. The leaves may also be their shapes (ShapeDtypeStruct) or shardings.

    Attributes:
      step: steps done so far, int32 scalar.
      params: the model's parameters, float32.
      collections: the model's other collections by name (batch statistics, momentum encoders, queues); often empty.
      opt_state: the optimiser's state.
      ema: exponential moving averages {"params", "collections"} of these two, or None when `config.optim.ema` is 0.
    """

    step: Any
    params: Any
    collections: Any
    opt_state: optax.OptState
    ema: Any = None

    @property
    def eval_variables(self) -> tuple[Any, Any]:
        """The (params, collections) to predict with: the averages where they are kept."""
        return (self.params, self.collections) if self.ema is None else (self.ema["params"], self.ema["collections"])


def start_ema(params: Any, collections: Any) -> dict[str, Any]:
    """The averages before the first step: copies of the variables, since a step donates both."""
    return jax.tree.map(jnp.copy, {"params": params, "collections": collections})


def update_ema(ema: Any, decay: float, params: Any, collections: Any) -> dict[str, Any]:
    """The averages after a step: decay · average + (1 - decay) · new value.

    Batch statistics are averaged as the parameters are: those of the parameters in training would not fit the averaged ones.
    Leaves that are no floats, such as counters, have no average and are taken over.
    """

    def average(old: Array, new: Array) -> Array:
        return decay * old + (1 - decay) * new if jnp.issubdtype(new.dtype, jnp.floating) else new

    return jax.tree.map(average, ema, {"params": params, "collections": collections})


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
    init: Callable[[Key[Array, ""]], Any], optimizer: optax.GradientTransformation, *, seed: int, with_ema: bool
) -> Callable[[], TrainState]:
    """Returns a pure function that makes a fresh state, to be run inside jit with output shardings.

    Args:
      init: a key to the model's variables, a dict with "params" and the other collections.
      optimizer: makes the optimiser's state.
      seed: decides the parameters.
      with_ema: whether moving averages are kept.
    """

    def fresh() -> TrainState:
        # The key is made in here too: nothing may touch a device that is only compiled for.
        variables = dict(init(fold(jax.random.key(seed), "params")))
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=variables,
            opt_state=optimizer.init(params),
            ema=start_ema(params, variables) if with_ema else None,
        )

    return fresh


def fold(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of one purpose ("params", "step", "dropout", …): it depends on the name alone, not on what others there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
