"""What the networks of the Inception family are made of: units in rows, and rows side by side."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.conv import FAN_IN_UNIFORM
from jaxvqa.models.layers.conv_norm import ConvNorm
from jaxvqa.models.layers.pooling import average_pool, max_pool

Unit = tuple[int, int, int] | tuple[int, int, int, int]
"""Of a normalised convolution with a ReLU: channels, kernel's height and width, and the stride where it pads nothing."""

Row = tuple[Unit | Callable[[Array], Array], ...]
"""Units and pools, one after the other."""


def halve(x: Float[Array, "B H W D"]) -> Float[Array, "B P Q D"]:
    """A row's pool that halves the image."""
    return max_pool(x, 3, 2, 0)


def smooth(x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    """A row's pool that keeps the image's size; at the border it averages what is there."""
    return average_pool(x, 3, 1, 1, count_padding=False)


@dataclasses.dataclass(frozen=True)
class Units:
    """Applies units and rows of them with the same settings; to be called where submodules are made.

    Attributes:
      epsilon: added to the variance in normalisations.
      train: normalises by the batch's statistics.
    """

    epsilon: float
    dtype: Any
    train: bool

    def __call__(self, x: Array, spec: Unit, name: str, *, relu: bool = True) -> Array:
        """Applies one unit."""
        features, height, width, *stride = spec
        padding, step = (0, stride[0]) if stride else (None, 1)
        init = {"kernel_init": FAN_IN_UNIFORM, "epsilon": self.epsilon, "dtype": self.dtype}
        return ConvNorm(features, (height, width), step, padding, relu, **init, name=name)(x, self.train)

    def rows(self, x: Array, rows: tuple[Row, ...], name: str) -> Array:
        """Applies rows that all read the same map, and puts their results side by side."""
        return Rows(rows, self, name=name)(x)


class Rows(nn.Module):
    """Rows side by side; see `Units`."""

    specs: tuple[Row, ...]
    unit: Units

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B P Q O"]:
        """Applies the rows."""
        results = []
        for r, row in enumerate(self.specs):
            y, units = x, 0
            for spec in row:
                if callable(spec):
                    y = spec(y)
                    continue
                y = self.unit(y, spec, f"row_{r}_unit_{units}")
                units += 1
            results.append(y)
        return jnp.concatenate(results, axis=-1)
