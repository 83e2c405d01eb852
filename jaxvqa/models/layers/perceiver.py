"""What lets a language model see: the perceiver resampler and gated cross-attention.

docs/originals/flamingo.md, sections 3 and 4.

J.-B. Alayrac, J. Donahue, P. Luc, A. Miech and others, "Flamingo: a Visual Language Model for Few-Shot Learning", NeurIPS 2022,
in the form of lucidrains' flamingo-pytorch.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.errors import ConfigError
from jaxvqa.models.layers.attention import KeyValue, MultiHeadAttention
from jaxvqa.models.layers.feed_forward import FeedForward
from jaxvqa.models.layers.transformer import LayerNorm


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    return LayerNorm(epsilon=1e-5, dtype=dtype, name=name)


def _feed_forward(x: Array, activation: str, dtype: Any, name: str) -> Array:
    """down(activation(up(norm(x)))) without biases, four times as wide inside; there is no dropout."""
    width = x.shape[-1]
    inside = FeedForward(4 * width, width, dtype=dtype, activation=activation, use_bias=False, name=name)
    return inside(_norm(dtype, f"{name}_norm")(x), train=False)


class PerceiverResampler(nn.Module):
    """Turns the tokens of each medium, however many, into L latents.

    In each layer the latents read from the medium's tokens and from themselves, then go through a feed-forward part. Tokens are
    not changed, and media never mix.

    Attributes:
      latents: number of latents L.
      depth: number of layers.
      heads: number of heads.
      head_width: size of a query, a key and a value in each head.
      media: the most media that a sample may have: each has a vector of its own, added to all its tokens.
      activation: a name of `ACTIVATIONS`.
      scale: standard deviation that latents and media's vectors start from; the original's is 1.
      numbered: media have vectors by their number; otherwise all have the first one's, and there may be any number of them.
    """

    latents: int = 64
    depth: int = 2
    heads: int = 8
    head_width: int = 64
    media: int = 4
    activation: str = "gelu"
    scale: float = 1.0
    dtype: Any = jnp.float32
    numbered: bool = True

    @nn.compact
    def __call__(
        self, media: Float[Array, "B M N D"], real: Bool[Array, "B M N"] | None = None
    ) -> tuple[Float[Array, "B M L D"], dict[str, Array]]:
        """Turns media into latents.

        Args:
          media: float[B, M, N, D].
          real: bool[B, M, N], False for padding, which nothing reads; all are real without.

        Returns:
          The latents; and of each layer i `read_i` [B, M, L, D], what was read, and `attention_i` float32[B·M, K, L, N + L].

        Raises:
          ConfigError: there are more media than vectors for them.
        """
        batch, count, _, width = media.shape
        if count > self.media and self.numbered:
            raise ConfigError(f"A sample has {count} media; model.media allows {self.media}.")
        normal = nn.initializers.normal(self.scale)
        latents = self.param("latents", normal, (self.latents, width)).astype(self.dtype)
        position = self.param("media_position", normal, (self.media, 1, width)).astype(self.dtype)
        position = position[None, : count if self.numbered else 1]
        media = (media.astype(self.dtype) + position).reshape(batch * count, -1, width)
        x = jnp.broadcast_to(latents[None], (batch * count, *latents.shape))
        mask = None
        if real is not None:
            own = ((0, 0), (0, len(latents)))  # the latents themselves
            mask = jnp.pad(real.reshape(batch * count, -1), own, constant_values=True)[:, None, None]
        out: dict[str, Array] = {}
        for i in range(self.depth):
            attention = MultiHeadAttention(
                self.heads, self.head_width, width, use_bias=False, dtype=self.dtype, name=f"attention_{i}"
            )
            asking = _norm(self.dtype, f"latents_norm_{i}")(x)
            memory = jnp.concatenate([_norm(self.dtype, f"media_norm_{i}")(media), asking], axis=1)
            read, out[f"attention_{i}"] = attention(asking, attention.project(memory), mask, train=False)
            out[f"read_{i}"] = read.reshape(batch, count, *latents.shape)
            x = x + read
            x = x + _feed_forward(x, self.activation, self.dtype, f"feed_forward_{i}")
        return _norm(self.dtype, "norm")(x).reshape(batch, count, *latents.shape), out


def visible_media(
    count: Int[Array, "B T"],
    media: int,
    *,
    immediate: bool = True,
    uniform_before: bool = False,
    uniform_beyond: bool = False,
) -> tuple[Bool[Array, "B T M"], Bool[Array, "B T"]]:
    """Which media a position of a text attends to, by the number of media that began up to it, itself included.

        text     a  <image>  b  c  <image>  d          a attends to none; b and c to the first; d to the second,
        count    0     1     1  1     2     2          and without `immediate` to the first as well

    Args:
      count: int[B, T].
      media: number of media M that there are.
      immediate: a position attends to the last medium before it only, instead of all.
      uniform_before: a position before the first medium attends to all media with equal weights, instead of to none.
      uniform_beyond: so does one after more image tokens than there are media.

    Returns:
      Which media each position attends to, and whether it attends at all. If it does, but to none of them, then to all equally.
    """
    number = jnp.arange(1, media + 1)[None, None]
    sees = count[..., None] == number if immediate else count[..., None] >= number
    reads = jnp.any(sees, axis=-1)
    if uniform_before:
        reads = reads | (count == 0)
    if uniform_beyond:
        reads = reads | (count > media)
    return sees, reads


class GatedCrossAttention(nn.Module):
    """y = x + tanh(gate)·attention(norm(x), media), then y + tanh(gate)·feed_forward(y).

    Gates that start at 0 make it the identity at first, which keeps a trained language model whole. Through a gate of 0 no
    gradient reaches what encodes images: a network from nothing may start with its gates open.

    Attributes:
      heads: number of heads.
      head_width: size of a query, a key and a value in each head.
      features: width D of the text's states.
      activation: a name of `ACTIVATIONS`.
      gate: what both gates start from.
    """

    heads: int = 8
    head_width: int = 64
    features: int = 768
    activation: str = "gelu"
    gate: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the attention, which both methods use."""
        self.attention = MultiHeadAttention(
            self.heads, self.head_width, self.features, use_bias=False, dtype=self.dtype
        )

    def project(self, media: Float[Array, "B M L D"]) -> KeyValue:
        """Keys and values of all media, one medium's latents after the other's; not normalised again."""
        return self.attention.project(media.reshape(len(media), -1, media.shape[-1]))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        media: KeyValue,
        sees: Bool[Array, "B T M"] | None = None,
        reads: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
        """Lets the text read from the media.

        Args:
          x: float[B, T, D].
          media: their keys and values.
          sees: which media each position sees; all without.
          reads: whether it reads anything, see `visible_media`; everyone without.

        Returns:
          The result, and the intermediates `read` [B, T, D], before its gate, and `attention` float32[B, K, T, M·L].
        """
        mask = None
        if sees is not None:
            latents = media.key.shape[2] // sees.shape[-1]
            mask = jnp.repeat(sees, latents, axis=-1)[:, None]
        read, weights = self.attention(_norm(self.dtype, "attention_norm")(x), media, mask, train=False)
        if reads is not None:
            # Without a bias behind it: reading nothing adds nothing.
            read = jnp.where(reads[..., None], read, 0)
            weights = jnp.where(reads[:, None, :, None], weights, 0)
        x = x + self._gate("attention_gate") * read
        added = _feed_forward(x, self.activation, self.dtype, "feed_forward")
        return x + self._gate("feed_forward_gate") * added, {"read": read, "attention": weights}

    def _gate(self, name: str) -> Float[Array, "1 1 1"]:
        return jnp.tanh(self.param(name, nn.initializers.constant(self.gate), (1,)))[None, None].astype(self.dtype)
