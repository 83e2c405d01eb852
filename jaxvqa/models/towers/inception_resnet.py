"""Inception networks with shortcuts: Inception-ResNet v2.

C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", AAAI 2017, as the package `pretrainedmodels` builds it, without the classifier:

    image ── stem ── mixed ── 10 × A ── halve ── 20 × B ── halve ── 10 × C ── 1×1
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.conv import Conv
from jaxvqa.models.towers.inception import Row, Units, halve, smooth

MIXED_5B: tuple[Row, ...] = (
    ((96, 1, 1),),
    ((48, 1, 1), (64, 5, 5)),
    ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
    (smooth, (64, 1, 1)),
)
A: tuple[Row, ...] = (((32, 1, 1),), ((32, 1, 1), (32, 3, 3)), ((32, 1, 1), (48, 3, 3), (64, 3, 3)))
MIXED_6A: tuple[Row, ...] = (((384, 3, 3, 2),), ((256, 1, 1), (256, 3, 3), (384, 3, 3, 2)), (halve,))
B: tuple[Row, ...] = (((192, 1, 1),), ((128, 1, 1), (160, 1, 7), (192, 7, 1)))
MIXED_7A: tuple[Row, ...] = (
    ((256, 1, 1), (384, 3, 3, 2)),
    ((256, 1, 1), (288, 3, 3, 2)),
    ((256, 1, 1), (288, 3, 3), (320, 3, 3, 2)),
    (halve,),
)
C: tuple[Row, ...] = (((192, 1, 1),), ((192, 1, 1), (224, 1, 3), (256, 3, 1)))


class Residual(nn.Module):
    """relu(x + scale · F(x)), where F is rows and a 1×1 convolution of what they give.

    Attributes:
      specs: the rows.
      scale: what their part is multiplied with.
      relu: whether the sum goes through a ReLU.
      unit: applies the rows.
    """

    specs: tuple[Row, ...]
    scale: float
    relu: bool
    unit: Units

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        """Applies the block."""
        y = self.unit.rows(x, self.specs, "rows")
        y = x + self.scale * Conv(x.shape[-1], 1, dtype=self.unit.dtype, name="project")(y)
        return nn.relu(y) if self.relu else y


class InceptionResNetV2(nn.Module):
    """The network up to its last convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by the original's names: `conv2d_2b`, `mixed_5b`, `repeat`, `mixed_6a`, …, `conv2d_7b`."""

        unit = Units(1e-3, self.dtype, train)

        def repeat(x: Array, specs: tuple[Row, ...], count: int, scale: float, name: str) -> Array:
            for i in range(count):
                x = Residual(specs, scale, True, unit, name=f"{name}_{i}")(x)
            return x

        x = unit(unit(image, (32, 3, 3, 2), "conv_1a"), (32, 3, 3, 1), "conv_2a")
        out = {"conv2d_2b": unit(x, (64, 3, 3), "conv_2b")}
        x = unit(halve(out["conv2d_2b"]), (80, 1, 1), "conv_3b")
        x = halve(unit(x, (192, 3, 3, 1), "conv_4a"))
        x = out["mixed_5b"] = unit.rows(x, MIXED_5B, "mixed_5b")
        x = out["repeat"] = repeat(x, A, 10, 0.17, "block_a")
        x = out["mixed_6a"] = unit.rows(x, MIXED_6A, "mixed_6a")
        x = out["repeat_1"] = repeat(x, B, 20, 0.10, "block_b")
        x = out["mixed_7a"] = unit.rows(x, MIXED_7A, "mixed_7a")
        x = out["repeat_2"] = repeat(x, C, 9, 0.20, "block_c")
        x = out["block8"] = Residual(C, 1.0, False, unit, name="last_block")(x)
        out["conv2d_7b"] = unit(x, (1536, 1, 1), "conv_7b")
        return out
