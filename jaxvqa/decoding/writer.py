"""What a model offers that writes: it reads prompts once, and then goes on token by token from what it has kept of them."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import flax.struct
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxvqa.types import Collections

Kept = TypeVar("Kept", bound="Cache")


@runtime_checkable
class Cache(Protocol):
    """What a model keeps of N texts, which go on from B prompts, N / B side by side from each.

    A pytree of arrays. Those with a row for each prompt or text have it as their first axis, and are sharded by it as a batch
    is; the others are replicated. Shapes and dtypes do not change from token to token: the loop is compiled once.
    """

    def of_texts(self: Kept, change: Callable[[Array], Array]) -> Kept:
        """The same with `change` applied to every array that has a row for each text.

        What the texts of a prompt share stays as it is: beams go on from one another without a copy of what they have read.
        """


@runtime_checkable
class Writer(Protocol):
    """The methods of a Flax module that writes; `jaxvqa.models.flamingo.Flamingo` is one."""

    def prefill(
        self, *, text: Int[Array, "B P"], text_mask: Bool[Array, "B P"], slots: int, texts: int = 1, **inputs: Any
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads prompts.

        Args:
          text: int[B, P], the prompts, each with at least one token.
          text_mask: bool[B, P], False for padding, on either side.
          slots: how many tokens a text will have in all, padding included.
          texts: how many texts will go on from each prompt.
          **inputs: what else the model reads, with a row for each prompt.

        Returns:
          float32[B, V] logits of each prompt's next token, and the cache, with a text for each prompt.

        Raises:
          ConfigError: the model takes no texts of this length.
        """

    def decode(self, token: Int[Array, " N"], cache: Cache) -> tuple[Float[Array, "N V"], Cache]:
        """Adds a token to each text. Returns float32[N, V] logits of the one after it, and the cache with it."""

    def decode_given(self, tokens: Int[Array, "C W"], cache: Cache) -> Float[Array, "B C W V"]:
        """Reads C continuations behind each of B texts: the logits after each of their tokens. The cache stays as it is."""


class Read(flax.struct.PyTreeNode):
    """Prompts that a model has read.

    Attributes:
      logits: float32[B, V] of each one's next token.
      cache: what the model keeps of them.
      prompt: int32[B, P].
      prompt_mask: bool[B, P], False for padding.
    """

    logits: Float32[Array, "B V"]
    cache: Any
    prompt: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]


def read(
    model: nn.Module,
    variables: Collections,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    *,
    new: int,
    texts: int = 1,
    **inputs: Any,
) -> Read:
    """Reads prompts with room for `new` more tokens in each of `texts` texts; see `Writer.prefill`."""
    given = {"text": prompt, "text_mask": prompt_mask, "slots": prompt.shape[1] + new, "texts": texts, **inputs}
    logits, cache = model.apply(variables, method="prefill", **given)
    return Read(logits, cache, prompt, prompt_mask)
