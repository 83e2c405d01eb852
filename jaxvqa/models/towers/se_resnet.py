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

from jaxvqa.models.layers.conv import FAN_IN_UNIFORM
from jaxvqa.models.layers.conv_norm import ConvNorm, Residual, Stage
from jaxvqa.models.layers.pooling import max_pool


class SEResNet(nn.Module):
    """The network up to the last stage.

    Attributes:
      blocks: number of blocks in each stage.
      width: channels of the stem and inside the first stage's blocks; each further stage doubles them.
      reduction: by how much the weighting's hidden layers are narrower than the blocks' output.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    reduction: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `layer0`, the stem's after its pool, and `layer1`, `layer2`, …."""
        init = FAN_IN_UNIFORM
        x = ConvNorm(self.width, 7, 2, relu=True, kernel_init=init, dtype=self.dtype, name="stem")(image, train)
        x = max_pool(x, 3, 2, 0, ceil=True)
        out = {"layer0": x}
        for s, count in enumerate(self.blocks, 1):
            width = self.width * 2 ** (s - 1)

            def block(stride: int, name: str, width: int = width) -> nn.Module:
                convs = (width, 1, stride), (width, 3, 1), (4 * width, 1, 1)
                return Residual(convs, init, self.reduction, self.dtype, name=name)

            x = out[f"layer{s}"] = Stage(block, count, 1 if s == 1 else 2, name=f"stage_{s}")(x, train)
        return out
