"""A one-layer, one-direction LSTM."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.linear import fan_in_uniform
from jaxvqa.precision import widened


class LSTM(nn.Module):
    """Long short-term memory, run over every position from a zero state.

    With the gates' pre-activations i, f, g, o = x·input_kernel + input_bias + h·hidden_kernel + hidden_bias:
    c ← σ(f)·c + σ(i)·tanh(g), h ← σ(o)·tanh(c).

    The two biases act as their sum, but stay two parameters: Adam moves each of them by a full step, so one bias alone
    would train differently from the original, and its checkpoints hold both.

    Attributes:
      width: size of the state.
      dtype: type of the multiplications and of the result; gates and cell state are kept in float32.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        """Returns the hidden state h at every position."""
        init = fan_in_uniform(self.width)  # PyTorch takes the state's size for all four, also for the input's kernel
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 4 * self.width))
        hidden_kernel = self.param("hidden_kernel", init, (self.width, 4 * self.width)).astype(self.dtype)
        input_bias = self.param("input_bias", init, (4 * self.width,))
        hidden_bias = self.param("hidden_bias", init, (4 * self.width,))

        # What does not depend on the state is one large multiplication before the loop.
        from_input = jnp.dot(jnp.swapaxes(x, 0, 1).astype(self.dtype), input_kernel.astype(self.dtype))
        from_input = widened(from_input) + (input_bias + hidden_bias)[None, None]

        def step(state: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = state
            gates = gates + widened(jnp.dot(h, hidden_kernel))
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(self.dtype)
            return (h, c), h

        start = jnp.zeros((x.shape[0], self.width), from_input.dtype)
        _, hidden = jax.lax.scan(step, (start.astype(self.dtype), start), from_input)
        return jnp.swapaxes(hidden, 0, 1)
