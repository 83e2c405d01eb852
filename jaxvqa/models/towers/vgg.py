"""Plain deep convolutional networks for images: VGG.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, as torchvision
builds them, without the classifier. Five blocks of 3×3 convolutions, each followed by a pool that halves the image:

    image ── block_1 ── pool ── block_2 ── pool ── block_3 ── pool ── block_4 ── pool ── block_5 ── pool
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, kaiming_fan_out
from jaxvqa.models.layers.pooling import max_pool

BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth, with the classifier's three layers -> number of convolutions in each block."""


class VGG(nn.Module):
    """The network up to its last pool.

    Attributes:
      depth: 16 or 19.
      norm: whether each convolution is followed by batch normalisation.
      widths: channels of each block.
    """

    depth: int = 16
    norm: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: after each block, `conv1` to `conv5`, and after its pool, `pool1` to `pool5`.

        `conv6` is another name of the last pool's: a sixth level with nothing learned in it.
        """
        if self.depth not in BLOCKS:
            raise ConfigError(f"A VGG's depth is {self.depth}{choose(self.depth, BLOCKS)}")
        out: dict[str, Array] = {}
        x = image
        for b, (count, width) in enumerate(zip(BLOCKS[self.depth], self.widths, strict=True), 1):
            init = kaiming_fan_out(3, width)
            for i in range(count):
                name = f"block_{b}_conv_{i}"
                zeros = nn.initializers.zeros
                x = Conv(width, 3, 1, 1, True, init, self.dtype, bias_init=zeros, name=name)(x)
                if self.norm:
                    x = BatchNorm(dtype=self.dtype, name=f"block_{b}_norm_{i}")(x, train=train)
                x = nn.relu(x)
            out[f"conv{b}"] = x
            x = out[f"pool{b}"] = max_pool(x, 2, 2, 0)
        out["conv6"] = x
        return out
