"""Products that are computed one way on CPU and another way elsewhere; the numbers are those of the plain product.

A layer calls these and asks neither on what it runs nor on how many devices. Each function says why XLA's own way is slower.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.precision import wide

PER_IMAGE_FLOP = 50e6
"""Operations of an image's share in a kernel's gradient from which `_kernel_gradient_by_rows` is the faster one on CPU."""

BLOCK = 1024
"""Places whose share is one matrix product there: what they read should stay in a core's cache."""

WIDE = 128
"""Channels on both sides from which a matrix product over places is faster on CPU with the transposed inputs copied first."""

FEW_ROWS = range(1, 33)
"""Numbers of rows with which `times_transposed` is the fastest form of a product on CPU."""

Pair = int | tuple[int, int]
"""A number for each of the two directions, or one for both."""


def _several_devices() -> bool:
    """Whether the program that is being traced runs on a mesh of several devices."""
    return jax.sharding.get_abstract_mesh().size > 1


def pair(x: Pair) -> tuple[int, int]:
    """For both directions."""
    return (x, x) if isinstance(x, int) else x


def _convolve(x: Array, kernel: Array, stride: int, padding: Pair) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(p, p) for p in pair(padding)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k l I O"], stride: int, padding: Pair
) -> Float[Array, "B P Q O"]:
    """Returns y[p] = Σ_q x[stride·p + q − padding] · kernel[q], with zeros outside of x.

    Gradients are XLA's own, but for two on CPU: a large kernel's is a sum of products over a few rows each, on a single
    device; and with a stride, that of x is put together from convolutions without one (`convolve_transposed`).
    """
    return _convolve(x, kernel, stride, padding)


def _forward(x: Array, kernel: Array, stride: int, padding: Pair) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Pair, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_xla(x: Array, dy: Array) -> Array:
        return jax.linear_transpose(lambda kernel: _convolve(x, kernel, stride, padding), kernel)(dy)[0]

    def by_rows(x: Array, dy: Array) -> Array:
        return _kernel_gradient_by_rows(x, dy, kernel.shape[:2], stride, pair(padding))

    def of_x(dy: Array) -> Array:
        return jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(dy)[0]

    def of_x_in_parts(dy: Array) -> Array:
        # XLA would convolve dy with zeros put between.
        return convolve_transposed(dy, jnp.swapaxes(kernel, 2, 3), stride, padding, x.shape[1:3])

    in_parts = 1 < stride <= min(kernel.shape[:2])
    dx = jax.lax.platform_dependent(dy, cpu=of_x_in_parts, default=of_x) if in_parts else of_x(dy)
    # Over several devices the sum over the images would fetch all of them to each device.
    if _several_devices() or 2 * dy[0].size * kernel[..., 0].size < PER_IMAGE_FLOP:
        return dx, by_xla(x, dy)
    return dx, jax.lax.platform_dependent(x, dy, cpu=by_rows, default=by_xla)


convolve.defvjp(_forward, _backward)


def _kernel_gradient_by_rows(
    x: Array, dy: Array, size: tuple[int, ...], stride: int, padding: tuple[int, int]
) -> Array:
    """Sums over blocks of an image's rows what each row of the kernel gets: inputs at each place, times the gradient there."""
    (batch, rows, columns, features), inputs = dy.shape, x.shape[-1]
    blocks = -(-rows // max(BLOCK // columns, 1))
    high = -(-rows // blocks)
    # Rows without gradient fill the last block.
    dy = jnp.pad(dy, ((0, 0), (0, blocks * high - rows), (0, 0), (0, 0)))
    missing = stride * (blocks * high - 1) + size[0] - x.shape[1] - 2 * padding[0]
    x = jnp.pad(x, ((0, 0), (padding[0], padding[0] + max(missing, 0)), (padding[1], padding[1]), (0, 0)))

    def from_block(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        i, dy = block
        first = (i // blocks, i % blocks * high * stride, 0, 0)
        below = jax.lax.dynamic_slice(x, first, (1, stride * (high - 1) + size[0], *x.shape[2:]))[0]
        last = stride * (columns - 1) + 1
        beside = jnp.concatenate([below[:, q : q + last : stride] for q in range(size[1])], axis=-1)
        last = stride * (high - 1) + 1
        each = [beside[q : q + last : stride].reshape(high * columns, -1) for q in range(size[0])]
        return total + jnp.stack([jnp.dot(row.T, dy, preferred_element_type=total.dtype) for row in each]), None

    over = jnp.arange(batch * blocks), dy.reshape(batch * blocks, high * columns, features)
    total, _ = jax.lax.scan(from_block, jnp.zeros((size[0], size[1] * inputs, features), wide(dy.dtype)), over)
    return total.reshape(*size, inputs, features).astype(dy.dtype)


@jax.custom_vjp
def multiply(x: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float[Array, "N O"]:
    """The matrix product x · kernel. Its gradient is the usual; on a single CPU that of a wide kernel is computed faster."""
    return jnp.dot(x, kernel)


def _multiply_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def usual(x: Array, dy: Array) -> Array:
        return jnp.dot(x.T, dy)

    def copied(x: Array, dy: Array) -> Array:
        # XLA would leave the transposition to the product, which then steps through memory by whole rows.
        return jnp.dot(jax.lax.optimization_barrier(x.T), dy)

    dx = jnp.dot(dy, kernel.T)
    if _several_devices() or min(kernel.shape) < WIDE:
        return dx, usual(x, dy)
    return dx, jax.lax.platform_dependent(x, dy, cpu=copied, default=usual)


multiply.defvjp(lambda x, kernel: (jnp.dot(x, kernel), (x, kernel)), _multiply_backward)


def convolve_in_groups(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k l J O"], groups: int, stride: int, padding: Pair
) -> Float[Array, "B P Q O"]:
    """Convolves each of `groups` equal parts of the channels by itself: the first of O/groups from the first I/groups, ….

    As separate convolutions, of which XLA on CPU computes several times as many operations in a second as of one in groups.
    """
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([convolve(of, by, stride, padding) for of, by in parts], axis=-1)


def convolve_each_channel(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k l C"], stride: int = 1
) -> Float[Array, "B P Q C"]:
    """Returns y[p] = Σ_q x[stride·p + q] · kernel[q] of each channel by itself, within x ("depthwise").

    As a sum of shifted images: of convolutions with so many groups XLA makes slow loops.
    """
    rows, columns = ((x.shape[1 + i] - kernel.shape[i]) // stride + 1 for i in range(2))

    def seen(start: int, count: int) -> slice:
        return slice(start, start + stride * (count - 1) + 1, stride)

    parts = [
        x[:, seen(i, rows), seen(j, columns)] * kernel[i, j][None, None, None]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return functools.reduce(jnp.add, parts)


def convolve_transposed(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k l I O"], stride: int, padding: Pair, size: tuple[int, ...]
) -> Float[Array, "B P Q O"]:
    """Returns y with `size` = (P, Q), to whose y[stride·p + q − padding] every x[p] · kernel[q] is added.

    Rows stride·m + r of the result, for one r, take every stride-th row of the kernel, which has at least `stride` of them:
    each pair of a row's and a column's r is a small convolution of its own. One convolution of the input with zeros put
    between computes stride² times as much.
    """
    pads = pair(padding)

    def part(r: int, axis: int) -> tuple[slice, tuple[int, int, int]]:
        """The kernel's rows (columns) for r, backwards, and how to pad those of the input that they meet."""
        first = (r + pads[axis]) % stride
        last = first + (kernel.shape[axis] - 1 - first) // stride * stride
        below, above = (r + pads[axis] - last) // stride, (r + pads[axis] - first) // stride
        slices = slice(last, first - 1 if first else None, -stride)
        return slices, (-below, above + -(-size[axis] // stride) - x.shape[1 + axis], 0)

    def one(r: int, s: int) -> Array:
        (of_rows, pad_rows), (of_columns, pad_columns) = part(r, 0), part(s, 1)
        padded = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), pad_rows, pad_columns, (0, 0, 0)))
        return convolve(padded, kernel[of_rows, of_columns], 1, 0)

    phases = jnp.stack([jnp.stack([one(r, s) for s in range(stride)], axis=3) for r in range(stride)], axis=2)
    batch, high, _, wide, _, features = phases.shape  # B, ⌈P / stride⌉, stride, ⌈Q / stride⌉, stride, O
    return phases.reshape(batch, high * stride, wide * stride, features)[:, : size[0], : size[1]]


def times_transposed(x: Float[Array, "N I"], matrix: Float[Array, "O I"]) -> Float[Array, "N O"]:
    """x·matrixᵀ, summed in float32.

    On CPU, XLA multiplies a few rows twice as fast with the matrix in front and its rows along the sum.
    """

    def in_front(x: Array, matrix: Array) -> Array:
        # Without the barrier XLA would write the product the other way round again.
        return jax.lax.optimization_barrier(jnp.dot(matrix, x.T, preferred_element_type=wide(x.dtype))).T

    def behind(x: Array, matrix: Array) -> Array:
        return jnp.dot(x, matrix.T, preferred_element_type=wide(x.dtype))

    if len(x) not in FEW_ROWS:
        return behind(x, matrix)
    return jax.lax.platform_dependent(x, matrix, cpu=in_front, default=behind)
