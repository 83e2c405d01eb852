"""Normalisation by the statistics of the batch, which it remembers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.rows import as_rows
from jaxvqa.precision import widened


class BatchNorm(nn.Module):
    """scale · (x − mean) / √(var + epsilon) + bias for each channel, as `torch.nn.BatchNorm{1,2,3}d`.

    In training, mean and var are those of the batch over all axes but the last. They also move the running ones, in the
    collection `batch_stats`, by the share `momentum`: the variance there is the unbiased one, divided by n − 1, while x is
    normalised with the biased one. Otherwise the running ones are used. `flax.linen.BatchNorm` differs in two ways: its
    momentum is 1 − this one, and its running variance is biased.

    In a jitted function whose batch is spread over devices the statistics are those of the whole batch.

    Attributes:
      epsilon: added to the variance.
      momentum: weight of the new batch in the running statistics.
      scale_init: initialiser of the scale.
      bias_init: initialiser of the bias.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch D"], *, train: bool, of: Float[Array, "*other D"] | None = None
    ) -> Float[Array, "*batch D"]:
        """Normalises each channel.

        Args:
          x: float[..., D].
          train: take the batch's statistics; the collection `batch_stats` has to be mutable.
          of: what to take them of, x itself by default: where x is something of which this could be computed, but shorter.
        """
        width = x.shape[-1]
        scale = self.param("scale", self.scale_init, (width,))
        bias = self.param("bias", self.bias_init, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,), jnp.float32)

        def over_x(vector: Array) -> Array:
            return jnp.expand_dims(vector, range(x.ndim - 1))

        x, narrow = widened(x), x
        if train:
            sample = widened(as_rows(narrow if of is None else of))
            mean = jnp.mean(sample, axis=0)
            var = jnp.mean(jnp.square(sample - mean[None]), axis=0)
            if not self.is_initializing():
                count = len(sample)
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (jax.lax.stop_gradient(mean) - running_mean.value)
                running_var.value += self.momentum * (jax.lax.stop_gradient(unbiased) - running_var.value)
        else:
            # One multiplication and one addition for each element, as PyTorch.
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            shift = bias - running_mean.value * factor
            return (x * over_x(factor) + over_x(shift)).astype(self.dtype)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((x - over_x(mean)) * over_x(factor) + over_x(bias)).astype(self.dtype)
