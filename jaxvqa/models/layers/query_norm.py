"""A small Transformer encoder that normalises what asks, and not what is asked (docs/originals/cmsa.md, section 2.3)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jaxvqa.models.layers.attention import MultiHeadAttention
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.feed_forward import FeedForward
from jaxvqa.models.layers.transformer import LayerNorm


def sinusoids(length: int, width: int) -> Float32[np.ndarray, "T D"]:
    """The signal that encodes positions: with the angle a = p / 10000^(2⌊j/2⌋ / width), sin a on even j, cos a on odd."""
    channel = np.arange(width)
    angle = np.arange(length)[:, None] / np.power(10000, 2 * (channel // 2) / width)[None]
    return np.where(channel[None] % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


class QueryNormAttention(nn.Module):
    """x + attention(norm(x)), whose keys and values come from `memory` as it is; no linear layer has a bias.

    Where x and memory are the same sequence this is not the usual pre-norm attention: keys and values are not normalised.

    Attributes:
      heads: number of heads.
      key_width: size of a query, a key and a value in each head.
      dropout: rate of dropout on the attention weights and on the result before the residual.
    """

    heads: int
    key_width: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q D"], memory: Float[Array, "B M E"], *, train: bool
    ) -> Float[Array, "B Q D"]:
        """Lets every position of x read from `memory`."""
        attention = MultiHeadAttention(
            self.heads,
            self.key_width,
            x.shape[-1],
            use_bias=False,
            dropout=self.dropout,
            dtype=self.dtype,
            name="attention",
        )
        asking = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        read, _ = attention(asking, attention.project(memory), train=train)
        return x + Dropout(self.dropout)(read, train=train)


class QueryNormEncoder(nn.Module):
    """Positions, then layers of attention and of a two-layer map, each with a residual, then a normalisation. No mask.

    Attributes:
      layers: number of layers.
      heads: number of attention heads.
      key_width: size of a query, a key and a value in each head.
      hidden: width between the two maps.
      dropout: dropout rate.
    """

    layers: int = 2
    heads: int = 2
    key_width: int = 64
    hidden: int = 1024
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, train: bool) -> Float[Array, "B T D"]:
        """Encodes a sequence."""
        width = x.shape[-1]
        x = x.astype(self.dtype) + jnp.asarray(sinusoids(x.shape[1], width), self.dtype)[None]
        x = Dropout(self.dropout)(x, train=train)
        for i in range(self.layers):
            attention = QueryNormAttention(
                self.heads, self.key_width, self.dropout, self.dtype, name=f"layer_{i}_attention"
            )
            x = attention(x, x, train=train)
            y = LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"layer_{i}_norm")(x)
            # Here the original has no dropout between the two maps.
            y = FeedForward(self.hidden, width, 0.0, self.dtype, name=f"layer_{i}_feed_forward")(y, train=train)
            x = x + Dropout(self.dropout)(y, train=train)
        return LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
