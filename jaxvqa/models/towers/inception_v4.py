"""Networks with rows of different convolutions side by side: Inception v4.

C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on
Learning", AAAI 2017, as the package `pretrainedmodels` builds it, without the classifier:

    image ── stem ── 4 × A ── halve ── 7 × B ── halve ── 3 × C
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.towers.inception import Row, Units, halve, smooth

A: tuple[Row, ...] = (
    ((96, 1, 1),),
    ((64, 1, 1), (96, 3, 3)),
    ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
    (smooth, (96, 1, 1)),
)
B: tuple[Row, ...] = (
    ((384, 1, 1),),
    ((192, 1, 1), (224, 1, 7), (256, 7, 1)),
    ((192, 1, 1), (192, 7, 1), (224, 1, 7), (224, 7, 1), (256, 1, 7)),
    (smooth, (128, 1, 1)),
)
LAYERS: tuple[tuple[Row, ...] | None, ...] = (
    (((32, 3, 3, 2),),),
    (((32, 3, 3, 1),),),
    (((64, 3, 3),),),
    ((halve,), ((96, 3, 3, 2),)),
    (((64, 1, 1), (96, 3, 3, 1)), ((64, 1, 1), (64, 1, 7), (64, 7, 1), (96, 3, 3, 1))),
    (((192, 3, 3, 2),), (halve,)),
    *[A] * 4,
    (((384, 3, 3, 2),), ((192, 1, 1), (224, 3, 3), (256, 3, 3, 2)), (halve,)),
    *[B] * 7,
    (((192, 1, 1), (192, 3, 3, 2)), ((256, 1, 1), (256, 1, 7), (320, 7, 1), (320, 3, 3, 2)), (halve,)),
    *[None] * 3,
)
"""The layers, numbered as in the original; None for those of C, which branch a second time."""


class BlockC(nn.Module):
    """Four rows, two of which end in two units side by side.

    Attributes:
      unit: applies a unit.
    """

    unit: Units

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        """Applies the rows."""
        unit = self.unit
        y = unit(x, (384, 1, 1), "row_1_unit_0")
        z = unit(x, (384, 1, 1), "row_2_unit_0")
        z = unit(unit(z, (448, 3, 1), "row_2_unit_1"), (512, 1, 3), "row_2_unit_2")
        results = [
            unit(x, (256, 1, 1), "row_0_unit_0"),
            unit(y, (256, 1, 3), "row_1_wide"),
            unit(y, (256, 3, 1), "row_1_high"),
            unit(z, (256, 1, 3), "row_2_wide"),
            unit(z, (256, 3, 1), "row_2_high"),
            unit(smooth(x), (256, 1, 1), "row_3_unit_0"),
        ]
        return jnp.concatenate(results, axis=-1)


class InceptionV4(nn.Module):
    """The network up to its last layer."""

    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `features0` to `features21`, those of the layers."""
        out: dict[str, Array] = {}
        unit, x = Units(1e-3, self.dtype, train), image
        for i, rows in enumerate(LAYERS):
            name = f"layer_{i}"
            x = out[f"features{i}"] = unit.rows(x, rows, name) if rows else BlockC(unit, name=name)(x)
        return out
