"""Regions of a picture, whose features are computed beforehand, in place of an encoder of pictures."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.linear import Linear


class Regions(nn.Module):
    """What stands in an image's place has a row for each region, and the region's features and box as its channels.

    Attributes:
      width: size E of a region's state: a map of its features, and one of its box, x1, y1, x2, y2 in shares of the picture in
        the last four channels, whose centre and size are read as sines and cosines. 0: features and box as they are.
      frequencies: of these, π, 2π, 4π, …: so many.
      dtype: type of the multiplications and of the result.
    """

    width: int = 0
    frequencies: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B R 1 F"], *, train: bool = False
    ) -> tuple[Float[Array, "B E"], dict[str, Array]]:
        """Returns [B, E], the mean over the regions; and `tokens` [B, 1 + R, E], the mean and each region's state, and `real`
        bool[B, 1 + R], which of them are there.

        Args:
          image: float[B, R, 1, F]; zero rows are padding, and count for nothing in the mean.
          train: changes nothing.
        """
        x = image[:, :, 0].astype(jnp.float32)
        real = jnp.any(x != 0, axis=-1, keepdims=True)
        if self.width:
            place = Linear(self.width, self.dtype, name="place")(_waves(x[..., -4:], self.frequencies))
            x = Linear(self.width, self.dtype, name="features")(x[..., :-4]) + place
        x = jnp.where(real, x, 0).astype(self.dtype)
        mean = jnp.sum(x, axis=1, dtype=jnp.float32) / jnp.maximum(jnp.sum(real, axis=1), 1)
        mean = mean.astype(self.dtype)
        is_there = jnp.pad(real[..., 0], ((0, 0), (1, 0)), constant_values=True)
        return mean, {"tokens": jnp.concatenate([mean[:, None], x], axis=1), "real": is_there}


def _waves(boxes: Float[Array, "B R 4"], frequencies: int) -> Float[Array, "B R W"]:
    """Sines and cosines of a box's centre and size: 8 channels a frequency."""
    low, high = boxes[..., :2], boxes[..., 2:]
    place = jnp.concatenate([(low + high) / 2, high - low], axis=-1)
    angles = jnp.multiply.outer(place, jnp.pi * 2.0 ** jnp.arange(frequencies))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*boxes.shape[:-1], -1)
