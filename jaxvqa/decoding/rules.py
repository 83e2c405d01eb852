"""Rules on the scores of the next token: values, which a search applies in their order before it chooses.

A rule takes scores float32[N, V] and what has been written so far, and returns scores, -inf for what must not be chosen. A
search that follows beams hands it log-probabilities, one that follows a single text the model's logits.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Written(flax.struct.PyTreeNode):
    """The N texts so far.

    Attributes:
      prompt: int32[N, P].
      prompt_mask: bool[N, P], False for padding.
      tokens: int32[N, W], of which the first `count` are written.
      count: int32[], how many.
    """

    prompt: Int[Array, "N P"]
    prompt_mask: Bool[Array, "N P"]
    tokens: Int[Array, "N W"]
    count: Int[Array, ""]

    @property
    def prompt_length(self) -> Int[Array, " N"]:
        """How many tokens each prompt has."""
        return jnp.sum(self.prompt_mask, axis=1, dtype=jnp.int32)


Scores = Float[Array, "N V"]
Rule = Callable[[Scores, Written], Scores]


def apply(rules: tuple[Rule, ...], scores: Scores, written: Written) -> Scores:
    """The scores after all rules."""
    for rule in rules:
        scores = rule(scores, written)
    return scores


@dataclasses.dataclass(frozen=True)
class Barred:
    """Tokens that are never chosen."""

    tokens: tuple[int, ...]

    def __call__(self, scores: Scores, written: Written) -> Scores:
        """Takes their scores away."""
        return scores.at[:, jnp.asarray(self.tokens)].set(-jnp.inf)


@dataclasses.dataclass(frozen=True)
class MinimumLength:
    """A text does not end before it has this many tokens, with those of its prompt or without.

    Attributes:
      tokens: how many.
      end: id of the token that ends a text.
      with_prompt: whether the prompt's tokens count.
    """

    tokens: int
    end: int
    with_prompt: bool = False

    def __call__(self, scores: Scores, written: Written) -> Scores:
        """Takes away the score of the end."""
        length = written.count + (written.prompt_length if self.with_prompt else 0)
        ends = jnp.where(length < self.tokens, -jnp.inf, scores[:, self.end])
        return scores.at[:, self.end].set(ends)


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Tokens of the prompt and of what is written become less likely: scores below 0 times `factor`, others divided by it.

    N. S. Keskar and others, "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019, section 4.1, in
    the form that transformers gives it.
    """

    factor: float

    def __call__(self, scores: Scores, written: Written) -> Scores:
        """Changes the scores of all tokens that have occurred, each once."""
        tokens = jnp.concatenate([written.prompt, written.tokens], axis=1)
        new = jnp.broadcast_to(jnp.arange(written.tokens.shape[1])[None] < written.count, written.tokens.shape)
        real = jnp.concatenate([written.prompt_mask, new], axis=1)
        rows = jnp.arange(len(tokens))[:, None]
        occurred = jnp.zeros(scores.shape, jnp.bool_).at[rows, tokens].max(real)
        return jnp.where(occurred, jnp.where(scores < 0, scores * self.factor, scores / self.factor), scores)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Scores are divided by `value`: the lower, the nearer a draw comes to the best token."""

    value: float

    def __call__(self, scores: Scores, written: Written) -> Scores:
        """Divides."""
        return scores / self.value


@dataclasses.dataclass(frozen=True)
class TopK:
    """Only the `count` best tokens are left, and those that are as good as the last of them."""

    count: int

    def __call__(self, scores: Scores, written: Written) -> Scores:
        """Takes the others away."""
        least = jax.lax.top_k(scores, min(self.count, scores.shape[-1]))[0][:, -1:]
        return jnp.where(scores < least, -jnp.inf, scores)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Only the fewest tokens are left that together are at least as probable as `share`; the best one always."""

    share: float

    def __call__(self, scores: Scores, written: Written) -> Scores:
        """Takes the others away."""
        ordered = -jnp.sort(-scores, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        # The best token always stays: nothing is before it.
        least = jnp.min(jnp.where(before < self.share, ordered, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(scores < least, -jnp.inf, scores)
