"""A decoder of text in the manner of PaLM, as lucidrains' flamingo-pytorch has it.

A. Chowdhery, S. Narang, J. Devlin and others, "PaLM: Scaling Language Modeling with Pathways", 2022: attention and feed-forward
side by side, one key and one value for all heads, positions by rotation, SwiGLU, no biases.

    text ── embed ── block_0 ── … ── readout (norm, then the embedding's table)
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.attention import KeyValue, Past, attend, recall
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import INIT, LayerNorm, Readout
from jaxvqa.models.towers.decoder import Decoder
from jaxvqa.precision import wide, widened


def rotate(x: Float[Array, "B K T R"], positions: Int[Array, "B T"]) -> Float[Array, "B K T R"]:
    """Turns entries j and j + R/2 of each vector by the angle position · 10000^(-2j/R).

    docs/originals/flamingo.md, section 7.
    """
    width = x.shape[-1]
    frequency = 10000.0 ** (-jnp.arange(0, width, 2, dtype=wide(x.dtype)) / width)
    angle = positions[:, None, :, None].astype(frequency.dtype) * frequency[None, None, None]
    angle = jnp.concatenate([angle, angle], axis=-1)
    first, second = jnp.split(widened(x), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (widened(x) * jnp.cos(angle) + turned * jnp.sin(angle)).astype(x.dtype)


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feed_forward(norm(x)), all that reads norm(x) in one map.

    Attributes:
      heads: number of heads K of the queries; keys and values have one.
      head_width: size R of a query, a key and a value.
      hidden: width between the two maps of the feed-forward part.
    """

    heads: int
    head_width: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B 1 T S"],
        past: Past | None = None,
        *,
        positions: Int[Array, "B T"],
        train: bool,
    ) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B K T S"]], KeyValue]:
        """Returns the result, the attention weights, and keys and values (of one head); see `Block`."""
        batch, length, width = x.shape
        inner, size = self.heads * self.head_width, self.head_width

        def linear(features: int, name: str) -> Linear:
            return Linear(features, self.dtype, use_bias=False, name=name)

        y = LayerNorm(epsilon=1e-5, use_bias=False, dtype=self.dtype, name="norm")(x)
        parts = (inner, inner + size, inner + 2 * size, inner + 2 * size + self.hidden)
        query, key, value, up, gate = jnp.split(linear(parts[-1] + self.hidden, "qkv_up_gate")(y), parts, axis=-1)
        query = rotate(jnp.moveaxis(query.reshape(batch, length, self.heads, size), 2, 1), positions)
        seen = recall(KeyValue(rotate(key[:, None], positions), value[:, None]), past)
        # All heads read the same keys and values: to those, they are so many more positions.
        rows = query.reshape(batch, 1, self.heads * length, size)
        mask = jnp.tile(mask, (1, 1, self.heads, 1))
        read, weights = attend(rows, seen, mask, scale=1 / math.sqrt(size))
        read = jnp.moveaxis(read.reshape(batch, self.heads, length, size), 1, 2).reshape(batch, length, inner)
        added = linear(width, "attention_output")(read) + linear(width, "down")(nn.silu(gate) * up)
        return x + added, {"attention": weights.reshape(batch, self.heads, length, -1)}, seen


class PaLM(Decoder):
    """The whole network; there is no dropout.

    Attributes:
      vocab_size: number of tokens V.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      head_width: size of a query; the width divided by the heads without.
      tied: whether the output's table is the embedding's.
    """

    vocab_size: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    head_width: int | None = None
    tied: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts."""
        self.embed = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=INIT)
        size = self.head_width or self.width // self.heads
        self.block = [ParallelBlock(self.heads, size, 4 * self.width, self.dtype) for _ in range(self.depth)]
        self.readout = Readout(self.vocab_size, self.tied, norm_bias=False, dtype=self.dtype)
