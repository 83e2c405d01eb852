"""A convolution and the batch normalisation after it: the unit that most image towers are made of."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.kernels import Pair
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, kaiming_fan_out


def _fan_out(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`kaiming_fan_out` for the square kernel that is asked for."""
    return kaiming_fan_out(shape[0], shape[-1])(key, shape, dtype)


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalisation.

    Attributes:
      features: number of output channels.
      kernel: height and width of the kernel.
      stride: step between output positions.
      padding: zeros added on each side.
      dtype: type of the multiplications and of the result.
      kernel_init: initialiser of the kernel; torchvision's for residual networks by default.
      epsilon: added to the variance.
    """

    features: int
    kernel: Pair
    stride: int
    padding: Pair
    dtype: Any
    kernel_init: nn.initializers.Initializer = _fan_out
    epsilon: float = 1e-5

    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Convolves and normalises."""
        return self.both(x, train)[0]

    @nn.compact
    def both(self, x: Float[Array, "B H W I"], train: bool) -> tuple[Float[Array, "B P Q O"], Float[Array, "B P Q O"]]:
        """Returns the result, and what the convolution gave."""
        y = Conv(
            self.features, self.kernel, self.stride, self.padding, False, self.kernel_init, self.dtype, name="conv"
        )(x)
        return BatchNorm(self.epsilon, dtype=self.dtype, name="norm")(y, train=train), y
