"""GPT-2, a decoder of text.

A. Radford, J. Wu, R. Child, D. Luan, D. Amodei, I. Sutskever, "Language Models are Unsupervised Multitask Learners", 2019:

    text ── embed + positions ── block_0 ── … ── readout (norm, then the embedding's table)

Every language tower has this shape, so that a system may put layers of its own between the blocks: `embed_text`, `blocks`,
`logits`, and `is_causal`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.multi_head import PreNormBlock, Readout, causal

SIZES: Mapping[str, Mapping[str, int]] = {
    "distilgpt2": {"width": 768, "depth": 6, "heads": 12},
    "gpt2": {"width": 768, "depth": 12, "heads": 12},
    "gpt2-medium": {"width": 1024, "depth": 24, "heads": 16},
    "gpt2-large": {"width": 1280, "depth": 36, "heads": 20},
    "gpt2-xl": {"width": 1600, "depth": 48, "heads": 25},
}
"""Published name -> fields of `GPT2`."""


class GPT2(nn.Module):
    """The whole network; the defaults are the smallest published size.

    Attributes:
      vocab_size: number of words V.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      positions: the longest text that it takes; 0: it does not know where a word stands.
      tied: whether the output's table is the embedding's.
      dropout: dropout rate.
      mlmi: the form that MLMI's code gives it (Flamingo spec, section 5): scores are not scaled, GELU is the exact one, nothing
        is dropped between attention and residual, the last normalisation has no bias.
      maps: whether there are attention maps among the intermediates; without, memory grows linearly with the text's length.
      dtype: type of the multiplications and of the states; parameters, statistics, softmaxes and logits are float32.
    """

    is_causal: ClassVar[bool] = True

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
        init = nn.initializers.normal(0.02)
        self.embed = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=init)
        if self.positions:
            self.position = nn.Embed(self.positions, self.width, dtype=self.dtype, embedding_init=init)
        self.drop = Dropout(self.dropout)
        self.block = [
            PreNormBlock(
                self.heads,
                4 * self.width,
                "gelu" if self.mlmi else "gelu_tanh",
                scale=1.0 if self.mlmi else None,
                dropout=self.dropout,
                attention_output_dropout=0.0 if self.mlmi else None,
                attention_dropout=self.dropout,
                maps=self.maps,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.readout = Readout(self.vocab_size, self.tied, norm_bias=not self.mlmi, dtype=self.dtype)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks, to be called one after the other."""
        return tuple(self.block)

    def embed_text(
        self, text: Int[Array, "B T"], positions: Int[Array, "B T"], *, train: bool
    ) -> Float[Array, "B T D"]:
        """The states that the first block reads. Without positions there is no dropout either."""
        x = self.embed(text)
        return self.drop(x + self.position(positions), train=train) if self.positions else x

    def logits(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T V"], Float[Array, "B T D"]]:
        """Scores of each next word, and the normalised states that they are read from."""
        return self.readout(x, self.embed.embedding)

    def __call__(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"] | None = None, *, train: bool = False
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Scores every next word.

        Args:
          text: int[B, T], numbers of the words; each stands at its place in the row.
          text_mask: bool[B, T], False for padding, which nothing reads.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          float32[B, T, V] logits, and the named intermediates: `embedded` and `block_0`, … [B, T, D], the states before the
          first block and after each; `normed` [B, T, D]; and with `maps` `attention_0`, … float32[B, K, T, T].
        """
        positions = jnp.broadcast_to(jnp.arange(text.shape[1])[None], text.shape)
        x = self.embed_text(text, positions, train=train)
        mask = causal(text.shape[1])
        if text_mask is not None:
            mask = mask & text_mask[:, None, None]
        out = {"embedded": x}
        for i, block in enumerate(self.blocks):
            x, weights, _ = block(x, mask, train=train)
            out |= {f"block_{i}": x} | ({} if weights is None else {f"attention_{i}": weights})
        logits, out["normed"] = self.logits(x)
        return logits, out
