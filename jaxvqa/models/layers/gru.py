"""A one-layer, one-direction GRU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.linear import fan_in_uniform
from jaxvqa.precision import widened


class GRU(nn.Module):
    """Gated recurrent unit, run over every position from a zero state; PyTorch's variant.

    With r, z, n from x·input_kernel + input_bias and r′, z′, n′ from h·hidden_kernel + hidden_bias:
    n ← tanh(n + σ(r + r′)·n′), h ← (1 − σ(z + z′))·n + σ(z + z′)·h. The reset gate multiplies n′ with its bias, so that
    here, unlike in the LSTM, the two biases cannot become one.

    Attributes:
      width: size of the state.
      dtype: type of the multiplications and of the result; gates and state are kept in float32.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        """Returns the state h at every position."""
        init = fan_in_uniform(self.width)  # PyTorch takes the state's size for all four, also for the input's kernel
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 3 * self.width))
        hidden_kernel = self.param("hidden_kernel", init, (self.width, 3 * self.width)).astype(self.dtype)
        input_bias = self.param("input_bias", init, (3 * self.width,))
        hidden_bias = self.param("hidden_bias", init, (3 * self.width,))

        # What does not depend on the state is one large multiplication before the loop.
        from_input = jnp.dot(jnp.swapaxes(x, 0, 1).astype(self.dtype), input_kernel.astype(self.dtype))
        from_input = widened(from_input) + input_bias[None, None]

        def step(h: Array, inputs: Array) -> tuple[Array, Array]:
            from_state = widened(jnp.dot(h.astype(self.dtype), hidden_kernel)) + hidden_bias[None]
            r, z, n = jnp.split(inputs, 3, axis=-1)
            r_state, z_state, n_state = jnp.split(from_state, 3, axis=-1)
            n = jnp.tanh(n + jax.nn.sigmoid(r + r_state) * n_state)
            z = jax.nn.sigmoid(z + z_state)
            h = (1 - z) * n + z * h
            return h, h.astype(self.dtype)

        _, hidden = jax.lax.scan(step, jnp.zeros((x.shape[0], self.width), from_input.dtype), from_input)
        return jnp.swapaxes(hidden, 0, 1)
