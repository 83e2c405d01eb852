"""Regions of a picture, whose features are computed beforehand, in place of an encoder of pictures."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.multi_head import PreNormBlock


class Regions(nn.Module):
    """What stands in an image's place has a row for each region, and the region's features and box as its channels.

    Attributes:
      box_frequencies: the last four channels are a box, x1, y1, x2, y2 in shares of the picture; in their place its centre
        and size are given as sines and cosines of so many frequencies, π, 2π, 4π, …, which lets small differences be read. 0:
        as they are.
      depth: blocks in which the regions read one another, as patches do in a vision transformer. 0: features as they are.
      width: size of a state there.
      heads: heads of each block's attention.
      dtype: type of the multiplications and of the result.
    """

    box_frequencies: int = 0
    depth: int = 0
    width: int = 128
    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B R 1 F"], *, train: bool = False
    ) -> tuple[Float[Array, "B E"], dict[str, Array]]:
        """Encodes regions.

        Args:
          image: float[B, R, 1, F]; zero rows are padding, which nothing reads.
          train: changes nothing; there is no dropout.

        Returns:
          [B, E], the state that began as the mean over the regions; and `tokens` [B, 1 + R, E], this one and each region's,
          `real` bool[B, 1 + R], which of them are there, and of each block `attention_i` float32[B, K, 1 + R, 1 + R].
        """
        features = image[:, :, 0].astype(jnp.float32)
        real = jnp.any(features != 0, axis=-1, keepdims=True)
        if self.box_frequencies:
            features = jnp.concatenate([features[..., :-4], _waves(features[..., -4:], self.box_frequencies)], axis=-1)
            features = jnp.where(real, features, 0)
        mean = jnp.sum(features, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        x = jnp.concatenate([mean[:, None], features], axis=1).astype(self.dtype)
        out = {"real": jnp.pad(real[..., 0], ((0, 0), (1, 0)), constant_values=True)}
        if self.depth:
            x = Linear(self.width, self.dtype, name="embed")(x)
        for i in range(self.depth):
            block = PreNormBlock(self.heads, 4 * self.width, "gelu", dtype=self.dtype, name=f"block_{i}")
            x, out[f"attention_{i}"], _ = block(x, out["real"][:, None, None], train=train)
        return x[:, 0], out | {"tokens": x}


def _waves(boxes: Float[Array, "B R 4"], frequencies: int) -> Float[Array, "B R W"]:
    """Sines and cosines of a box's centre and size: 8 channels a frequency."""
    low, high = boxes[..., :2], boxes[..., 2:]
    place = jnp.concatenate([(low + high) / 2, high - low], axis=-1)
    angles = jnp.multiply.outer(place, jnp.pi * 2.0 ** jnp.arange(frequencies))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*boxes.shape[:-1], -1)
