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
from jaxvqa.models.towers.inception import Row, Rows, Unit, halve, unit

EPSILON = 1e-5
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
    """Two sets of rows beside a shortcut.

    Attributes:
      rows: the rows of each.
      scale: what their part is multiplied with.
      dtype: type of the multiplications and of the result.
    """

    rows: tuple[Row, ...]
    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"], train: bool) -> Float[Array, "B H W D"]:
        """Returns relu(x + scale · (F(x) + G(x)))."""
        total = x
        for i in range(2):
            y = Rows(self.rows, EPSILON, self.dtype, name=f"branch_{i}")(x, train)
            spec = (x.shape[-1], 1, 1)
            y = unit(y, spec, f"branch_{i}_project", train=train, epsilon=EPSILON, dtype=self.dtype)
            total = total + self.scale * y
        return nn.relu(total)


class Poly(nn.Module):
    """Rows that read what they gave before, beside a shortcut.

    The orders share the rows' convolutions, but neither their normalisations nor the 1×1 convolution of what they give.

    Attributes:
      rows: the rows.
      scale: what their part is multiplied with.
      dtype: type of the multiplications and of the result.
    """

    rows: tuple[Row, ...]
    scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W D"], train: bool) -> Float[Array, "B H W D"]:
        """Returns relu(x + scale · (F₁(x) + F₂(relu(F₁(x))) + F₃(relu(F₂(relu(F₁(x)))))))."""

        def conv(spec: Any, name: str) -> Conv:
            features, height, width = spec
            padding = (height // 2, width // 2)
            return Conv(features, (height, width), 1, padding, False, FAN_IN_UNIFORM, self.dtype, name=name)

        convs = [[conv(spec, f"row_{r}_unit_{i}") for i, spec in enumerate(row)] for r, row in enumerate(self.rows)]
        total, y = x, x
        for order in range(ORDER):
            results = []
            for r, row in enumerate(convs):
                z = y
                for i, shared in enumerate(row):
                    norm = BatchNorm(EPSILON, dtype=self.dtype, name=f"row_{r}_unit_{i}_norm_{order}")
                    z = nn.relu(norm(shared(z), train=train))
                results.append(z)
            spec = (x.shape[-1], 1, 1)
            z = jnp.concatenate(results, axis=-1)
            z = unit(z, spec, f"project_{order}", train=train, epsilon=EPSILON, dtype=self.dtype)
            total = total + self.scale * z
            y = nn.relu(z)
        return nn.relu(total)


class PolyNet(nn.Module):
    """The network up to its last module.

    Attributes:
      dtype: type of the multiplications and of the maps; parameters and statistics are float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `stem`, `stage_a`, `reduction_a`, `stage_b`, `reduction_b` and `stage_c`.

        Args:
          image: float[B, H, W, C], normalised.
          train: normalises by the batch's statistics and updates the running ones (collection `batch_stats`).
        """

        def one(x: Array, spec: Unit, name: str) -> Array:
            return nn.relu(unit(x, spec, name, train=train, epsilon=EPSILON, dtype=self.dtype))

        def rows(x: Array, specs: tuple[Row, ...], name: str) -> Array:
            return Rows(specs, EPSILON, self.dtype, name=name)(x, train)

        x = one(one(image, (32, 3, 3, 2), "stem_0"), (32, 3, 3, 1), "stem_1")
        x = one(x, (64, 3, 3), "stem_2")
        x = rows(x, ((halve,), ((96, 3, 3, 2),)), "stem_3")
        short, long = ((64, 1, 1), (96, 3, 3, 1)), ((64, 1, 1), (64, 7, 1), (64, 1, 7), (96, 3, 3, 1))
        x = rows(x, (short, long), "stem_4")
        x = rows(x, ((halve,), ((192, 3, 3, 2),)), "stem_5")
        out = {"stem": x}
        last = sum(count for _, count in MODULES.values()) - 1
        done = 0
        for stage, (specs, count) in MODULES.items():
            for i in range(count):
                kind = TwoWay if stage == "a" or i % 2 else Poly
                scale = 1 - 0.3 * done / last  # from 1 down to 0.7
                x = kind(specs, scale, self.dtype, name=f"{stage}_{i}")(x, train)
                done += 1
            out[f"stage_{stage}"] = x
            if stage != "c":
                x = rows(x, REDUCTION_A if stage == "a" else REDUCTION_B, f"reduction_{stage}")
                out[f"reduction_{stage}"] = x
        return out
