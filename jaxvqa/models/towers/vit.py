"""The vision transformer of BLIP, as `timm` has it, and the same over regions instead of patches.

A. Dosovitskiy and others, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021;
docs/originals/blip.md, section 3:

    image ── patches, a class token in front, + positions ── block_0 ── … ── norm
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvqa.models.layers.conv import Conv
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import INIT, Block, LayerNorm, numbered, usual_block

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
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None
    drop_path: float = 0.0
    remat: int = 0
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
                epsilon=EPSILON,
                drop_path=drop_paths(self.drop_path, self.depth)[i],
                maps=not again,
                dtype=self.dtype,
                name=f"block_{i}",
            )
            x, maps, _ = _again(block, x, rows, train) if again else block(x, rows, train=train)
            out |= {f"block_{i}": x} | numbered(maps, i)
        out["tokens"] = LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x)
        return out["tokens"][:, 0], out

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
        patches = patches.reshape(len(image), -1, self.width)
        x = jnp.concatenate([self.class_token(len(image)), patches], axis=1)
        x = x + self.param("position", INIT, x.shape[1:]).astype(self.dtype)[None]
        pooled, out = self.encode(x, train=train)
        return pooled, out | {"patches": patches}


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
