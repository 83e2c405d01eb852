"""Linear maps whose weights are a direction times one learned length, and the classifier made of two of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import fan_in_uniform
from jaxvqa.precision import widened


def whole_norm(v: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns ‖v‖ over all elements, in float32.

    XLA adds up in parts, in a tree: over 4 million values the result is right to 1e-7. (PyTorch's own sum over as many
    loses up to 5e-5 on CPU; docs/originals/cmsa.md, section 14.) Without the barrier it would sum over all axes in one go:
    with jax 0.10 on CPU that is off by twice as much, and slower.
    """
    rows = jnp.sum(jnp.square(widened(v)), axis=-1)
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(rows)))


def normalised(v: Float[Array, "*shape"], g: Float[Array, ""]) -> Float[Array, "*shape"]:
    """Returns v · g / ‖v‖ in float32, with the norm over all elements (PyTorch's `weight_norm` with `dim=None`)."""
    return widened(v) * jnp.expand_dims(widened(g) / whole_norm(v), range(v.ndim))


class WeightNormLinear(nn.Module):
    """y = x·(v · g / ‖v‖) + bias over the last axis, with one length g for the whole matrix.

    At first g = ‖v‖, so that it begins as a linear map with PyTorch's default values (docs/originals/cmsa.md, section 5.2).

    Attributes:
      features: width of the result.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """Maps the last axis to `features`."""
        init = fan_in_uniform(x.shape[-1])
        v = self.param("v", init, (x.shape[-1], self.features))
        g = self.param("g", lambda key: whole_norm(v))
        bias = self.param("bias", init, (self.features,))
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])  # as one matrix, as in `Linear`
        y = jnp.dot(rows, normalised(v, g).astype(self.dtype)) + bias.astype(self.dtype)[None]
        return y.reshape(*x.shape[:-1], self.features)


class Classifier(nn.Module):
    """down(dropout(relu(up(x)))) with both maps weight-normalised (docs/originals/cmsa.md, section 6).

    Attributes:
      hidden: width between the two maps.
      num_answers: number of candidate answers A.
      dropout: rate of dropout between the maps.
      dtype: type of the multiplications; the logits are float32.
    """

    hidden: int
    num_answers: int
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B D"], *, train: bool) -> Float[Array, "B A"]:
        """Scores every answer."""
        hidden = nn.relu(WeightNormLinear(self.hidden, self.dtype, name="up")(x))
        hidden = Dropout(self.dropout)(hidden, train=train)
        return widened(WeightNormLinear(self.num_answers, self.dtype, name="down")(hidden))
