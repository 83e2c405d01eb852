"""A convolution and the batch normalisation after it, and the residual blocks that are made of these."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.kernels import Pair, pair
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, kaiming_fan_out
from jaxvqa.models.layers.pooling import global_average


def _fan_out(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`kaiming_fan_out` for the square kernel that is asked for."""
    return kaiming_fan_out(shape[0], shape[-1])(key, shape, dtype)


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalisation.

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel.
      stride: step between output positions.
      padding: zeros added on each side; half of the kernel without, which keeps the image's size.
      relu: whether a ReLU comes last.
      kernel_init: initialiser of the kernel; torchvision's for residual networks by default.
      epsilon: added to the variance.
    """

    features: int
    kernel: Pair
    stride: int = 1
    padding: Pair | None = None
    relu: bool = False
    kernel_init: nn.initializers.Initializer = _fan_out
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Convolves and normalises."""
        return self.both(x, train)[0]

    @nn.compact
    def both(self, x: Float[Array, "B H W I"], train: bool) -> tuple[Float[Array, "B P Q O"], Float[Array, "B P Q O"]]:
        """Returns the result, and what the convolution gave."""
        high, wide = pair(self.kernel)
        padding = (high // 2, wide // 2) if self.padding is None else self.padding
        y = Conv(self.features, self.kernel, self.stride, padding, False, self.kernel_init, self.dtype, name="conv")(x)
        normed = BatchNorm(self.epsilon, dtype=self.dtype, name="norm")(y, train=train)
        return nn.relu(normed) if self.relu else normed, y


class Residual(nn.Module):
    """relu(shortcut(x) + F(x)), where F is two or three normalised convolutions with a ReLU between them.

    The shortcut is the identity, or a 1×1 convolution where the shapes differ.

    Attributes:
      convs: output channels, kernel's size and stride of each convolution.
      kernel_init: initialiser of the kernels.
      reduction: with it, F(x) is weighted channel by channel by what a two-layer map makes of its mean over the image, so many
        times narrower inside ("squeeze and excitation").
    """

    convs: tuple[tuple[int, int, int], ...]
    kernel_init: nn.initializers.Initializer = _fan_out
    reduction: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Applies the block."""

        def conv_norm(x: Array, features: int, kernel: int, stride: int, name: str, relu: bool = False) -> Array:
            options = {"relu": relu, "kernel_init": self.kernel_init, "dtype": self.dtype}
            return ConvNorm(features, kernel, stride, **options, name=name)(x, train)

        y = x
        for i, conv in enumerate(self.convs, 1):
            y = conv_norm(y, *conv, ("first", "second", "third")[i - 1], relu=i < len(self.convs))
        features, stride = self.convs[-1][0], math.prod(conv[2] for conv in self.convs)
        if self.reduction:
            weights = global_average(y)[:, None, None]
            weights = nn.relu(Conv(features // self.reduction, 1, dtype=self.dtype, name="squeeze")(weights))
            y = nn.sigmoid(Conv(features, 1, dtype=self.dtype, name="excite")(weights)) * y
        if x.shape[-1] != features or stride != 1:
            x = conv_norm(x, features, 1, stride, "shortcut")
        return nn.relu(x + y)


class Stage(nn.Module):
    """Blocks in turn, the first of which may shrink the image.

    Attributes:
      block: makes a block of the given stride and name.
      count: number of blocks.
      stride: stride of the first block.
    """

    block: Callable[..., nn.Module]
    count: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Applies the blocks."""
        for i in range(self.count):
            x = self.block(stride=self.stride if i == 0 else 1, name=f"block_{i}")(x, train)
        return x
