"""The two-layer map of each position."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "squared_relu": lambda x: jnp.square(nn.relu(x)),
    "relu": nn.relu,
}
"""By name: GELU exactly and by its tangent formula (GPT-2), CLIP's, the Flamingo paper's."""


class FeedForward(nn.Module):
    """down(dropout(activation(up(x)))): a two-layer map of each position.

    Attributes:
      hidden: width between the two layers.
      features: width of the result.
      dropout: rate of dropout between the layers.
      activation: a name of `ACTIVATIONS`.
      use_bias: whether the layers have biases.
      kernel_init: initialiser of the kernels, as in `Linear`.
    """

    hidden: int
    features: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    activation: str = "relu"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], *, train: bool) -> Float[Array, "*batch O"]:
        """Maps the last axis to `features`."""

        def linear(features: int, name: str) -> Linear:
            return Linear(features, self.dtype, self.use_bias, self.kernel_init, name=name)

        hidden = ACTIVATIONS[self.activation](linear(self.hidden, "up")(x))
        hidden = Dropout(self.dropout)(hidden, train=train)
        return linear(self.features, "down")(hidden)
