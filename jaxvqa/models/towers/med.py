"""MED, BLIP's text model: one BERT that encodes text, encodes text beside an image, and writes text about an image.

J. Li, D. Li, C. Xiong, S. Hoi, "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
Generation", ICML 2022; docs/originals/blip.md, section 4:

    text ── embed + positions ── norm ── block_0 ── … ── readout

    block:  self-attention ── cross-attention to `memory` ── feed-forward, a normalisation behind each

Encoder and decoder share everything but their self-attention, which a block therefore has twice (section 5). Keys and values of
an image are made once (`remember`) and read by all texts about it, whoever reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.decoding.cache import DecoderCache
from jaxvqa.kernels import times_transposed
from jaxvqa.models.layers.attention import KeyValue, MultiHeadAttention, Past, causal, recall
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.feed_forward import FeedForward
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import INIT_STD, LayerNorm, numbered
from jaxvqa.models.towers.bert import EPSILON
from jaxvqa.models.towers.decoder import check_length

Memory = Sequence[KeyValue]
"""For each block the keys and values of what its cross-attention reads."""


def look(
    attention: MultiHeadAttention,
    x: Float[Array, "B T D"],
    memory: KeyValue,
    mask: Bool[Array, "#M 1 1 N"] | None,
    *,
    train: bool,
    change: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B K T N"]]:
    """What the texts beside each of M images read of it, and the weights; arguments as of `MEDBlock`."""
    beside = x.reshape(len(memory.key), -1, x.shape[-1])
    options = {} if change is None else {"change": change}
    y, weights = attention(beside, memory, mask, train=train, **options)
    weights = weights.reshape(
        *weights.shape[:2], -1, x.shape[1], weights.shape[-1]
    )  # [M, K, P, T, N], P texts an image
    return y.reshape(x.shape), jnp.moveaxis(weights, 2, 1).reshape(len(x), -1, *weights.shape[3:])


class MEDBlock(nn.Module):
    """Self-attention, the encoder's or the decoder's, then cross-attention where there is something to read, then a map.

    Attributes:
      width: size D of a state.
      heads: heads of each attention.
      hidden: width between the two linear layers.
      dropout: rate, of attention weights and of what each part adds.
      epsilon: of every normalisation.
      init_std: standard deviation of fresh kernels.
    """

    width: int
    heads: int
    hidden: int
    dropout: float
    epsilon: float = EPSILON
    init_std: float = INIT_STD
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts; those that are never used get no parameters."""
        init = nn.initializers.normal(self.init_std)

        def attention() -> MultiHeadAttention:
            options = {"dropout": self.dropout, "kernel_init": init, "dtype": self.dtype}
            return MultiHeadAttention(self.heads, self.width // self.heads, self.width, **options)

        def norm() -> nn.Module:
            return LayerNorm(epsilon=self.epsilon, dtype=self.dtype)

        self.attention, self.attention_norm = attention(), norm()
        self.decoder_attention, self.decoder_attention_norm = attention(), norm()
        self.cross_attention, self.cross_attention_norm = attention(), norm()
        self.feed_forward = FeedForward(self.hidden, self.width, dtype=self.dtype, activation="gelu", kernel_init=init)
        self.feed_forward_norm = norm()
        self.drop = Dropout(self.dropout)

    def remember(self, memory: Float[Array, "B N E"]) -> KeyValue:
        """Keys and values for the cross-attention."""
        return self.cross_attention.project(memory)

    def look(
        self, x: Array, memory: KeyValue, mask: Array | None, *, train: bool, change: Callable[[Array], Array] | None
    ) -> tuple[Array, Array]:
        """What texts read of their images, and the weights."""
        return look(self.cross_attention, x, memory, mask, train=train, change=change)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "#B #K #T S"] | None,
        past: Past | None = None,
        *,
        memory: KeyValue | None,
        memory_mask: Bool[Array, "#M 1 1 N"] | None,
        writes: bool,
        train: bool,
        change: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array], KeyValue]:
        """Refines texts.

        Args:
          x: float[B, T, D].
          mask: where each position may read, `past`'s places included.
          past: earlier positions.
          memory: of M images; the texts of an image stand in a row, B / M each, and read the same keys and values.
          memory_mask: bool[M, 1, 1, N], where an image may be read.
          writes: whether the self-attention is the decoder's.
          train: applies dropout, which needs the random stream "dropout".
          change: of the weights of the cross-attention before they are dropped, to ask for their gradients.

        Returns:
          The states, the attention weights by the part's name, and keys and values of all positions up to these.
        """
        maps: dict[str, Array] = {}

        def behind(norm: nn.Module, x: Array, y: Array) -> Array:
            return norm(x + self.drop(y, train=train))

        attention = self.decoder_attention if writes else self.attention
        seen = recall(attention.project(x), past)
        y, maps["attention"] = attention(x, seen, mask, train=train)
        x = behind(self.decoder_attention_norm if writes else self.attention_norm, x, y)
        if memory is not None:
            y, maps["cross_attention"] = self.look(x, memory, memory_mask, train=train, change=change)
            x = behind(self.cross_attention_norm, x, y)
        x = behind(self.feed_forward_norm, x, self.feed_forward(x, train=train))
        return x, maps, seen


class TwinMEDBlock(MEDBlock):
    """The same about two images: NLVR2's (docs/originals/blip.md, section 10).

    Attributes:
      merges: whether what is read of the two is put together by a linear layer; else their mean counts.
    """

    merges: bool = False

    def setup(self) -> None:
        """Makes the parts: the cross-attention and its second one, for the second image."""
        super().setup()
        init = nn.initializers.normal(self.init_std)
        options = {"dropout": self.dropout, "kernel_init": init, "dtype": self.dtype}
        self.second_cross_attention = MultiHeadAttention(self.heads, self.width // self.heads, self.width, **options)
        if self.merges:
            self.merge = Linear(self.width, self.dtype, kernel_init=init)

    def remember(self, memory: Float[Array, "M N E"]) -> KeyValue:
        """Keys and values of all first images, and of all second ones, in two halves."""
        first, second = jnp.split(memory, 2)
        both = self.cross_attention.project(first), self.second_cross_attention.project(second)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)

    def look(
        self, x: Array, memory: KeyValue, mask: Array | None, *, train: bool, change: Callable[[Array], Array] | None
    ) -> tuple[Array, Array]:
        """What texts read of their two images; the weights are of both, one behind the other."""
        (key, second_key), (value, second_value) = (jnp.split(x, 2) for x in (memory.key, memory.value))
        halves = (KeyValue(key, value), KeyValue(second_key, second_value))
        masks = [None, None] if mask is None else jnp.split(mask, 2)
        attentions = (self.cross_attention, self.second_cross_attention)
        read, weights = zip(
            *(look(a, x, m, part, train=train) for a, m, part in zip(attentions, halves, masks, strict=True)),
            strict=True,
        )
        y = self.merge(jnp.concatenate(read, axis=-1)) if self.merges else (read[0] + read[1]) / 2
        return y, jnp.concatenate(weights, axis=-1)


class MED(nn.Module):
    """The whole network; the defaults are the base size.

    Attributes:
      vocab_size: number of tokens V, the two special ones of BLIP among them.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      hidden: width between the two linear layers of a block.
      positions: the longest text that it takes.
      dropout: dropout rate.
      epsilon: of every normalisation.
      init_std: standard deviation of fresh kernels and tables. What a part adds at first shrinks with it and with the width:
        a narrow network from nothing begins to read images sooner with a larger one.
      twin: how many of the first blocks take the mean of what they read of two images, while the others merge it; None: texts
        are about one image.
    """

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    dropout: float = 0.1
    epsilon: float = EPSILON
    init_std: float = INIT_STD
    twin: int | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts; those that are never used get no parameters."""
        init = nn.initializers.normal(self.init_std)

        def table(count: int) -> nn.Embed:
            return nn.Embed(count, self.width, dtype=self.dtype, embedding_init=init)

        self.embed, self.position = table(self.vocab_size), table(self.positions)
        self.embed_norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        sizes = (self.width, self.heads, self.hidden, self.dropout, self.epsilon, self.init_std, self.dtype)
        self.block = [
            MEDBlock(*sizes) if self.twin is None else TwinMEDBlock(*sizes, merges=i >= self.twin)
            for i in range(self.depth)
        ]
        self.transform = Linear(self.width, self.dtype, kernel_init=init)
        self.transform_norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.readout = Readout(self.vocab_size, self.dtype)

    def remember(self, memory: Float[Array, "B N E"]) -> tuple[KeyValue, ...]:
        """Keys and values of what texts are to be about, for each block."""
        return tuple(block.remember(memory) for block in self.block)

    def embed_text(
        self, text: Int[Array, "B T"], positions: Int[Array, "B T"] | None = None, *, train: bool
    ) -> Float[Array, "B T D"]:
        """The states that the first block reads; positions count from 0 without."""
        where = jnp.arange(text.shape[1])[None] if positions is None else positions
        return self.drop(self.embed_norm(self.embed(text) + self.position(where)), train=train)

    def encode(
        self,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        memory: Memory | None = None,
        memory_mask: Bool[Array, "M N"] | None = None,
        *,
        train: bool = False,
        changes: Mapping[int, Callable[[Array], Array]] | None = None,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
        """Encodes texts, alone or beside images.

        Args:
          text: int[B, T], token ids.
          text_mask: bool[B, T], False for padding, which nothing reads.
          memory: what `remember` made of M images, each beside B / M texts in a row; without, there is no cross-attention.
          memory_mask: bool[M, N], False for image tokens that nothing reads.
          train: applies dropout, which needs the random stream "dropout".
          changes: of the weights of some blocks' cross-attention (`MEDBlock`).

        Returns:
          [B, T, D] last states, and the named intermediates: `embedded`, `block_0`, `attention_0`, `cross_attention_0`, ….

        Raises:
          ConfigError: there are no positions for texts of this length.
        """
        check_length(text.shape[1], self.positions)
        mask = None if text_mask is None else text_mask[:, None, None]
        x = self.embed_text(text, train=train)
        x, out, _ = self._blocks(x, mask, memory, memory_mask, writes=False, train=train, changes=changes)
        return x, out

    def write(
        self,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        memory: Memory | None = None,
        memory_mask: Bool[Array, "M N"] | None = None,
        *,
        train: bool = False,
        changes: Mapping[int, Callable[[Array], Array]] | None = None,
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Scores every next token of texts about images; arguments and intermediates as of `encode`, and `hidden`."""
        check_length(text.shape[1], self.positions)
        mask = causal(text.shape[1])
        if text_mask is not None:
            mask = mask & text_mask[:, None, None]
        x = self.embed_text(text, train=train)
        x, out, _ = self._blocks(x, mask, memory, memory_mask, writes=True, train=train, changes=changes)
        return self.logits(x), out | {"hidden": x}

    def start_writing(
        self,
        text: Int[Array, "B P"],
        text_mask: Bool[Array, "B P"],
        memory: Memory,
        memory_mask: Bool[Array, "B N"] | None,
        *,
        slots: int,
        texts: int,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Reads prompts (`jaxvqa.decoding.writer.Writer.prefill`), whose texts read `memory`, a row for each prompt.

        Raises:
          ConfigError: there are no positions for texts of this length.
        """
        check_length(slots, self.positions, "Prompt and answer take")
        positions = jnp.maximum(jnp.cumsum(text_mask, axis=-1, dtype=jnp.int32) - 1, 0)
        mask = causal(text.shape[1]) & text_mask[:, None, None]
        x = self.embed_text(text, positions, train=False)
        x, _, kept = self._blocks(x, mask, memory, memory_mask, writes=True, train=False)
        last = jnp.max(jnp.where(text_mask, jnp.arange(text.shape[1])[None], 0), axis=-1)
        logits = self.logits(jnp.take_along_axis(x, last[:, None, None], axis=1))[:, 0]
        return logits, DecoderCache.start(kept, text_mask, slots=slots, texts=texts, shared=(memory, memory_mask))

    def go_on(self, token: Int[Array, " N"], cache: DecoderCache) -> tuple[Float[Array, "N V"], DecoderCache]:
        """Adds a token to each text (`Writer.decode`)."""
        cache = cache.reserve()
        text, positions = (cache.side_by_side(x) for x in (token, cache.position))
        x = self.embed_text(text, positions, train=False)
        memory, seen = cache.shared
        x, _, kept = self._blocks(x, cache.mask, memory, seen, cache.past, writes=True, train=False)
        return self.logits(x).reshape(len(token), -1), cache.advance(kept, own=cache.own)

    def read_behind(self, tokens: Int[Array, "C W"], cache: DecoderCache) -> Float[Array, "B C W V"]:
        """Reads C continuations behind each text (`Writer.decode_given`)."""
        text, positions, mask, past = cache.behind(tokens)
        x = self.embed_text(text, positions, train=False)
        memory, seen = cache.shared
        x, _, _ = self._blocks(x, mask, memory, seen, past, writes=True, train=False)
        return self.logits(x).reshape(len(text), *tokens.shape, -1)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Token scores, float32."""
        x = self.transform_norm(nn.gelu(self.transform(x), approximate=False))
        return self.readout(x, self.embed.embedding)

    def _blocks(
        self,
        x: Array,
        mask: Array | None,
        memory: Memory | None,
        memory_mask: Array | None,
        past: Sequence[Past | None] | None = None,
        changes: Mapping[int, Callable[[Array], Array]] | None = None,
        **options: bool,
    ) -> tuple[Array, dict[str, Array], tuple[KeyValue, ...]]:
        out, kept = {"embedded": x}, []
        rows = None if memory_mask is None else memory_mask[:, None, None]
        for i, block in enumerate(self.block):
            x, maps, seen = block(
                x,
                mask,
                None if past is None else past[i],
                memory=None if memory is None else memory[i],
                memory_mask=rows,
                change=(changes or {}).get(i),
                **options,
            )
            kept.append(seen)
            out |= {f"block_{i}": x} | numbered(maps, i)
        return x, out, tuple(kept)


class Readout(nn.Module):
    """logits = table · x + bias, with the table of the embedding.

    Attributes:
      vocab_size: number of tokens V.
    """

    vocab_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
        """The logits, float32."""
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        logits = times_transposed(x.reshape(-1, x.shape[-1]), table.astype(self.dtype))
        return (logits + bias.astype(logits.dtype)[None]).reshape(*x.shape[:-1], -1)
