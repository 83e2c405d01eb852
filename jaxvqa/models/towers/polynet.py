"""Inception networks whose residuals are polynomials: PolyNet.

X. Zhang, Z. Li, C. C. Loy, D. Lin, "PolyNet: A Pursuit of Structural Diversity in Very Deep Networks", CVPR 2017, as the
package `pretrainedmodels` builds it, without the classifier:

    image ── stem ── 10 × A ── halve ── 20 × B ── halve ── 10 × C

With F and G the rows of an Inception-ResNet's block, a two-way module is x + F(x) + G(x), a poly-3 module x + F(x) + F(F(x)) +
F(F(F(x))). All of A are two-way, those of B and C take turns, poly-3 first.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import FAN_IN_UNIFORM, Conv
from jaxvqa.models.towers.inception import Row, Units, halve

ORDER = 3
"""Of the polynomials."""

A: tuple[Row, ...] = (((32, 1, 1), (48, 3, 3), (64, 3, 3)), ((32, 1, 1), (32, 3, 3)), ((32, 1, 1),))
REDUCTION_A: tuple[Row, ...] = (((256, 1, 1), (256, 3, 3), (384, 3, 3, 2)), ((384, 3, 3, 2),), (halve,))
B: tuple[Row, ...] = (((128, 1, 1), (160, 1, 7), (192, 7, 1)), ((192, 1, 1),))
REDUCTION_B: tuple[Row, ...] = (
    ((256, 1, 1), (256, 3, 3), (256, 3, 3, 2)),
    ((256, 1, 1), (256, 3, 3, 2)),
    ((256, 1, 1), (384, 3, 3, 2)),
    (halve,),
)
C: tuple[Row, ...] = (((192, 1, 1), (224, 1, 3), (256, 3, 1)), ((192, 1, 1),))
MODULES = {"a": (A, 10), "b": (B, 20), "c": (C, 10)}
"""Stage -> rows of its modules, and their number."""


class TwoWay(nn.Module):
    """relu(x + scale · (F(x) + G(x))): two sets of rows beside a shortcut.

    Attributes:
      specs: the rows of each.
      scale: what their part is multiplied with.
      unit: applies the rows.
    """

    specs: tuple[Row, ...]
    scale: float
    unit: Units

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        """Applies the module."""
        total = x
        for i in range(2):
            y = self.unit.rows(x, self.specs, f"branch_{i}")
            y = self.unit(y, (x.shape[-1], 1, 1), f"branch_{i}_project", relu=False)
            total = total + self.scale * y
        return nn.relu(total)


class Poly(nn.Module):
    """relu(x + scale · (F₁(x) + F₂(relu(F₁(x))) + F₃(relu(F₂(relu(F₁(x)))))): rows that read what they gave before.

    The orders share the rows' convolutions, but neither their normalisations nor the 1×1 convolution of what they give.

    Attributes:
      specs: the rows.
      scale: what their part is multiplied with.
      unit: applies the last convolution, and has the settings of the others.
    """

    specs: tuple[Row, ...]
    scale: float
    unit: Units

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        """Applies the module."""
        dtype = self.unit.dtype

        def conv(spec: Any, name: str) -> Conv:
            features, height, width = spec
            padding = (height // 2, width // 2)
            return Conv(features, (height, width), 1, padding, False, FAN_IN_UNIFORM, dtype, name=name)

        convs = [[conv(spec, f"row_{r}_unit_{i}") for i, spec in enumerate(row)] for r, row in enumerate(self.specs)]
        total, y = x, x
        for order in range(ORDER):
            results = []
            for r, row in enumerate(convs):
                z = y
                for i, shared in enumerate(row):
                    norm = BatchNorm(self.unit.epsilon, dtype=dtype, name=f"row_{r}_unit_{i}_norm_{order}")
                    z = nn.relu(norm(shared(z), train=self.unit.train))
                results.append(z)
            z = self.unit(jnp.concatenate(results, axis=-1), (x.shape[-1], 1, 1), f"project_{order}", relu=False)
            total = total + self.scale * z
            y = nn.relu(z)
        return nn.relu(total)


class PolyNet(nn.Module):
    """The network up to its last module."""

    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `stem`, `stage_a`, `reduction_a`, `stage_b`, `reduction_b` and `stage_c`."""

        unit = Units(1e-5, self.dtype, train)
        x = unit(unit(image, (32, 3, 3, 2), "stem_0"), (32, 3, 3, 1), "stem_1")
        x = unit(x, (64, 3, 3), "stem_2")
        x = unit.rows(x, ((halve,), ((96, 3, 3, 2),)), "stem_3")
        short, long = ((64, 1, 1), (96, 3, 3, 1)), ((64, 1, 1), (64, 7, 1), (64, 1, 7), (96, 3, 3, 1))
        x = unit.rows(x, (short, long), "stem_4")
        x = unit.rows(x, ((halve,), ((192, 3, 3, 2),)), "stem_5")
        out = {"stem": x}
        last = sum(count for _, count in MODULES.values()) - 1
        done = 0
        for stage, (specs, count) in MODULES.items():
            for i in range(count):
                kind = TwoWay if stage == "a" or i % 2 else Poly
                scale = 1 - 0.3 * done / last  # from 1 down to 0.7
                x = kind(specs, scale, unit, name=f"{stage}_{i}")(x)
                done += 1
            out[f"stage_{stage}"] = x
            if stage != "c":
                x = unit.rows(x, REDUCTION_A if stage == "a" else REDUCTION_B, f"reduction_{stage}")
                out[f"reduction_{stage}"] = x
        return out
