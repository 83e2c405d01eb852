"""Convolutions over images in NHWC, with PyTorch's geometry and initial values."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.kernels import Pair, convolve, convolve_in_groups, convolve_transposed, multiply, pair
from jaxvqa.models.layers.linear import fan_in_uniform


def kaiming_fan_out(kernel_size: int, features: int) -> nn.initializers.Initializer:
    """Draws from a normal distribution of variance 2 / (kernel_size² · features), as torchvision's residual networks do."""
    deviation = (2 / (kernel_size**2 * features)) ** 0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return deviation * jax.random.normal(key, shape, dtype)

    return init


FAN_IN_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Draws uniformly from ±1/√(inputs of an output), as PyTorch does for a convolution's kernel."""


def same(x: Float[Array, "B H W I"], kernel: int, stride: int) -> Float[Array, "B P Q I"]:
    """Zeros around images, for ⌈H / stride⌉ rows of a convolution without padding, columns likewise: TensorFlow's "SAME".

    Of an odd number of rows there is one more below than above, unlike PyTorch's padding.
    """

    def around(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return jnp.pad(x, ((0, 0), around(x.shape[1]), around(x.shape[2]), (0, 0)))


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
        size = pair(self.kernel)
        default = fan_in_uniform(size[0] * size[1] * inputs)
        kernel = self.param("kernel", self.kernel_init or default, (*size, inputs, self.features))
        x, weights = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.groups > 1:
            y = convolve_in_groups(x, weights, self.groups, self.stride, self.padding)
        elif size == (1, 1) and pair(self.padding) == (0, 0):
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
