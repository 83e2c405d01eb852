"""Split-attention networks for images: ResNeSt.

H. Zhang and others, "ResNeSt: Split-Attention Networks", CVPR workshops 2022 (arXiv 2004.08955), with its deep stem and with
averages in the place of strided convolutions, without the classifier:

    image ── 3×3/2 ── 3×3 ── 3×3 ── pool ── stage_1 ── stage_2 /2 ── stage_3 /2 ── stage_4 /2

In each block, `radix` convolutions look at parts of the channels, and the image as a whole decides how much of each of them
goes on:

    x ─┬─ part 0 ── 3×3 ── u₀ ─┬─────────────── · a₀ ─┐
       └─ part 1 ── 3×3 ── u₁ ─┼─────────────── · a₁ ─┴─ + ──
                               └─ mean(u₀+u₁) ── MLP ── softmax over the two
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, kaiming_fan_out
from jaxvqa.models.layers.conv_norm import ConvNorm, Stage
from jaxvqa.models.layers.pooling import average_pool, global_average, max_pool
from jaxvqa.precision import widened


class SplitAttention(nn.Module):
    """Several 3×3 convolutions, weighted for each image and channel; of one cardinal group.

    Attributes:
      width: number of input and output channels.
      radix: number of convolutions, each over its own part of the input.
    """

    width: int
    radix: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"], train: bool) -> Float[Array, "B H W D"]:
        """Returns Σ_r a_r · u_r; what `a` is goes into the collection `intermediates` as `attention`, float32[B, radix · D]."""

        def conv(features: int, kernel: int, bias: bool, groups: int, name: str) -> Conv:
            init = kaiming_fan_out(kernel, features)
            return Conv(features, kernel, 1, kernel // 2, bias, init, self.dtype, groups, name=name)

        def norm(name: str) -> BatchNorm:
            return BatchNorm(dtype=self.dtype, name=name)

        y = conv(self.radix * self.width, 3, False, self.radix, "conv")(x)
        y = nn.relu(norm("conv_norm")(y, train=train))
        splits = jnp.split(y, self.radix, axis=-1)
        # The mean of the sum, of maps that are there already.
        means = jnp.split(global_average(y)[:, None, None], self.radix, axis=-1)
        context = functools.reduce(jnp.add, means)
        hidden = conv(max(self.width * self.radix // 4, 32), 1, True, 1, "reduce")(context)
        hidden = nn.relu(norm("reduce_norm")(hidden, train=train))
        scores = conv(self.radix * self.width, 1, True, 1, "expand")(hidden)
        scores = widened(scores).reshape(len(x), self.radix, 1, 1, self.width)
        attention = jax.nn.softmax(scores, axis=1)
        self.sow("intermediates", "attention", attention.reshape(len(x), -1))
        attention = attention.astype(self.dtype)
        return functools.reduce(jnp.add, [attention[:, r] * split for r, split in enumerate(splits)])


class Bottleneck(nn.Module):
    """A 1×1 convolution, split attention and a 1×1 convolution beside a shortcut.

    Attributes:
      width: number of channels inside.
      features: number of output channels.
      stride: by how much the block shrinks the image.
      radix: of the split attention.
    """

    width: int
    features: int
    stride: int
    radix: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Returns relu(shortcut(x) + F(x))."""
        y = ConvNorm(self.width, 1, relu=True, dtype=self.dtype, name="first")(x, train)
        y = SplitAttention(self.width, self.radix, self.dtype, name="split")(y, train)
        if self.stride > 1:
            y = average_pool(y, 3, self.stride, 1)  # zeros around the map count; below there are none to count
        y = ConvNorm(self.features, 1, dtype=self.dtype, name="third")(y, train)
        if x.shape[-1] != self.features or self.stride > 1:
            x = average_pool(x, self.stride, self.stride, count_padding=False, ceil=True)
            x = ConvNorm(self.features, 1, dtype=self.dtype, name="shortcut")(x, train)
        return nn.relu(x + y)


class ResNeSt(nn.Module):
    """The network up to the last stage.

    Attributes:
      blocks: number of blocks in each stage.
      stem_width: channels of the stem's first two convolutions; its third has twice as many.
      bottleneck_width: channels inside the first stage's blocks; each further stage doubles them.
      features: channels of the first stage's map; each further stage doubles them.
      radix: number of convolutions in each split attention.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem_width: int = 32
    bottleneck_width: int = 64
    features: int = 256
    radix: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `stem` before its normalisation, `pool`, and `layer1`, `layer2`, …."""
        out: dict[str, Array] = {}
        width, options = self.stem_width, {"relu": True, "dtype": self.dtype}
        x = ConvNorm(width, 3, 2, **options, name="stem_0")(image, train)
        x = ConvNorm(width, 3, **options, name="stem_1")(x, train)
        x, out["stem"] = ConvNorm(2 * width, 3, **options, name="stem_2").both(x, train)
        x = out["pool"] = max_pool(x)
        for i, count in enumerate(self.blocks):
            widths = self.bottleneck_width * 2**i, self.features * 2**i
            block = functools.partial(Bottleneck, *widths, radix=self.radix, dtype=self.dtype)
            x = out[f"layer{i + 1}"] = Stage(block, count, min(i + 1, 2), name=f"stage_{i + 1}")(x, train)
        return out
