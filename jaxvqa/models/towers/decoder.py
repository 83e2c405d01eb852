"""What decoders of text have in common.

A system may put layers of its own between a language tower's blocks. So every one, BERT too, is in pieces: `embed_text` makes
what the first block reads, `blocks` are to be called one after the other, each with what it has kept of earlier tokens, and
`logits` reads token scores from what the last one gives. `is_causal` says whether it reads to the left only, and so can write.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.errors import ConfigError
from jaxvqa.models.layers.attention import causal
from jaxvqa.models.layers.transformer import apply_blocks


def check_length(length: int, positions: int, what: str = "Texts have") -> None:
    """Checks that there are positions for texts of so many tokens, beyond which a table gives NaN; 0 positions: for any.

    Raises:
      ConfigError: there are fewer.
    """
    if 0 < positions < length:
        raise ConfigError(
            f"{what} {length} tokens; the language model has positions for {positions}. Lower what they may have "
            "(config.data, config.generate)."
        )


class Decoder(nn.Module):
    """A decoder, whose class makes `embed`, `block`, a list, and `readout`, and has `embed_text`."""

    is_causal: ClassVar[bool] = True

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks, to be called one after the other."""
        return tuple(self.block)

    def embed_text(
        self, text: Int[Array, "B T"], positions: Int[Array, "B T"], *, train: bool
    ) -> Float[Array, "B T D"]:
        """The states that the first block reads. Where these hold no positions, the blocks see to them, or nothing does."""
        return self.embed(text)

    def logits(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T V"], Float[Array, "B T D"]]:
        """Scores of each next token, and the normalised states that they are read from."""
        return self.readout(x, self.embed.embedding)

    def __call__(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"] | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Scores every next token.

        Args:
          text: int[B, T], token ids; each stands at its place in the row.
          text_mask: bool[B, T], False for padding, which nothing reads.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          float32[B, T, V] logits, and the named intermediates: those of `apply_blocks`, and `normed` [B, T, D], what the
          scores are read from.

        Raises:
          ConfigError: there are no positions for texts of this length.
        """
        check_length(text.shape[1], getattr(self, "positions", 0))
        positions = jnp.broadcast_to(jnp.arange(text.shape[1])[None], text.shape)
        x = self.embed_text(text, positions, train=train)
        mask = causal(text.shape[1])
        if text_mask is not None:
            mask = mask & text_mask[:, None, None]
        x, out = apply_blocks(self.blocks, x, mask, positions=positions, train=train)
        logits, out["normed"] = self.logits(x)
        return logits, out
