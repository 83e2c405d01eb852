"""Normalisation by mean and sample standard deviation, and to length 1."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.precision import widened


class StdNorm(nn.Module):
    """scale · (x − mean) / (s + epsilon) + bias over the last axis, with the sample standard deviation s.

    Differs from the usual layer normalisation twice (docs/originals/rwsan.md, section 1.3): the variance is divided by n − 1,
    and epsilon is added to s itself, not to the variance under the root. A constant row gives `bias`.

    Attributes:
      epsilon: added to the standard deviation.
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises each row of the last axis."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        x = widened(x)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (width - 1)
        # The root has an infinite slope at 0; a constant row must pass a gradient of 0 through s, as in PyTorch.
        constant = variance == 0
        s = jnp.where(constant, 0.0, jnp.sqrt(jnp.where(constant, 1.0, variance)))
        scale, bias = (jnp.expand_dims(p, range(x.ndim - 1)) for p in (scale, bias))
        return (scale * (centred / (s + self.epsilon)) + bias).astype(self.dtype)


def unit(x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """x / max(|x|, 1e-12), whose gradient at 0 is finite."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.maximum(square, 1e-24)), 0)
