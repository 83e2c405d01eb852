"""What MLMI's published Flamingo checkpoints need beside their values, wrong for any other model; and what MLMI trained.

Each quirk is a field of `Quirks`, and what it computes is a method there: the model itself is free of them. Numbers such as Q4
are those of docs/originals/flamingo.md, section 20, as the other sections are of that page.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models.layers.perceiver import visible_media
from jaxvqa.models.towers.gpt2 import GPT2
from jaxvqa.models.towers.palm import PaLM


@dataclasses.dataclass(frozen=True)
class Quirks:
    """Which of the original's quirks a model has; none of them by default.

    Attributes:
      mlmi_gpt2: GPT-2's scores are not scaled, its GELU is exact, its last normalisation has no bias (section 5, Q4).
      doubled_residual: what a block returns, its residual included, is added to its input once more (section 5, Q4).
      first_sample: what a block of GPT-2 returns for a batch's first sample is added to all of them (section 5, Q1).
      uniform_before_media: text before the first image attends to all latents equally instead of to none (section 4, Q2).
      uniform_beyond_media: so does text after more image tokens than there are images (section 4).
      one_medium: a sample's images are the tokens of one medium instead of one medium each (section 8, Q5).
      attend_padding: BERT reads padding like text (section 6, Q15).
      shared_loss_mask: the loss of text counts a position as often as samples of the batch have a token there (section
        10, Q7), and no padding is masked there.
    """

    mlmi_gpt2: bool = False
    doubled_residual: bool = False
    first_sample: bool = False
    uniform_before_media: bool = False
    uniform_beyond_media: bool = False
    one_medium: bool = False
    attend_padding: bool = False
    shared_loss_mask: bool = False

    @classmethod
    def parse(cls, compat: str) -> "Quirks":
        """Reads names of quirks and of `PUBLISHED`, separated by commas.

        Raises:
          ConfigError: lists the names that are neither.
        """
        names = [name.strip() for name in compat.split(",") if name.strip()]
        known = (*(field.name for field in dataclasses.fields(cls)), *PUBLISHED)
        if unknown := [f"model.compat has {name!r}{choose(name, known)}" for name in names if name not in known]:
            raise ConfigError("\n".join(unknown))
        return cls(**{part: True for name in names for part in PUBLISHED.get(name, (name,))})

    def language_fields(self, language: type[nn.Module] | None) -> dict[str, Any]:
        """Fields of a language model of this class."""
        return {"mlmi": self.mlmi_gpt2} if language is GPT2 else {}

    def after_block(
        self, language: nn.Module, x: Float[Array, "B T D"], y: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """The states after a block of the language model that turned x into y."""
        if not self.doubled_residual or isinstance(language, PaLM):
            return y
        return x + (y[:1] if self.first_sample and isinstance(language, GPT2) else y)

    def media(self, tokens: Float[Array, "B M N D"]) -> Float[Array, "B _ _ D"]:
        """The media of a sample with M images of N tokens each."""
        return tokens.reshape(len(tokens), 1, -1, tokens.shape[-1]) if self.one_medium else tokens

    def visible_media(
        self, count: Int[Array, "B T"], media: int, *, immediate: bool
    ) -> tuple[Bool[Array, "B T M"], Bool[Array, "B T"]]:
        """Which media each position attends to, and whether it attends at all; see `jaxvqa.models.layers.perceiver`."""
        before, beyond = self.uniform_before_media, self.uniform_beyond_media
        return visible_media(count, media, immediate=immediate, uniform_before=before, uniform_beyond=beyond)

    def as_read(self, is_causal: bool, real: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
        """The mask of a text's tokens as the language model reads it."""
        return jnp.ones_like(real) if self.attend_padding and not is_causal else real


_OF_ALL_YEARS = (
    *("mlmi_gpt2", "doubled_residual", "uniform_beyond_media", "one_medium", "attend_padding", "shared_loss_mask"),
)
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "2022": (*_OF_ALL_YEARS, "uniform_before_media"),
    "2023": _OF_ALL_YEARS,
}
"""What checkpoints of July 2022, and of the last state of MLMI's code, need: each a name for several quirks."""

FREEZE: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "flamingo_mode": (
        (r"vision/.*", True),
        (r"language/(block_\d+|readout/norm)/.*", True),
        (r".*", False),
    ),
    "vision": ((r"vision/.*", True), (r".*", False)),
}
"""Tables for `config.optim.freeze` (docs/originals/flamingo.md, section 9): MLMI's `flamingo_mode`, which trains the embedding;
all but the vision tower."""
