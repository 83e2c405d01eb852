"""Flamingo's class head: classes from the state at the end of a question, from the image's vector, or from both."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import LayerNorm
from jaxvqa.precision import wide, widened

HEADS = ("image_and_text", "text", "image")
"""What the head reads."""


class ClassHead(nn.Module):
    """The head; its parameters are those of the model that has it (`flax.linen.share_scope`).

    Attributes:
      num_answers: number of classes A.
      reads: one of `HEADS`.
      mean: it reads the mean of all states up to the question's end, instead of that at the end.
      dropout: rate of dropout before the last layer.
      dtype: type of the multiplications; logits are float32.
    """

    num_answers: int
    reads: str
    mean: bool
    dropout: float
    dtype: Any

    def setup(self) -> None:
        """Makes the parts."""
        if self.reads not in HEADS:
            raise ConfigError(f"model.head is {self.reads!r}{choose(self.reads, HEADS)}")
        self.class_norm = LayerNorm(epsilon=1e-5, use_bias=False, dtype=self.dtype)
        self.class_drop = Dropout(self.dropout)
        self.class_output = Linear(self.num_answers, self.dtype)

    def __call__(
        self, out: Mapping[str, Array], end: Int[Array, " B"] | None, count: Int[Array, " B"], *, train: bool
    ) -> Float[Array, "B A"] | None:
        """Scores the classes; None where what the head reads is not there.

        Args:
          out: the model's intermediates: `hidden` [B, T, D]; of images `image_vector` [B, M, E] and `projected` [B, M, D].
          end: int[B], place of the last token that the head may read.
          count: int[B], how many images each text marks, of which the mean is read.
          train: applies dropout.
        """

        def mean_over_images(x: Array) -> Array:
            own = jnp.arange(x.shape[1])[None] < jnp.maximum(count, 1)[:, None]
            return jnp.mean(x, axis=1, where=own[..., None], dtype=wide(x.dtype)).astype(self.dtype)

        if self.reads == "image":
            if "image_vector" not in out:
                return None
            vector = self.class_drop(mean_over_images(out["image_vector"]), train=train)
            return widened(nn.relu(self.class_output(vector)))
        if end is None or (self.reads == "image_and_text" and "projected" not in out):
            return None
        hidden = out["hidden"]
        state = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        if self.mean:
            up_to = jnp.arange(hidden.shape[1])[None] <= end[:, None]
            state = jnp.mean(hidden, axis=1, where=up_to[..., None], dtype=wide(hidden.dtype)).astype(self.dtype)
        if self.reads == "image_and_text":
            state = jnp.concatenate([mean_over_images(out["projected"]), state], axis=-1)
        state = self.class_drop(self.class_norm(state), train=train)
        return widened(self.class_output(state))
