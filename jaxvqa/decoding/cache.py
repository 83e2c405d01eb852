"""What a decoder keeps of the texts that it writes: keys and values of each block, in places that a prompt's texts share."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class DecoderCache(flax.struct.PyTreeNode):
    """What is kept of N texts of B prompts from one token to the next, N / B side by side from each.

    To attention, the texts of a prompt are positions in a row: they share its places, and those of one another's tokens, and
    each reads its own only. A text that goes on from another one takes over what that one reads, and nothing is copied.

    Attributes:
      blocks: keys and values of each block (`jaxvqa.models.layers.attention.KeyValue`), with S places; of B rows.
      filled: bool[N, S], which places hold a token of each text.
      slot: int32[], the next place, the same for all rows.
      position: int32[N], the next token's number in its own text, from 0.
      shared: what else a prompt's texts read, such as images: arrays of B rows.
      own: what else is known of each text: arrays of N rows.
    """

    blocks: tuple[Any, ...]
    filled: Bool[Array, "N S"]
    slot: Int[Array, ""]
    position: Int[Array, " N"]
    shared: Any = ()
    own: Any = ()

    @classmethod
    def start(
        cls, blocks: tuple[Any, ...], mask: Bool[Array, "B P"], *, slots: int, texts: int, **more: Any
    ) -> "DecoderCache":
        """A text for each prompt, and room for `texts` of `slots` tokens each; `more`: `shared` and `own`."""
        length = mask.shape[1]
        room = texts * (slots - length)
        return cls(
            blocks=tuple(block.padded(length + room) for block in blocks),
            filled=jnp.pad(mask, ((0, 0), (0, room))),
            slot=jnp.asarray(length, jnp.int32),
            position=jnp.sum(mask, axis=-1, dtype=jnp.int32),
            **more,
        )

    def of_texts(self, change: Callable[[Array], Array]) -> "DecoderCache":
        """The same with `change` applied to what has a row for each text."""
        return self.replace(
            filled=change(self.filled), position=change(self.position), own=jax.tree.map(change, self.own)
        )

    @property
    def past(self) -> list[Any]:
        """What each block reads of earlier positions."""
        return [(block, self.slot) for block in self.blocks]

    def side_by_side(self, x: Array) -> Array:
        """[N, …], of each text, as [B, N / B, …]: the texts of a prompt as positions in a row."""
        return x.reshape(self.blocks[0].key.shape[0], -1, *x.shape[1:])

    def reserve(self) -> "DecoderCache":
        """The same with a place for the next token of each text."""
        texts, slots = self.filled.shape
        beside = texts // self.blocks[0].key.shape[0]
        own = jnp.arange(slots)[None] == self.slot + jnp.arange(texts)[:, None] % beside
        return self.replace(filled=self.filled | own)

    @property
    def mask(self) -> Bool[Array, "B 1 _ S"]:
        """What each text may read: the attention mask of `side_by_side`."""
        return self.side_by_side(self.filled)[:, None]

    def advance(self, blocks: tuple[Any, ...], own: Any) -> "DecoderCache":
        """The same with the token that was reserved for."""
        beside = len(self.position) // blocks[0].key.shape[0]
        return self.replace(blocks=blocks, slot=self.slot + beside, position=self.position + 1, own=own)

    def behind(
        self, tokens: Int[Array, "C W"]
    ) -> tuple[Int[Array, "B _"], Int[Array, "B _"], Bool[Array, "B 1 _ _"], list[Any]]:
        """C texts behind each of B as positions in a row: each reads what is kept, and its own text's earlier tokens.

        Returns:
          Tokens, positions, mask, and what each block reads of earlier positions.
        """
        (batch, slots), (count, length) = self.filled.shape, tokens.shape
        row = jnp.arange(count * length)
        own = (row[:, None] // length == row[None] // length) & (row[None] <= row[:, None])
        kept = jnp.repeat(self.filled[:, None], len(row), axis=1)
        mask = jnp.concatenate([kept, jnp.repeat(own[None], batch, axis=0)], axis=-1)
        past = [(block.padded(slots + len(row)), jnp.asarray(slots, jnp.int32)) for block in self.blocks]
        tokens = jnp.repeat(tokens.reshape(1, -1), batch, axis=0)
        return tokens, self.position[:, None] + (row % length)[None], mask[:, None], past
