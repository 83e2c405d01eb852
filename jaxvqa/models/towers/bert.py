"""BERT, an encoder of text.

J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", NAACL 2019:

    text ── embed + positions + types ── norm ── block_0 ── … ── pooler of the first token
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import INIT, LayerNorm, Readout, apply_blocks, usual_block
from jaxvqa.models.towers.decoder import check_length

EPSILON = 1e-12


class BERT(nn.Module):
    """The whole network; the defaults are the base size.

    Attributes:
      vocab_size: number of tokens V.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      hidden: width between the two maps of a block.
      positions: the longest text that it takes.
      types: number of kinds of text that are distinguished; 0: none is added.
      pooler: whether there is a map of the first token's state.
      with_readout: whether there are token scores: a normalisation without a bias, and a table of its own, as MLMI has it
        (docs/originals/flamingo.md, section 6).
      dropout: dropout rate.
    """

    is_causal: ClassVar[bool] = False

    vocab_size: int = 30522
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    types: int = 2
    pooler: bool = True
    with_readout: bool = False
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts."""

        def table(count: int) -> nn.Embed:
            return nn.Embed(count, self.width, dtype=self.dtype, embedding_init=INIT)

        self.embed, self.position = table(self.vocab_size), table(self.positions)
        if self.types:
            self.type = table(self.types)
        self.embed_norm = LayerNorm(epsilon=EPSILON, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.block = [
            usual_block(
                self.width,
                self.heads,
                self.hidden,
                "gelu",
                norm_first=False,
                epsilon=EPSILON,
                dropout=self.dropout,
                attention_dropout=self.dropout,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        if self.pooler:
            self.pool = Linear(self.width, self.dtype, kernel_init=INIT)
        if self.with_readout:
            self.readout = Readout(self.vocab_size, tied=False, norm_bias=False, dtype=self.dtype)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks, to be called one after the other."""
        return tuple(self.block)

    def embed_text(
        self,
        text: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        types: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """The states that the first block reads. Without `types`, all are of the first kind."""
        x = self.embed(text) + self.position(positions)
        if self.types:
            x = x + self.type(jnp.zeros_like(text) if types is None else types)
        return self.drop(self.embed_norm(x), train=train)

    def logits(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T V"], Float[Array, "B T D"]]:
        """Token scores, and the normalised states that they are read from."""
        return self.readout(x)

    def __call__(
        self,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        types: Int[Array, "B T"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
        """Encodes text.

        Args:
          text: int[B, T], token ids.
          text_mask: bool[B, T], False for padding, which nothing reads.
          types: int[B, T], which kind of text each token is of.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          [B, T, D] states after the last block, and the named intermediates: those of `apply_blocks`; and `pooled` [B, D] with
          a pooler.

        Raises:
          ConfigError: there are no positions for texts of this length.
        """
        check_length(text.shape[1], self.positions)
        positions = jnp.broadcast_to(jnp.arange(text.shape[1])[None], text.shape)
        x = self.embed_text(text, positions, types, train=train)
        mask = None if text_mask is None else text_mask[:, None, None]
        x, out = apply_blocks(self.blocks, x, mask, train=train)
        if self.pooler:
            out["pooled"] = jnp.tanh(self.pool(x[:, 0]))
        return x, out
