"""How probable given answers are behind prompts: a choice among them, also by a model that has no class head.

The prompts are read once (`prefill`), and the answers together behind each of them, a few at a time, by a model's method
`decode_given(words, cache)` (`jaxvqa/models/flamingo.py`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from jaxvqa.generate import pad

POSITIONS = 1024
"""How many words of answers are read at a time, over all prompts: bounds the memory of their scores."""


class Given:
    """Answers as numbers of words.

    Attributes:
      words: int32[C, W], each with the mark of its end, filled up behind it.
      lengths: int32[C], with the mark.
    """

    words: Int[np.ndarray, "C W"]
    lengths: Int[np.ndarray, " C"]

    def __init__(self, answers: Sequence[Sequence[int]], padding: int):
        """Args: the words of each answer, at least one, and the number that fills them up."""
        self.words, mask = pad(answers, padding, ())
        self.lengths = mask.sum(axis=1, dtype=np.int32)


def log_likelihoods(
    model: nn.Module, variables: Any, given: Given, logits: Float32[Array, "B V"], cache: Any
) -> Float32[Array, "B C"]:
    """The sums of the log-probabilities of each answer's words behind each prompt.

    Args:
      model: the model.
      variables: the model's.
      given: the answers.
      logits: scores of each prompt's next word, from `prefill`.
      cache: from there too.
    """
    count, length = given.words.shape
    first = jnp.take(jax.nn.log_softmax(logits), given.words[:, 0], axis=1)
    if length == 1:
        return first
    together = int(np.clip(POSITIONS // (len(logits) * (length - 1)), 1, count))
    # The last part is filled up with the first answer.
    places = np.pad(np.arange(count), (0, -count % together)).reshape(-1, together)

    def of_part(part: tuple[Array, Array]) -> Float32[Array, "B c"]:
        words, real = part
        scores: Any = model.apply(variables, words[:, :-1], cache, method="decode_given")
        chosen = jnp.take_along_axis(scores, words[None, :, 1:, None], axis=-1)[..., 0]
        return jnp.sum(chosen - jax.nn.logsumexp(scores, axis=-1), axis=-1, where=real[None, :, 1:])

    real = np.arange(length)[None] < given.lengths[:, None]
    behind = jax.lax.map(of_part, (jnp.asarray(given.words[places]), jnp.asarray(real[places])))
    return first + jnp.moveaxis(behind, 0, 1).reshape(len(logits), -1)[:, :count]
