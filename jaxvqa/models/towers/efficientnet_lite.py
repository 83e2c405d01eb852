"""Networks of inverted bottlenecks for images: EfficientNet-Lite.

M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in the form that
TensorFlow published for phones: without weighted channels, with ReLU6; as the package `efficientnet_lite_pytorch` builds it,
without the classifier:

    image ── 3×3/2 ── layer1 ── layer2 /2 ── layer3 /2 ── layer4 /2 ── layer5 ── layer6 /2 ── layer7 ── 1×1

Padding is TensorFlow's for any size of image; the package has that of 224 pixels, which is the same for multiples of 32. No
block is dropped in training.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.kernels import convolve_each_channel
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import kaiming_fan_out, same
from jaxvqa.models.layers.conv_norm import ConvNorm

EPSILON = 1e-3
"""Of every normalisation."""

KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
"""Of each layer's blocks: the side of the kernel, the first block's stride, and how many times wider they are inside."""


class Bottleneck(nn.Module):
    """1×1 to more channels, a convolution of each channel by itself, 1×1 to few; beside the identity where shapes agree.

    Attributes:
      features: number of output channels.
      kernel: side of the kernel.
      stride: step between output positions.
      expansion: how many times wider the block is inside; 1: without the first convolution.
    """

    features: int
    kernel: int
    stride: int
    expansion: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Applies the block."""
        y, width = x.astype(self.dtype), x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = nn.relu6(ConvNorm(width, 1, epsilon=EPSILON, dtype=self.dtype, name="expand")(y, train))
        size = (self.kernel, self.kernel, width)
        kernel = self.param("depthwise", kaiming_fan_out(self.kernel, 1), size).astype(self.dtype)
        y = convolve_each_channel(same(y, self.kernel, self.stride), kernel, self.stride)
        y = nn.relu6(BatchNorm(EPSILON, dtype=self.dtype, name="depthwise_norm")(y, train=train))
        y = ConvNorm(self.features, 1, epsilon=EPSILON, dtype=self.dtype, name="project")(y, train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class EfficientNetLite(nn.Module):
    """The network up to its last map; the defaults are the smallest one's, Lite0.

    Attributes:
      stem: channels of the first convolution.
      widths: output channels of each of the seven layers.
      depths: number of blocks in each of them.
      features: channels of the last convolution.
    """

    stem: int = 32
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    features: int = 1280
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `stem`, `layer1` to `layer7`, and `head`."""
        norm: Any = {"epsilon": EPSILON, "dtype": self.dtype}
        x = ConvNorm(self.stem, 3, 2, 0, **norm, name="stem")(same(image, 3, 2), train)
        out = {"stem": nn.relu6(x)}
        x, block = out["stem"], 0
        layers = zip(self.widths, self.depths, KERNELS, STRIDES, EXPANSIONS, strict=True)
        for layer, (width, depth, kernel, stride, expansion) in enumerate(layers, 1):
            for i in range(depth):
                step = stride if i == 0 else 1
                x = Bottleneck(width, kernel, step, expansion, self.dtype, name=f"block_{block}")(x, train)
                block += 1
            out[f"layer{layer}"] = x
        out["head"] = nn.relu6(ConvNorm(self.features, 1, **norm, name="head")(x, train))
        return out
