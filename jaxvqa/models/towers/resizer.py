"""A small network that learns to shrink images before another network reads them.

H. Talebi, P. Milanfar, "Learning to Resize Images for Computer Vision Tasks", ICCV 2021, with one residual block:

    image ── 7×7 ── 1×1 ── norm ── resize ─┬─ 3×3 ── 3×3 ─ + ── 3×3 ── norm ── + ── 7×7 ── + ── small image
      │                                    ├───────────────┘                   │           │
      │                                    └───────────────────────────────────┘           │
      └──────────────────────────── resize ────────────────────────────────────────────────┘
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import FAN_IN_UNIFORM, Conv
from jaxvqa.models.layers.conv_norm import ConvNorm
from jaxvqa.precision import widened


class Resizer(nn.Module):
    """Images of any size to images of one size.

    Attributes:
      size: height and width of the result.
      width: channels inside.
    """

    size: int = 224
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B s s C"]:
        """Resizes images.

        Args:
          image: float[B, H, W, C].
          train: normalises by the batch's statistics and updates the running ones (collection `batch_stats`).
        """

        def resize(x: Array) -> Array:
            shape = (len(x), self.size, self.size, x.shape[-1])
            return jax.image.resize(widened(x), shape, "bilinear", antialias=False).astype(self.dtype)

        def conv(x: Array, features: int, kernel: int, name: str) -> Array:
            return Conv(features, kernel, 1, kernel // 2, dtype=self.dtype, name=name)(x)

        def conv_norm(x: Array, name: str) -> Array:
            return ConvNorm(self.width, 3, kernel_init=FAN_IN_UNIFORM, dtype=self.dtype, name=name)(x, train)

        def act(x: Array) -> Array:
            return nn.leaky_relu(x, 0.2)

        x = act(conv(act(conv(image, self.width, 7, "conv_1")), self.width, 1, "conv_2"))
        x = small = resize(BatchNorm(dtype=self.dtype, name="norm_2")(x, train=train))
        x = x + conv_norm(act(conv_norm(x, "block_first")), "block_second")
        x = BatchNorm(dtype=self.dtype, name="norm_3")(conv(x, self.width, 3, "conv_3"), train=train)
        return conv(x + small, image.shape[-1], 7, "conv_4") + resize(image)
