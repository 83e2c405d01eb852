"""Convolutions over images in NHWC, with PyTorch's geometry and initial values."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.linear import fan_in_uniform
from jaxvqa.precision import wide

PER_IMAGE_FLOP = 50e6
"""Operations of an image's share in a kernel's gradient from which `_kernel_gradient_by_rows` is the faster one on CPU."""

BLOCK = 1024
"""Places whose share is one matrix product there: what they read shall stay in a core's cache."""

WIDE = 128
"""Channels on both sides from which a matrix product over places is faster on CPU with the transposed inputs copied first."""


def kaiming_fan_out(kernel_size: int, features: int) -> nn.initializers.Initializer:
    """Draws from a normal distribution of variance 2 / (kernel_size² · features), as torchvision's residual networks do."""
    deviation = (2 / (kernel_size**2 * features)) ** 0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return deviation * jax.random.normal(key, shape, dtype)

    return init


FAN_IN_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Draws uniformly from ±1/√(inputs of an output), as PyTorch does for a convolution's kernel."""

Pair = int | tuple[int, int]
"""A number for each of the two directions, or one for both."""


def _pair(x: Pair) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else x


def _convolve(x: Array, kernel: Array, stride: int, padding: Pair) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(p, p) for p in _pair(padding)],
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
        return _kernel_gradient_by_rows(x, dy, kernel.shape[:2], stride, _pair(padding))

    def of_x(dy: Array) -> Array:
        return jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(dy)[0]

    def of_x_in_parts(dy: Array) -> Array:
        # XLA would convolve dy with zeros put between.
        return convolve_transposed(dy, jnp.swapaxes(kernel, 2, 3), stride, padding, x.shape[1:3])

    in_parts = 1 < stride <= min(kernel.shape[:2])
    dx = jax.lax.platform_dependent(dy, cpu=of_x_in_parts, default=of_x) if in_parts else of_x(dy)
    # Over several devices the sum over the images would fetch all of them to each device.
    if jax.sharding.get_abstract_mesh().size > 1 or 2 * dy[0].size * kernel[..., 0].size < PER_IMAGE_FLOP:
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
    if jax.sharding.get_abstract_mesh().size > 1 or min(kernel.shape) < WIDE:
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


def convolve_transposed(
    x: Float[Array, "B H W I"], kernel: Float[Array, "k l I O"], stride: int, padding: Pair, size: tuple[int, ...]
) -> Float[Array, "B P Q O"]:
    """Returns y with `size` = (P, Q), to whose y[stride·p + q − padding] every x[p] · kernel[q] is added.

    Rows stride·m + r of the result, for one r, take every stride-th row of the kernel, which has at least `stride` of them:
    each pair of a row's and a column's r is a small convolution of its own. One convolution of the input with zeros put
    between computes stride² times as much.
    """
    pads = _pair(padding)

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


class Conv(nn.Module):
    """A convolution: y[p] = Σ_q x[stride·p + q − padding] · kernel[q] + bias, zeros outside.

    From PyTorch, whose weight is (output, input, height, width): "o i h w -> h w i o".

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel; one number for both.
      stride: step between output positions, in both directions.
      padding: zeros added above and below, and at the left and the right; one number for all four.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel; uniform in ±1/√(inputs of an output) by default, as in PyTorch. The bias
        starts so too unless `bias_init` is given.
      dtype: type of the multiplications and of the result; the parameters are float32.
      groups: number of equal parts of the channels that are convolved each by itself.
      bias_init: initialiser of the bias.
    """

    features: int
    kernel: Pair = 3
    stride: int = 1
    padding: Pair = 0
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Any = jnp.float32
    groups: int = 1
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B P Q O"]:
        """Maps an image to ⌊(H + 2·padding − kernel) / stride⌋ + 1 rows of `features` channels, columns likewise."""
        inputs = x.shape[-1] // self.groups
        size = _pair(self.kernel)
        default = fan_in_uniform(size[0] * size[1] * inputs)
        kernel = self.param("kernel", self.kernel_init or default, (*size, inputs, self.features))
        x, weights = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.groups > 1:
            y = convolve_in_groups(x, weights, self.groups, self.stride, self.padding)
        elif size == (1, 1) and _pair(self.padding) == (0, 0):
            # A multiplication of matrices, which XLA on CPU does faster than the same as a convolution.
            x = x[:, :: self.stride, :: self.stride]
            y = multiply(x.reshape(-1, inputs), weights[0, 0]).reshape(*x.shape[:-1], self.features)
        else:
            y = convolve(x, weights, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", self.bias_init or default, (self.features,))
            y += bias.astype(self.dtype)[None, None, None]
        return y


class ConvTranspose(nn.Module):
    """PyTorch's transposed convolution: x[p] · kernel[q] is added to y[stride·p + q − padding], then the bias.

    The kernel is kept as it stands in this formula, not flipped, so that from PyTorch, whose weight is (input, output,
    height, width), it takes nothing but "i o h w -> h w i o".

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel, at least `stride`.
      stride: step between the places where neighbouring inputs are added.
      padding: rows and columns cut off on each of the four sides of the result.
      output_padding: rows and columns that are added again at the bottom and at the right.
      dtype: type of the multiplications and of the result; the parameters are float32.
    """

    features: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1
    output_padding: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B P Q O"]:
        """Maps an image to stride·(H − 1) + kernel − 2·padding + output_padding rows, columns likewise."""
        # PyTorch reads the number of inputs off the weight's second axis, which here is that of the outputs.
        init = fan_in_uniform(self.kernel**2 * self.features)
        kernel = self.param("kernel", init, (self.kernel, self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        size = [self.stride * (n - 1) + self.kernel - 2 * self.padding + self.output_padding for n in x.shape[1:3]]
        y = convolve_transposed(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding, tuple(size))
        return y + bias.astype(self.dtype)[None, None, None]
