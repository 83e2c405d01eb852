"""Residual networks that weight their channels: SE-ResNet.

J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018, as the package `pretrainedmodels` builds them (in a
bottleneck, the first convolution has the stride), without the classifier. At the end of each block the image as a whole decides
how much of each channel goes on:

    x ─┬─ 1×1 ── 3×3 ── 1×1 ─┬──────────────────────────── · ── + ── relu
       │                     └─ mean ── MLP ── sigmoid ────┘    │
       └────────────────────────────────────────────────────────┘
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.conv import FAN_IN_UNIFORM, Conv
from jaxvqa.models.layers.conv_norm import ConvNorm
from jaxvqa.models.layers.pooling import global_average, max_pool


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution and their weighting beside a shortcut.

    Attributes:
      width: number of channels inside, a quarter of the output's.
      stride: stride of the first convolution and of the shortcut.
      reduction: by how much the weighting's hidden layer is narrower than the output.
      dtype: type of the multiplications and of the result.
    """

    width: int
    stride: int
    reduction: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Returns relu(shortcut(x) + weights(F(x)) · F(x))."""

        def unit(x: Array, features: int, kernel: int, stride: int, name: str) -> Array:
            make = ConvNorm(features, kernel, stride, kernel // 2, self.dtype, FAN_IN_UNIFORM, name=name)
            return make(x, train)

        features = 4 * self.width
        y = nn.relu(unit(x, self.width, 1, self.stride, "first"))
        y = nn.relu(unit(y, self.width, 3, 1, "second"))
        y = unit(y, features, 1, 1, "third")
        weights = global_average(y)[:, None, None]
        weights = nn.relu(Conv(features // self.reduction, 1, dtype=self.dtype, name="squeeze")(weights))
        weights = nn.sigmoid(Conv(features, 1, dtype=self.dtype, name="excite")(weights))
        if x.shape[-1] != features or self.stride != 1:
            x = unit(x, features, 1, self.stride, "shortcut")
        return nn.relu(x + weights * y)


class SEResNet(nn.Module):
    """The network up to the last stage.

    Attributes:
      blocks: number of blocks in each stage.
      width: channels of the stem and inside the first stage's blocks; each further stage doubles them.
      reduction: by how much the weighting's hidden layers are narrower than the blocks' output.
      dtype: type of the multiplications and of the maps; parameters and statistics are float32.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    reduction: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `layer0`, the stem's after its pool, and `layer1`, `layer2`, ….

        Args:
          image: float[B, H, W, C], normalised.
          train: normalises by the batch's statistics and updates the running ones (collection `batch_stats`).
        """
        x = nn.relu(ConvNorm(self.width, 7, 2, 3, self.dtype, FAN_IN_UNIFORM, name="stem")(image, train))
        out = {"layer0": max_pool(x, 3, 2, 0, ceil=True)}
        for s, count in enumerate(self.blocks, 1):
            x = out[f"layer{s - 1}"]
            for i in range(count):
                stride = 2 if s > 1 and i == 0 else 1
                name = f"stage_{s}_block_{i}"
                x = Bottleneck(self.width * 2 ** (s - 1), stride, self.reduction, self.dtype, name=name)(x, train)
            out[f"layer{s}"] = x
        return out
