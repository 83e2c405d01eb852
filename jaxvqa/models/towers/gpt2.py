"""GPT-2, a decoder of text.

A. Radford, J. Wu, R. Child, D. Luan, D. Amodei, I. Sutskever, "Language Models are Unsupervised Multitask Learners", 2019:

    text ── embed + positions ── block_0 ── … ── readout (norm, then the embedding's table)
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.transformer import INIT, Readout, usual_block
from jaxvqa.models.towers.decoder import Decoder


class GPT2(Decoder):
    """The whole network; the defaults are the smallest published size.

    Attributes:
      vocab_size: number of tokens V.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      positions: the longest text that it takes; 0: it does not know where a token stands, and has no dropout before the blocks.
      tied: whether the output's table is the embedding's.
      dropout: dropout rate.
      mlmi: the form that MLMI's code gives it (docs/originals/flamingo.md, section 5): scores are not scaled, GELU is the
      exact one, nothing
        is dropped between attention and residual, the last normalisation has no bias.
      maps: whether there are attention maps among the intermediates; without, memory grows linearly with the text's length.
    """

    vocab_size: int = 50257
    width: int = 768
    depth: int = 12
    heads: int = 12
    positions: int = 1024
    tied: bool = True
    dropout: float = 0.1
    mlmi: bool = False
    maps: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts."""
        self.embed = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=INIT)
        if self.positions:
            self.position = nn.Embed(self.positions, self.width, dtype=self.dtype, embedding_init=INIT)
        self.drop = Dropout(self.dropout)
        self.block = [
            usual_block(
                self.width,
                self.heads,
                4 * self.width,
                "gelu" if self.mlmi else "gelu_tanh",
                norm_first=True,
                epsilon=1e-5,
                scale=1.0 if self.mlmi else None,
                dropout=self.dropout,
                attention_dropout=self.dropout,
                attention_output_dropout=0.0 if self.mlmi else None,
                maps=self.maps,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.readout = Readout(self.vocab_size, self.tied, norm_bias=not self.mlmi, dtype=self.dtype)

    def embed_text(
        self, text: Int[Array, "B T"], positions: Int[Array, "B T"], *, train: bool
    ) -> Float[Array, "B T D"]:
        """The states that the first block reads."""
        x = self.embed(text)
        return self.drop(x + self.position(positions), train=train) if self.positions else x
