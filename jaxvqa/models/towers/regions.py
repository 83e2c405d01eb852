"""Regions of an image, whose features are computed beforehand, instead of an encoder of images."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.precision import widened


class Regions(nn.Module):
    """Takes features as they are: instead of an image comes a row for each region, with the features as its channels."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B R 1 F"], *, train: bool = False
    ) -> tuple[Float[Array, "B F"], dict[str, Array]]:
        """Returns [B, F], the mean over the regions; and `tokens` [B, 1 + R, F], the mean and each region's features, and
        `real` bool[B, 1 + R], which of them are there.

        Args:
          image: float[B, R, 1, F]; zero rows are padding, and count for nothing in the mean.
          train: changes nothing.
        """
        features = widened(image[:, :, 0])
        real = jnp.any(features != 0, axis=-1, keepdims=True)
        mean = jnp.sum(features, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        tokens = jnp.concatenate([mean[:, None], features], axis=1).astype(self.dtype)
        is_there = jnp.pad(real[..., 0], ((0, 0), (1, 0)), constant_values=True)
        return mean.astype(self.dtype), {"tokens": tokens, "real": is_there}
