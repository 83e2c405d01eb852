"""How probable given answers are behind prompts: a choice among them, also by a model that has no class head.

The prompts are read once (`Writer.prefill`), and the answers together behind each of them, a few at a time
(`Writer.decode_given`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from jaxvqa.decoding.loop import pad
from jaxvqa.decoding.writer import Read
from jaxvqa.types import Collections

POSITIONS = 1024
"""How many tokens of answers are read at a time, over all prompts: bounds the memory of their scores."""


class Answers:
    """Given answers as token ids.

    Attributes:
      tokens: int32[C, W], each with the token that ends it, filled up behind it.
      lengths: int32[C], with that token.
    """

    tokens: Int[np.ndarray, "C W"]
    lengths: Int[np.ndarray, " C"]

    def __init__(self, answers: Sequence[Sequence[int]], padding: int):
        """Args: the token ids of each answer, at least one, and the one that fills them up."""
        self.tokens, mask = pad(answers, padding, ())
        self.lengths = mask.sum(axis=1, dtype=np.int32)

    @property
    def new(self) -> int:
        """How many tokens the cache of the prompts needs room for."""
        return self.tokens.shape[1] - 1


def log_likelihoods(model: nn.Module, variables: Collections, answers: Answers, read: Read) -> Float32[Array, "B C"]:
    """The sums of the log-probabilities of each answer's tokens behind each prompt.

    Args:
      model: a `jaxvqa.decoding.writer.Writer`.
      variables: the model's.
      answers: the answers.
      read: the prompts, as the model has read them.
    """
    count, length = answers.tokens.shape
    first = jnp.take(jax.nn.log_softmax(read.logits), answers.tokens[:, 0], axis=1)
    if length == 1:
        return first
    prompts = len(read.logits)
    together = int(np.clip(POSITIONS // (prompts * (length - 1)), 1, count))
    # The last part is filled up with the first answer.
    places = np.pad(np.arange(count), (0, -count % together)).reshape(-1, together)

    def of_part(part: tuple[Array, Array]) -> Float32[Array, "B c"]:
        tokens, real = part
        scores: Any = model.apply(variables, tokens[:, :-1], read.cache, method="decode_given")
        chosen = jnp.take_along_axis(scores, tokens[None, :, 1:, None], axis=-1)[..., 0]
        return jnp.sum(chosen - jax.nn.logsumexp(scores, axis=-1), axis=-1, where=real[None, :, 1:])

    real = np.arange(length)[None] < answers.lengths[:, None]
    behind = jax.lax.map(of_part, (jnp.asarray(answers.tokens[places]), jnp.asarray(real[places])))
    return first + jnp.moveaxis(behind, 0, 1).reshape(prompts, -1)[:, :count]


def scores(
    model: nn.Module, variables: Collections, answers: Answers, read: Read, *, length_penalty: float
) -> Float32[Array, "B C"]:
    """By what answers are compared: their log-likelihoods, divided by this power of their number of tokens."""
    lengths = jnp.asarray(answers.lengths, jnp.float32) ** length_penalty
    return log_likelihoods(model, variables, answers, read) / lengths[None]
