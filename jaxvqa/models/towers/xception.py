"""Networks of depthwise separable convolutions for images: Xception.

F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, as the package `pretrainedmodels` builds
it, without the classifier:

    image ── 3×3/2 ── 3×3 ── block_1 /2 ── block_2 /2 ── block_3 /2 ── block_4 … 11 ── block_12 /2 ── separable ── separable
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.kernels import convolve_each_channel
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import FAN_IN_UNIFORM, Conv
from jaxvqa.models.layers.conv_norm import ConvNorm
from jaxvqa.models.layers.linear import fan_in_uniform
from jaxvqa.models.layers.pooling import max_pool


class Separable(nn.Module):
    """A 3×3 convolution of each channel by itself, then a 1×1 convolution of them all; both without bias.

    Attributes:
      features: number of output channels.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Keeps the image's size."""
        kernel = self.param("depthwise", fan_in_uniform(9), (3, 3, x.shape[-1])).astype(self.dtype)
        around = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        each = convolve_each_channel(around, kernel)
        return Conv(self.features, 1, 1, 0, False, dtype=self.dtype, name="pointwise")(each)


class Block(nn.Module):
    """Separable convolutions beside a shortcut.

    Attributes:
      widths: number of output channels of each convolution.
      stride: by how much the block shrinks the image.
      relu_first: whether a ReLU comes before the first convolution, as before all others.
    """

    widths: tuple[int, ...]
    stride: int
    relu_first: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Returns shortcut(x) + F(x)."""
        y = x
        for i, width in enumerate(self.widths):
            y = nn.relu(y) if i or self.relu_first else y
            y = Separable(width, self.dtype, name=f"separable_{i}")(y)
            y = BatchNorm(dtype=self.dtype, name=f"norm_{i}")(y, train=train)
        if self.stride > 1:
            y = max_pool(y, 3, self.stride, 1)
        if self.stride > 1 or x.shape[-1] != self.widths[-1]:
            x = ConvNorm(
                self.widths[-1], 1, self.stride, kernel_init=FAN_IN_UNIFORM, dtype=self.dtype, name="shortcut"
            )(x, train)
        return x + y


class Xception(nn.Module):
    """The network up to its last normalisation.

    Attributes:
      width: channels of the first convolution, by which all others are measured.
      middle: channels of the blocks in the middle.
      count: number of these blocks.
    """

    width: int = 32
    middle: int = 728
    count: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `bn1`, `block1`, `block2`, …, `bn3` and `bn4`; a norm's before its ReLU."""
        w, m = self.width, self.middle
        blocks = [
            ((4 * w, 4 * w), 2),
            ((8 * w, 8 * w), 2),
            ((m, m), 2),
            *[((m, m, m), 1)] * self.count,
            ((m, 32 * w), 2),
        ]
        out: dict[str, Array] = {}
        options = {"padding": 0, "kernel_init": FAN_IN_UNIFORM, "dtype": self.dtype}
        out["bn1"] = ConvNorm(w, 3, 2, **options, name="stem_0")(image, train)
        x = ConvNorm(2 * w, 3, relu=True, **options, name="stem_1")(nn.relu(out["bn1"]), train)
        for i, (widths, stride) in enumerate(blocks, 1):
            x = out[f"block{i}"] = Block(widths, stride, i > 1, self.dtype, name=f"block_{i}")(x, train)
        for i, width in ((3, 48 * w), (4, 64 * w)):
            x = Separable(width, self.dtype, name=f"separable_{i}")(x)
            out[f"bn{i}"] = BatchNorm(dtype=self.dtype, name=f"norm_{i}")(x, train=train)
            x = nn.relu(out[f"bn{i}"])
        return out
