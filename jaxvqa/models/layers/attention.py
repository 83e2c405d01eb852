"""Attention in which keys and queries are narrower than values, and pooling by attention."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.precision import wide, widened

# Finite, so that a sequence of nothing but padding gets uniform weights in place of NaN. In float32 the weight of a
# padding position beside a real one is exactly 0.
MASKED_SCORE = -50000.0


class LowRankAttention(nn.Module):
    """Multi-head attention with keys and queries of only `rank` entries a head.

    weights = softmax(query·keyᵀ / √rank) over the keys, with padding keys' scores replaced by `MASKED_SCORE`; result =
    merge(weights·value). Heads are contiguous slices of the projections. The scale is the root of the rank, not of the
    value's head size (RWSAN spec, section 1.4).

    Attributes:
      heads: number of heads K; divides the width.
      rank: size of a key and of a query in each head.
      dropout: rate of dropout on the attention weights.
      dtype: type of the multiplications; scores and softmax are float32.
    """

    heads: int
    rank: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B Q D"],
        memory: Float[Array, "B M D"],
        memory_padding: Bool[Array, "B M"],
        *,
        train: bool,
    ) -> Float[Array, "B Q D"]:
        """Lets every query position read from `memory`, which gives both keys and values."""
        width = query.shape[-1]

        def project(x: Array, size: int, name: str) -> Array:
            y = Linear(self.heads * size, self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, size)

        value = project(memory, width // self.heads, "value")
        key = project(memory, self.rank, "key")
        projected = project(query, self.rank, "query")

        scores = jnp.einsum("bqkr,bmkr->bkqm", projected, key, preferred_element_type=wide(self.dtype))
        scores = scores / math.sqrt(self.rank)
        scores = jnp.where(memory_padding[:, None, None, :], MASKED_SCORE, scores)
        weights = Dropout(self.dropout)(jax.nn.softmax(scores, axis=-1), train=train)
        read = jnp.einsum("bkqm,bmkd->bqkd", weights.astype(self.dtype), value)
        return Linear(width, self.dtype, name="merge")(read.reshape(query.shape))


class FeedForward(nn.Module):
    """down(dropout(relu(up(x)))): a two-layer map of each position.

    Attributes:
      hidden: width between the two layers.
      features: width of the result.
      dropout: rate of dropout between the layers.
      dtype: type of the multiplications.
      activation: what stands in place of relu.
      use_bias: whether the layers have biases.
      kernel_init: initialiser of the kernels, as in `Linear`.
    """

    hidden: int
    features: int
    dropout: float
    dtype: Any = jnp.float32
    activation: Callable[[Array], Array] = nn.relu
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], *, train: bool) -> Float[Array, "*batch O"]:
        """Maps the last axis to `features`."""

        def linear(features: int, name: str) -> Linear:
            return Linear(features, self.dtype, self.use_bias, self.kernel_init, name=name)

        hidden = self.activation(linear(self.hidden, "up")(x))
        hidden = Dropout(self.dropout)(hidden, train=train)
        return linear(self.features, "down")(hidden)


class AttentionPooling(nn.Module):
    """Turns a sequence into one vector: merge(Σ weightᵢ·xᵢ), the weights a softmax over a learned score of each position.

    Attributes:
      hidden: width of the scorer's hidden layer.
      features: width of the result.
      dropout: rate of dropout inside the scorer.
      dtype: type of the multiplications; scores and softmax are float32.
    """

    hidden: int
    features: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], padding: Bool[Array, "B L"], *, train: bool
    ) -> tuple[Float[Array, "B O"], Float[Array, "B L"]]:
        """Returns the pooled vector and the weights of the positions, which sum to 1."""
        score = FeedForward(self.hidden, 1, self.dropout, self.dtype, name="score")(x, train=train)
        score = jnp.where(padding, MASKED_SCORE, widened(score[..., 0]))
        weights = jax.nn.softmax(score, axis=-1)
        pooled = jnp.einsum("bl,bld->bd", weights.astype(self.dtype), x)
        return Linear(self.features, self.dtype, name="merge")(pooled), weights
