"""Attention between all pairs of a word and a place in an image, at the cost of few of them.

A feature map over T words and H×W places that is put together from the words' vectors and the places' vectors holds T·H·W
vectors, but only T + H·W different ones are behind it: each is a weighted mean of these. What is affine (a linear map, a
normalisation with given statistics) goes over to the few, since the weights sum to 1; attention only changes the weights.
So a non-local block computes with `Mixture`s throughout, and gives the same numbers as one that spells the map out. At CMSA's
published size that takes a fifth of the multiplications.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.linear import Linear
from jaxvqa.precision import wide, widened


class Mixture(flax.struct.PyTreeNode):
    """N vectors, each a weighted mean of the same K ones.

    Attributes:
      weights: float[B, N, K], each row sums to 1.
      vectors: float[B, K, D].
    """

    weights: Float[Array, "B N K"]
    vectors: Float[Array, "B K D"]

    def dense(self) -> Float[Array, "B N D"]:
        """Spells out the N vectors."""
        return jnp.einsum("bnk,bkd->bnd", self.weights.astype(self.vectors.dtype), self.vectors)

    def mean(self, groups: int) -> Float[Array, "B G D"]:
        """Means of the vectors over equal runs of them, of which there are `groups`."""
        weights = self.weights.reshape(len(self.weights), groups, -1, self.weights.shape[-1])
        weights = jnp.mean(weights, axis=2, dtype=wide(weights.dtype)).astype(self.vectors.dtype)
        return Mixture(weights, self.vectors).dense()

    def __add__(self, other: "Mixture") -> "Mixture":
        """The sums of the vectors, as means of both sides' vectors taken twice."""
        weights = jnp.concatenate([self.weights, other.weights], axis=-1) / 2
        return Mixture(weights, 2 * jnp.concatenate([self.vectors, other.vectors], axis=1))

    def __mul__(self, factor: float) -> "Mixture":
        """Each vector times a number."""
        return self.replace(vectors=self.vectors * factor)


def spatial_map(height: int, width: int) -> Float[Array, "H W 8"]:
    """Where each cell of an image lies, from −1 to 1: left, top, right, bottom, centre (x, y), then 1 / width, 1 / height."""
    left, top = 2 * jnp.arange(width) / width - 1, 2 * jnp.arange(height) / height - 1
    right, bottom = 2 * (jnp.arange(width) + 1) / width - 1, 2 * (jnp.arange(height) + 1) / height - 1
    columns = {0: left, 2: right, 4: (left + right) / 2}
    rows = {1: top, 3: bottom, 5: (top + bottom) / 2}
    channels = [columns[i][None, :] if i in columns else rows[i][:, None] for i in range(6)]
    channels += [jnp.full((1, 1), 1 / width), jnp.full((1, 1), 1 / height)]
    return jnp.stack([jnp.broadcast_to(c, (height, width)) for c in channels], axis=-1)


def cross_modal_map(words: Float[Array, "B T Q"], image: Float[Array, "B H W V"], *, spatial: bool) -> Mixture:
    """The map that has at word t and place p the channels [image of p, word t, where p lies].

    docs/originals/cmsa.md, section 4.

    Args:
      words: float[B, T, Q], the words' states.
      image: float[B, H, W, V], the image's features.
      spatial: whether the 8 channels of `spatial_map` come last.

    Returns:
      N = T·H·W vectors of V + Q (+ 8) channels in the order (t, h, w), over K = T + H·W vectors: the words, then the places.
    """
    batch, height, width, _ = image.shape
    count, places = words.shape[1], height * width
    image = image.reshape(batch, places, -1)
    where = spatial_map(height, width).reshape(1, places, 8).astype(image.dtype)
    where = jnp.broadcast_to(where[..., : 8 if spatial else 0], (batch, places, 8 if spatial else 0))

    def zeros(*shape: int) -> Array:
        return jnp.zeros((batch, *shape), image.dtype)

    of_words = [zeros(count, image.shape[-1]), words.astype(image.dtype), zeros(count, where.shape[-1])]
    of_places = [image, zeros(places, words.shape[-1]), where]
    vectors = jnp.concatenate([jnp.concatenate(rows, axis=-1) for rows in (of_words, of_places)], axis=1)
    # Each is the sum of its word's vector and of its place's: their mean, taken twice.
    which_word = jnp.repeat(jnp.eye(count, dtype=image.dtype), places, axis=0)
    which_place = jnp.tile(jnp.eye(places, dtype=image.dtype), (count, 1))
    weights = jnp.concatenate([which_word, which_place], axis=-1) / 2
    return Mixture(jnp.broadcast_to(weights[None], (batch, *weights.shape)), 2 * vectors)


class NonLocal(nn.Module):
    """norm(project(Σ_j A_ij value_j)) with A = softmax_j(theta_i·phi_j): every position reads from all.

    docs/originals/cmsa.md, section 4.

    The scores are not scaled. The normalisation's scale and bias start at 0, and so does the result.

    X. Wang, R. Girshick, A. Gupta, K. He, "Non-local Neural Networks", CVPR 2018, the embedded Gaussian.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Mixture, *, train: bool) -> tuple[Mixture, dict[str, Array]]:
        """Returns what the block adds to x, and the intermediates.

        Returns:
          The result, without a residual, and `theta`, `phi`, `value` [B, N, D/2] and `attention` float32[B, N, N].
        """
        width = x.vectors.shape[-1]
        theta, phi, value = (Linear(width // 2, self.dtype, name=name)(x.vectors) for name in ("theta", "phi", "value"))
        pairs = jnp.einsum("bki,bli->bkl", theta, phi, preferred_element_type=wide(self.dtype))
        weights = widened(x.weights)
        scores = jnp.einsum("bnk,bkl,bml->bnm", weights, pairs, weights, optimize=[(0, 1), (0, 1)])
        attention = jax.nn.softmax(scores, axis=-1)
        read = jnp.einsum("bnm,bmk->bnk", attention.astype(self.dtype), x.weights.astype(self.dtype))
        vectors = Linear(width, self.dtype, name="project")(value)
        norm = BatchNorm(scale_init=nn.initializers.zeros, dtype=self.dtype, name="norm")
        # The statistics are those of all positions.
        vectors = norm(vectors, train=train, of=Mixture(read, vectors).dense())
        out = {"theta": theta, "phi": phi, "value": value}
        out = {name: Mixture(x.weights, v).dense() for name, v in out.items()}
        return Mixture(read, vectors), out | {"attention": attention}
