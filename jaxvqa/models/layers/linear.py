"""A linear map with PyTorch's default initial values."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.kernels import times_transposed


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Draws uniformly from ±1/√fan_in, as `torch.nn.Linear` does for its weights and biases alike."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """y = x·kernel + bias over the last axis.

    A collection "transposed" may hold the kernel transposed, for many products of a few rows with the same one
    (`times_transposed`).

    `flax.linen.Dense` does the same, but its bias initialiser does not get the number of inputs, which PyTorch's
    default needs.

    Attributes:
      features: width of the result.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel, with which the bias starts at 0; PyTorch's default for both without.
    """

    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """Maps the last axis to `features`."""
        default = fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or default, (x.shape[-1], self.features))
        # As one matrix: with more axes, XLA on CPU copies the result's gradient transposed before it multiplies, which
        # takes up to a third longer, forward and backward together.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        if self.has_variable("transposed", "kernel"):
            transposed: Array = self.get_variable("transposed", "kernel")
            y = times_transposed(rows, transposed.astype(self.dtype)).astype(self.dtype)
        else:
            y = jnp.dot(rows, kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros if self.kernel_init else default, (self.features,))
            y += bias.astype(self.dtype)[None]
        return y.reshape(*x.shape[:-1], self.features)
