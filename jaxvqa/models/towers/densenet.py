"""Densely connected networks for images: DenseNet.

G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, "Densely Connected Convolutional Networks", CVPR 2017, as torchvision builds
them, without the classifier. In a block, each layer reads what all layers before it gave, oldest first:

    image ── 7×7/2 ── pool ── block_1 ── halve ── block_2 ── halve ── block_3 ── halve ── block_4 ── norm
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv
from jaxvqa.models.layers.pooling import average_pool, max_pool


class DenseNet(nn.Module):
    """The network up to its last normalisation.

    Attributes:
      blocks: number of layers in each block.
      growth: channels that each layer adds.
      width: channels of the stem.
      bottleneck: width of a layer's 1×1 convolution, in multiples of `growth`.
    """

    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    width: int = 64
    bottleneck: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `pool0`, `denseblock1`, `transition1`, `denseblock2`, …, and `norm5` before its ReLU."""

        def conv(features: int, kernel: int, name: str, stride: int = 1) -> Conv:
            # He's initialisation by the number of inputs, torchvision's choice for this network.
            init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            return Conv(features, kernel, stride, kernel // 2, False, init, self.dtype, name=name)

        def norm(x: Array, name: str) -> Array:
            return BatchNorm(dtype=self.dtype, name=name)(x, train=train)

        out: dict[str, Array] = {}
        x = nn.relu(norm(conv(self.width, 7, "stem_conv", 2)(image), "stem_norm"))
        x = out["pool0"] = max_pool(x)
        for b, count in enumerate(self.blocks, 1):
            for i in range(1, count + 1):
                name = f"block_{b}_layer_{i}"
                y = nn.relu(norm(x, f"{name}_norm_1"))
                y = conv(self.bottleneck * self.growth, 1, f"{name}_conv_1")(y)
                y = nn.relu(norm(y, f"{name}_norm_2"))
                x = jnp.concatenate([x, conv(self.growth, 3, f"{name}_conv_2")(y)], axis=-1)
            out[f"denseblock{b}"] = x
            if b < len(self.blocks):
                y = nn.relu(norm(x, f"transition_{b}_norm"))
                y = conv(x.shape[-1] // 2, 1, f"transition_{b}_conv")(y)
                x = out[f"transition{b}"] = average_pool(y, 2, 2)
        out["norm5"] = norm(x, "norm")
        return out
