"""The type of what must not lose precision: statistics, scores, softmaxes, logits, sums of losses.

It is float32, also in a model that multiplies in half precision. Where docstrings say float32 they mean this type: a model
whose `dtype` is float64, with float64 parameters under `jax.enable_x64`, computes in float64 throughout. That separates a wrong
formula from rounding (`jaxvqa.golden.training`).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def wide(dtype: Any) -> Any:
    """The wider of float32 and a type."""
    return jnp.promote_types(jnp.float32, dtype)


def widened(x: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x in the wider of float32 and its own type."""
    return x.astype(wide(x.dtype))
