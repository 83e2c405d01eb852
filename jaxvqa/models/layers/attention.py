"""Attention, with keys and values that can be kept from one token to the next, and pooling by attention.

Everywhere a mask is True where something may be read.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.dropout import Dropout, drop
from jaxvqa.models.layers.feed_forward import FeedForward
from jaxvqa.models.layers.linear import Linear
from jaxvqa.precision import wide, widened

LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of masked keys. Finite, so that a query whose keys are all masked gives them equal weights, and not NaN."""


class KeyValue(flax.struct.PyTreeNode):
    """What S positions offer to be read, for each head.

    With the positions next to last, a query of one token multiplies without moving anything: on CPU ten times as fast as with
    the heads there.

    Attributes:
      key: float[B, K, S, R].
      value: float[B, K, S, R], or of another size.
    """

    key: Float[Array, "B K S R"]
    value: Float[Array, "B K S V"]

    def write(self, new: "KeyValue", slot: Int[Array, ""]) -> "KeyValue":
        """Puts the positions of `new` in the places from `slot` on."""
        return jax.tree.map(lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, slot, 2), self, new)

    def padded(self, slots: int) -> "KeyValue":
        """The same with room for `slots` positions in all."""
        room = ((0, 0), (0, 0), (0, slots - self.key.shape[2]), (0, 0))
        return jax.tree.map(lambda x: jnp.pad(x, room), self)


def attend(
    query: Float[Array, "B K Q R"],
    seen: KeyValue,
    mask: Bool[Array, "#B #K #Q S"] | None,
    *,
    scale: float,
    drop: Callable[[Array], Array] = lambda weights: weights,
) -> tuple[Float[Array, "B K Q V"], Float[Array, "B K Q S"]]:
    """Reads softmax(scale · query·keyᵀ)·value; `jax.nn.dot_product_attention` gives no weights, and is slower on CPU.

    Args:
      query: float[B, K, Q, R].
      seen: what is there to read, in as many heads.
      mask: bool, True where a query may read; None for everywhere. A query that may read nothing gives all equal weights.
      scale: factor of the scores.
      drop: dropout of the weights.

    Returns:
      What was read, and the weights before dropout.
    """
    scores = jnp.einsum("bkqr,bksr->bkqs", query, seen.key, preferred_element_type=wide(query.dtype)) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, LOWEST)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bkqs,bksr->bkqr", drop(weights).astype(seen.value.dtype), seen.value), weights


PART = 256
"""Queries that `attend_in_parts` takes at a time: enough for matrix products that keep an accelerator busy."""


def attend_in_parts(
    query: Float[Array, "B K Q R"],
    seen: KeyValue,
    mask: Bool[Array, "#B #K #Q S"] | None,
    *,
    scale: float,
    drop: Callable[[Array, Array], Array] = lambda weights, part: weights,
    part: int = PART,
) -> Float[Array, "B K Q V"]:
    """Reads what `attend` reads, a part of the queries after the other, and keeps no weights.

    Their gradient computes them once more. So memory grows with the number of positions and not with its square, but for the
    mask, a byte for each pair of positions. `jax.nn.dot_product_attention` does less: but for cuDNN's kernel, which is for half
    precision on some GPUs and has no dropout, it holds all weights.

    Args:
      query: float[B, K, Q, R].
      seen: what is there to read.
      mask: as for `attend`.
      scale: factor of the scores.
      drop: dropout of the weights of the part with the given number.
      part: queries in a part.
    """

    @jax.checkpoint
    def read(number: Array, query: Array, mask: Array | None) -> Array:
        return attend(query, seen, mask, scale=scale, drop=lambda weights: drop(weights, number))[0]

    length = query.shape[2]
    if length <= part:
        return read(jnp.zeros((), jnp.int32), query, mask)
    count = -(-length // part)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, count * part - length), (0, 0)))
        return jnp.moveaxis(padded.reshape(*x.shape[:2], count, part, x.shape[-1]), 2, 0)

    if mask is not None:
        mask = split(jnp.broadcast_to(mask, (*mask.shape[:2], length, mask.shape[-1])))
    parts = jax.lax.map(lambda given: read(*given), (jnp.arange(count), split(query), mask))
    return jnp.moveaxis(parts, 0, 2).reshape(*query.shape[:2], -1, parts.shape[-1])[:, :, :length]


def causal(length: int) -> Bool[Array, "1 1 T T"]:
    """The mask by which a position reads itself and those before it."""
    return jnp.tril(jnp.ones((length, length), jnp.bool_))[None, None]


Past = tuple[KeyValue, Int[Array, ""]]
"""Keys and values of earlier positions with room for later ones, and the place of the next."""


def recall(new: KeyValue, past: Past | None) -> KeyValue:
    """Everything that there is to read: the new positions alone, or written in their place among the earlier ones."""
    return new if past is None else past[0].write(new, past[1])


class MultiHeadAttention(nn.Module):
    """output(softmax(scale · query·keyᵀ)·value) in several heads, contiguous slices of the projections.

    In two steps, so that keys and values can be kept: `project` makes them, and calling the module reads them.

    Attributes:
      heads: number of heads K.
      head_width: size R of a query, a key and a value in each head.
      features: width of the result.
      value_width: size of a value in each head where it is not R.
      scale: factor of the scores; 1/√R without.
      use_bias: whether the four linear layers have biases.
      dropout: rate of dropout on the attention weights.
      kernel_init: initialiser of the kernels, as in `Linear`.
    """

    heads: int
    head_width: int
    features: int
    value_width: int | None = None
    scale: float | None = None
    use_bias: bool = True
    dropout: float = 0.0
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the four linear layers."""
        width, values = (self.heads * size for size in (self.head_width, self.value_width or self.head_width))
        self.query, self.key, self.value, self.output = (
            Linear(features, self.dtype, self.use_bias, self.kernel_init)
            for features in (width, width, values, self.features)
        )
        self.drop = Dropout(self.dropout)

    def project(self, memory: Float[Array, "B S E"]) -> KeyValue:
        """Keys and values of what is to be read."""
        return KeyValue(self._split(self.key(memory)), self._split(self.value(memory)))

    def __call__(
        self,
        x: Float[Array, "B Q D"],
        seen: KeyValue,
        mask: Bool[Array, "#B #K #Q S"] | None = None,
        *,
        train: bool,
        change: Callable[[Array], Array] = lambda weights: weights,
    ) -> tuple[Float[Array, "B Q F"], Float[Array, "B K Q S"]]:
        """Lets every position of x read where `mask` is True. Returns the result and the weights.

        `change` is applied to the weights before they are dropped: adding zeros asks for their gradients.
        """

        def drop(weights: Array) -> Array:
            return self.drop(change(weights), train=train)

        read, weights = attend(self._split(self.query(x)), seen, mask, scale=self._scale, drop=drop)
        return self._join(read), weights

    def in_parts(
        self, x: Float[Array, "B Q D"], seen: KeyValue, mask: Bool[Array, "#B #K #Q S"] | None = None, *, train: bool
    ) -> Float[Array, "B Q F"]:
        """The result of a call without the weights, by `attend_in_parts`."""
        key = self.make_rng("dropout") if train and self.dropout else None

        def drop_part(weights: Array, part: Array) -> Array:
            return weights if key is None else drop(weights, jax.random.fold_in(key, part), self.dropout)

        query = self._split(self.query(x))
        return self._join(attend_in_parts(query, seen, mask, scale=self._scale, drop=drop_part))

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.head_width) if self.scale is None else self.scale

    def _join(self, read: Float[Array, "B K Q V"]) -> Float[Array, "B Q F"]:
        return self.output(jnp.moveaxis(read, 1, 2).reshape(len(read), read.shape[2], -1))

    def _split(self, x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.heads, -1), 2, 1)


class AttentionPooling(nn.Module):
    """Turns a sequence into one vector: output(Σ weightᵢ·xᵢ), the weights a softmax over a learned score of each position.

    Attributes:
      hidden: width of the scorer's hidden layer.
      features: width of the result.
      dropout: rate of dropout inside the scorer.
    """

    hidden: int
    features: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, train: bool
    ) -> tuple[Float[Array, "B O"], Float[Array, "B L"]]:
        """Returns the pooled vector and the weights of the positions, which sum to 1."""
        score = FeedForward(self.hidden, 1, self.dropout, self.dtype, name="score")(x, train=train)
        score = jnp.where(mask, widened(score[..., 0]), LOWEST)
        weights = jax.nn.softmax(score, axis=-1)
        pooled = jnp.einsum("bl,bld->bd", weights.astype(self.dtype), x)
        return Linear(self.features, self.dtype, name="output")(pooled), weights
