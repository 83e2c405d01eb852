"""What the networks of the Inception family are made of: units in rows, and rows side by side."""

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


def unit(x: Array, spec: Unit, name: str, *, train: bool, epsilon: float, dtype: Any) -> Array:
    """Applies a unit without its ReLU. To be called where submodules are made."""
    features, height, width, *stride = spec
    padding = (0, 0) if stride else (height // 2, width // 2)
    (step,) = stride or (1,)
    return ConvNorm(features, (height, width), step, padding, dtype, FAN_IN_UNIFORM, epsilon, name=name)(x, train)


class Rows(nn.Module):
    """Rows of units that all read the same map, and whose results are put side by side.

    Attributes:
      rows: the rows.
      epsilon: added to the variance in normalisations.
      dtype: type of the multiplications and of the result.
    """

    rows: tuple[Row, ...]
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Applies the rows."""
        results = []
        for r, row in enumerate(self.rows):
            y = x
            units = 0
            for spec in row:
                if callable(spec):
                    y = spec(y)
                    continue
                name = f"row_{r}_unit_{units}"
                y = nn.relu(unit(y, spec, name, train=train, epsilon=self.epsilon, dtype=self.dtype))
                units += 1
            results.append(y)
        return jnp.concatenate(results, axis=-1)
