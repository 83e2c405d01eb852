"""A transformer's block, before or after whose parts stands a normalisation, and what reads token scores from its states."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.kernels import times_transposed
from jaxvqa.models.layers.attention import KeyValue, MultiHeadAttention, Past, recall
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.feed_forward import FeedForward

LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)
"""The usual layer normalisation. The epsilon has to be given: Flax's is 1e-6, PyTorch's 1e-5, BERT's 1e-12."""


class Readout(nn.Module):
    """logits = table · norm(x): how probable each word of a vocabulary is.

    Attributes:
      vocab_size: number of words V.
      tied: the table is given with each call, and is not a parameter of this module.
      norm_bias: whether the normalisation has a bias beside its gain.
      epsilon: of the normalisation.
      dtype: type of the multiplications; the logits are float32.
    """

    vocab_size: int
    tied: bool = True
    norm_bias: bool = True
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], table: Float[Array, "V D"] | None = None
    ) -> tuple[Float[Array, "B T V"], Float[Array, "B T D"]]:
        """Returns the logits, and what they are read from."""
        x = LayerNorm(epsilon=self.epsilon, use_bias=self.norm_bias, dtype=self.dtype, name="norm")(x)
        if table is None or not self.tied:
            table = self.param("table", nn.initializers.normal(0.02), (self.vocab_size, x.shape[-1]))
        rows = x.reshape(-1, x.shape[-1])
        logits = times_transposed(rows, table.astype(self.dtype))
        return logits.reshape(*x.shape[:-1], -1), x


class Block(nn.Module):
    """Self-attention, cross-attention where there is one, and a feed-forward part, each beside a residual.

        before    x + drop(part(norm(x)))        a vision transformer, CLIP, GPT-2
        after     norm(x + drop(part(x)))        BERT, MED, RWSAN

    Attributes:
      attention: the self-attention.
      feed_forward: the two-layer map.
      norm: makes a normalisation of the given name: `LayerNorm` with its epsilon, for instance.
      norm_first: whether a part reads what is normalised, or its sum with the residual is.
      cross_attention: reads from `memory`, between the two other parts; none without.
      dropout: rate of dropout of what each part adds.
      attention_output_dropout: the same of what the self-attention adds; `dropout` without.
      drop_path: probability with which a part adds nothing to an example, in training; otherwise it adds more in proportion.
      maps: whether the attention weights are returned; without, memory grows linearly (`attend_in_parts`).
    """

    attention: MultiHeadAttention
    feed_forward: FeedForward
    norm: Callable[..., nn.Module]
    norm_first: bool
    cross_attention: MultiHeadAttention | None = None
    dropout: float = 0.0
    attention_output_dropout: float | None = None
    drop_path: float = 0.0
    maps: bool = True

    def remember(self, memory: Float[Array, "B S E"]) -> KeyValue:
        """Keys and values of what the cross-attention reads, to be made once for all tokens that are decoded."""
        assert self.cross_attention is not None
        return self.cross_attention.project(memory)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #K #T S"] | None = None,
        past: Past | None = None,
        *,
        memory: KeyValue | None = None,
        memory_mask: Bool[Array, "#B #K #T M"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B K T S"]], KeyValue]:
        """Refines the sequence x.

        Args:
          x: float[B, T, D].
          mask: where each position may read, `past`'s places included.
          past: earlier positions.
          memory: what `remember` made; without, there is no cross-attention.
          memory_mask: where each position may read there.
          positions: not read here; some decoders' blocks do.
          train: applies dropout.

        Returns:
          The result; the attention weights by the part's name, none without `maps`; and keys and values of all positions up
          to these.
        """
        maps: dict[str, Array] = {}
        seen: list[KeyValue] = []

        def attend(name: str, part: MultiHeadAttention, y: Array, source: KeyValue, mask: Array | None) -> Array:
            if not self.maps:
                return part.in_parts(y, source, mask, train=train)
            y, maps[name] = part(y, source, mask, train=train)
            return y

        def read(y: Array) -> Array:
            seen.append(recall(self.attention.project(y), past))
            return attend("attention", self.attention, y, seen[0], mask)

        def beside_residual(x: Array, name: str, part: Callable[[Array], Array], rate: float) -> Array:
            norm = self.norm(name=f"{name}_norm")
            y = Dropout(rate)(part(norm(x) if self.norm_first else x), train=train)
            if self.drop_path:
                y = Dropout(self.drop_path, whole_examples=True, name=f"{name}_drop_path")(y, train=train)
            return x + y if self.norm_first else norm(x + y)

        rate = self.dropout if self.attention_output_dropout is None else self.attention_output_dropout
        x = beside_residual(x, "attention", read, rate)
        if self.cross_attention is not None and memory is not None:
            read_memory = functools.partial(
                attend, "cross_attention", self.cross_attention, source=memory, mask=memory_mask
            )
            x = beside_residual(x, "cross_attention", read_memory, self.dropout)
        x = beside_residual(x, "feed_forward", functools.partial(self.feed_forward, train=train), self.dropout)
        return x, maps, seen[0]


INIT_STD = 0.02
"""BERT's, at a width of 768."""

INIT = nn.initializers.normal(INIT_STD)
"""Initialiser of the kernels and tables of most transformers."""


def usual_block(
    width: int,
    heads: int,
    hidden: int,
    activation: str,
    *,
    norm_first: bool,
    epsilon: float,
    scale: float | None = None,
    cross_attention: bool = False,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    attention_output_dropout: float | None = None,
    drop_path: float = 0.0,
    maps: bool = True,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> Block:
    """A block with the usual attention, heads of width/heads, and the usual normalisation.

    Args:
      width: size D of a state.
      heads: number of heads of each attention.
      hidden: width between the two linear layers of the feed-forward part.
      activation: a name of `ACTIVATIONS`.
      norm_first: as in `Block`.
      epsilon: of the normalisations.
      scale: factor of the attention's scores; one over the root of a head's width without.
      cross_attention: whether there is one.
      dropout: as in `Block`.
      attention_dropout: rate of dropout on the attention weights.
      attention_output_dropout: as in `Block`.
      drop_path: as in `Block`.
      maps: as in `Block`.
      name: of the block.
    """

    def attention() -> MultiHeadAttention:
        return MultiHeadAttention(
            heads,
            width // heads,
            width,
            scale=scale,
            dropout=attention_dropout,
            kernel_init=INIT,
            dtype=dtype,
            parent=None,
        )

    return Block(
        attention=attention(),
        feed_forward=FeedForward(hidden, width, dtype=dtype, activation=activation, kernel_init=INIT, parent=None),
        norm=functools.partial(LayerNorm, epsilon=epsilon, dtype=dtype),
        norm_first=norm_first,
        cross_attention=attention() if cross_attention else None,
        dropout=dropout,
        attention_output_dropout=attention_output_dropout,
        drop_path=drop_path,
        maps=maps,
        name=name,
    )


def apply_blocks(
    blocks: Iterable[Any], x: Float[Array, "B T D"], mask: Bool[Array, "#B #K #T T"] | None, **options: Any
) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
    """Applies blocks in turn.

    Returns:
      The result, and the named intermediates: `embedded`, what the first block reads, and `block_0`, … [B, T, D], what each
      gives, and `attention_0`, … float32[B, K, T, T], and so on for each part that reads.
    """
    out = {"embedded": x}
    for i, block in enumerate(blocks):
        x, maps, _ = block(x, mask, **options)
        out |= {f"block_{i}": x} | numbered(maps, i)
    return x, out


def numbered(maps: dict[str, Array], i: int) -> dict[str, Array]:
    """The attention maps of block i by their names among a model's intermediates."""
    return {f"{name}_{i}": weights for name, weights in maps.items()}
