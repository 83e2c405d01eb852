"""Pooling of images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvqa.errors import ConfigError
from jaxvqa.models.layers.rows import as_rows
from jaxvqa.precision import wide, widened


def _outputs(length: int, size: int, stride: int, padding: int, ceil: bool) -> int:
    """Number of windows along an axis, as PyTorch counts them."""
    if not ceil:
        return (length + 2 * padding - size) // stride + 1
    count = -(-(length + 2 * padding - size) // stride) + 1
    # A last window that would begin in the padding on the right is left out.
    return count - ((count - 1) * stride >= length + padding)


def _shifted(x: Array, axis: int, size: int, stride: int, padding: int, ceil: bool, fill: float) -> list[Array]:
    """For each place in a window along an axis: what stands there, in all windows."""
    length = x.shape[axis]
    last = (_outputs(length, size, stride, padding, ceil) - 1) * stride
    around = [(0, 0)] * x.ndim
    around[axis] = (padding, max(padding, last + size - length - padding))
    x = jnp.pad(x, around, constant_values=fill)
    return [jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size)]


def max_pool(
    x: Float[Array, "B H W D"], size: int = 3, stride: int = 2, padding: int = 1, *, ceil: bool = False
) -> Float[Array, "B P Q D"]:
    """Takes the maximum of each window of size × size positions; padding never wins, as in PyTorch.

    Rows first, then columns, as the maximum of shifted slices: with its gradient this takes less than half as long on CPU
    as XLA's own windows. Where several positions share a maximum, they share the gradient, which PyTorch gives to the first.

    Args:
      x: float[B, H, W, D].
      size: height and width of a window.
      stride: step between windows.
      padding: rows and columns added on each side.
      ceil: whether a last window that is only in part inside counts too.
    """
    for axis in (1, 2):
        x = functools.reduce(jnp.maximum, _shifted(x, axis, size, stride, padding, ceil, -jnp.inf))
    return x


def average_pool(
    x: Float[Array, "B H W D"],
    size: int,
    stride: int,
    padding: int = 0,
    *,
    count_padding: bool = True,
    ceil: bool = False,
) -> Float[Array, "B P Q D"]:
    """Averages each window of size × size positions, in float32, as `torch.nn.AvgPool2d`.

    Args:
      x: float[B, H, W, D].
      size: height and width of a window.
      stride: step between windows.
      padding: zeros added on each side.
      count_padding: whether these count in the divisor.
      ceil: whether a last window that is only in part inside counts too; what is outside of it never counts.
    """
    y = widened(x)
    for axis in (1, 2):
        length = x.shape[axis]
        y = functools.reduce(jnp.add, _shifted(y, axis, size, stride, padding, ceil, 0.0))
        start = np.arange(y.shape[axis]) * stride - padding
        end = np.minimum(start + size, length + padding)
        counted = end - start if count_padding else np.minimum(end, length) - np.maximum(start, 0)
        y /= jnp.asarray(counted, y.dtype).reshape([-1 if a == axis else 1 for a in range(y.ndim)])
    return y.astype(x.dtype)


def adaptive_average_pool(x: Float[Array, "B H W D"], size: int) -> Float[Array, "B s s D"]:
    """Averages to size × size positions: number i of n covers ⌊i·H/n⌋ to ⌈(i+1)·H/n⌉, so ranges may overlap or repeat."""
    y = widened(x)
    for axis in (1, 2):
        length = x.shape[axis]
        if length != size:
            ranges = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            parts = [jnp.mean(jax.lax.slice_in_dim(y, *r, axis=axis), axis, keepdims=True) for r in ranges]
            y = jnp.concatenate(parts, axis)
    return y.astype(x.dtype)


def global_average(x: Float[Array, "B H W D"]) -> Float[Array, "B D"]:
    """Averages over all positions, in float32."""
    return jnp.mean(as_rows(x, 1), axis=1, dtype=wide(x.dtype))


def window_average(x: Float[Array, "B H W D"], size: int, stride: int) -> Float[Array, "B D"]:
    """Averages the top left window of size × size positions, in float32.

    This is an average pool in the place of a global one, and so refuses what the original fails at.

    Raises:
      ConfigError: such a pool would not give one value but none, or several.
    """
    if any(_outputs(length, size, stride, 0, False) != 1 for length in x.shape[1:3]):
        raise ConfigError(
            f"A map of {x.shape[1]}×{x.shape[2]} positions comes to a pool with a window of {size}×{size}, which takes "
            f"{size} to {size + stride - 1} a side; give images of another size."
        )
    return global_average(x[:, :size, :size])
