"""The vision transformer of BLIP, as `timm` has it, and the same over regions, or over a network's map, instead of patches.

A. Dosovitskiy and others, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021;
docs/originals/blip.md, section 3:

    image ── patches, a class token in front, + positions ── block_0 ── … ── norm
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import INIT, Block, LayerNorm, numbered, usual_block
from jaxvqa.models.towers.resnet import ResNet

EPSILON = 1e-6


def drop_paths(rate: float, depth: int) -> list[float]:
    """The probability of each block, which grows evenly from 0 to `rate`, that its parts add nothing in training."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class PreNormEncoder(nn.Module):
    """Blocks behind a class token, and a last normalisation: what follows the embedding of patches or regions.

    Attributes:
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      hidden: width between the two linear layers of a block; four times the width without.
      drop_path: probability with which the last block's parts add nothing to an example, in training; it grows linearly
        from 0 at the first block.
      remat: how many of the last blocks are computed again in the backward pass, instead of keeping what is inside them.
      epsilon: of every normalisation.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None
    drop_path: float = 0.0
    remat: int = 0
    epsilon: float = EPSILON
    dtype: Any = jnp.float32

    def encode(
        self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None = None, *, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """The blocks over embedded tokens; to be called where the encoder makes its parts.

        Args:
          x: float[B, N, D], the class token first.
          mask: bool[B, N], False for tokens that nothing reads.
          train: applies drop path, which needs the random stream "dropout".

        Returns:
          The class token's last state, and the named intermediates: those of `apply_blocks`, and `tokens` [B, N, D], all
          last states, normalised.
        """
        out: dict[str, Array] = {"embedded": x}
        rows = None if mask is None else mask[:, None, None]
        for i in range(self.depth):
            again = i >= self.depth - self.remat
            block: Any = usual_block(
                self.width,
                self.heads,
                self.hidden or 4 * self.width,
                "gelu",
                norm_first=True,
                epsilon=self.epsilon,
                drop_path=drop_paths(self.drop_path, self.depth)[i],
                maps=not again,
                dtype=self.dtype,
                name=f"block_{i}",
            )
            x, maps, _ = _again(block, x, rows, train) if again else block(x, rows, train=train)
            out |= {f"block_{i}": x} | numbered(maps, i)
        out["tokens"] = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return out["tokens"][:, 0], out

    def encode_grid(
        self, patches: Float[Array, "B N D"], *, train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """The class token in front, and learned positions; then as `encode`, with `patches` among the intermediates."""
        x = jnp.concatenate([self.class_token(len(patches)), patches], axis=1)
        x = x + self.param("position", INIT, x.shape[1:]).astype(self.dtype)[None]
        pooled, out = self.encode(x, train=train)
        return pooled, out | {"patches": patches}

    def class_token(self, rows: int) -> Float[Array, "B 1 D"]:
        """The learned token in front, for each image."""
        token = self.param("class_token", INIT, (self.width,)).astype(self.dtype)
        return jnp.broadcast_to(token[None, None], (rows, 1, self.width))


def _again(block: Block, x: Array, mask: Array | None, train: bool) -> Any:
    """A block's result, computed once more where its gradient is."""
    return nn.remat(lambda block, x: block(x, mask, train=train))(block, x)


class ViT(PreNormEncoder):
    """The tower for images; the defaults are those of BLIP's base size.

    Attributes:
      patch: height and width of a patch.
    """

    patch: int = 16

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"], *, train: bool = False
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """Encodes images.

        Args:
          image: float[B, H, W, 3], normalised; only images of the size that it began with fit its positions.
          train: applies drop path, which needs the random stream "dropout".

        Returns:
          See `encode`; `patches` [B, N, D] are the patches before positions are added.
        """
        patches = Conv(self.width, self.patch, self.patch, dtype=self.dtype, name="patches")(image)
        return self.encode_grid(patches.reshape(len(image), -1, self.width), train=train)


class RegionViT(PreNormEncoder):
    """The same over the features of regions, whose boxes are among their features: so they need no positions."""

    @nn.compact
    def __call__(
        self, image: Float[Array, "B R 1 F"], *, train: bool = False
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """Encodes images that come as a row of features for each region.

        Args:
          image: float[B, R, 1, F]; zero rows are padding, which nothing reads.
          train: applies drop path, which needs the random stream "dropout".

        Returns:
          See `encode`; `real` bool[B, 1 + R] are the tokens that are there.
        """
        features = image[:, :, 0]
        real = jnp.pad(jnp.any(features != 0, axis=-1), ((0, 0), (1, 0)), constant_values=True)
        rows = Linear(self.width, self.dtype, kernel_init=nn.initializers.lecun_normal(), name="regions")(features)
        x = jnp.concatenate([self.class_token(len(rows)), rows], axis=1)
        pooled, out = self.encode(x, real, train=train)
        return pooled, out | {"real": real}


class GridViT(PreNormEncoder):
    """The same over the places of a convolutional network's last map: the hybrid of the paper.

    Attributes:
      network: makes the network, one of `towers.IN_STAGES`; its statistics are in the collection `batch_stats`.
      map_norm: whether each channel of the map is normalised over the batch. What leaves a rectifier is never negative, and
        what all places of all images have in common outweighs what they differ by, most of all where the network was trained
        on other images.
    """

    network: Callable[..., Any] = ResNet
    map_norm: bool = False

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"], *, train: bool = False
    ) -> tuple[Float[Array, "B D"], dict[str, Array]]:
        """Encodes images.

        Args:
          image: float[B, H, W, 3], normalised; only images of the size that it began with fit its positions.
          train: applies drop path, which needs the random stream "dropout"; normalises by the batch's statistics and updates
            the running ones.

        Returns:
          See `encode`; `patches` [B, N, D] are the map's places, row by row, before positions are added.
        """
        *_, grid = self.network(dtype=self.dtype, name="network").stages(image, train=train).values()
        if self.map_norm:
            grid = BatchNorm(dtype=self.dtype, name="map_norm")(grid, train=train)
        features = grid.reshape(len(image), -1, grid.shape[-1])
        patches = Linear(self.width, self.dtype, kernel_init=nn.initializers.lecun_normal(), name="patches")(features)
        return self.encode_grid(patches, train=train)


CUBIC = -0.75
"""The constant of the cubic kernel that PyTorch resizes with."""


def resized_positions(position: Float[Any, "N D"], tokens: int) -> Float[Array, "M D"]:
    """Position embeddings on another square grid: bicubic, without antialiasing, borders repeated; the class row is kept.

    docs/originals/blip.md, section 3.

    Args:
      position: float[1 + g², D].
      tokens: 1 + G², how many there are to be.
    """
    old, new = (round((count - 1) ** 0.5) for count in (len(position), tokens))
    weights = jnp.asarray(_cubic_weights(old, new), position.dtype)
    grid = jnp.einsum("ai,bj,ijd->abd", weights, weights, position[1:].reshape(old, old, -1), precision="highest")
    return jnp.concatenate([position[:1], grid.reshape(new * new, -1)])


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """How much each of the old places counts at each new one: float64[G, g]."""
    where = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(where).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        t = np.abs(where - (first + tap))
        near = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
        far = ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC
        value = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), value)
    return weights
