"""Flamingo: a language model that reads images, by resampled images and gated cross-attention between its blocks.

F. Scherer, A. Mancu, A. Mellouli, Ç. Köksal, "Explaining Medical Image Classifiers with Visual Question Answering Models"
(MLMI), after J.-B. Alayrac and others, "Flamingo: a Visual Language Model for Few-Shot Learning", NeurIPS 2022. Images and a
text with a special token for each image go in, logits of each next token come out, and of classes where there is a head for
them:

    image ── vision ── projection ── resampler ── latents ──┬────────────────────┐
                          │                                 │                    │
    text ── embed ── block_0 ────────────────────────── cross_0 ── block_1 … ── cross_3 … ── readout
                          │                                                         │
                          └───────────── class_head ──── state at the question's end ┘
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.decoding.cache import DecoderCache
from jaxvqa.errors import ConfigError
from jaxvqa.models import towers
from jaxvqa.models.flamingo_head import ClassHead
from jaxvqa.models.flamingo_quirks import Quirks
from jaxvqa.models.layers.attention import KeyValue, Past, causal
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.perceiver import GatedCrossAttention, PerceiverResampler
from jaxvqa.models.layers.transformer import numbered
from jaxvqa.models.towers.bert import BERT
from jaxvqa.models.towers.clip import VisionTransformer
from jaxvqa.models.towers.decoder import check_length
from jaxvqa.types import Arrays


class Flamingo(nn.Module):
    """The whole network, a `jaxvqa.decoding.writer.Writer`; the defaults are the published sizes.

    Attributes:
      vocab_size: number of tokens V, special tokens included.
      image_token: id of the token that stands for an image.
      num_answers: number of classes A; 0: no class head.
      language: one of `jaxvqa.models.towers.LANGUAGE_MODELS`.
      language_sizes: fields of that tower that differ from its defaults.
      vision: one of `jaxvqa.models.towers.IMAGE_ENCODERS`: `clip`, which the published model has; `resnet`, which learns sooner
        from nothing; or `regions`, whose features were computed beforehand.
      vision_sizes: fields of that tower that differ from its defaults, which are ViT-B/32's.
      patches: the resampler reads an image's patches, instead of its one projected vector.
      every: there is a cross-attention after blocks 0, every, 2·every, ….
      latents: latents L of each medium.
      latent_scale: standard deviation that the latents start from; less than 1 for a network from nothing.
      resampler_depth: layers of the resampler.
      cross_heads: heads of resampler and cross-attention.
      cross_head_width: size of a query, a key and a value there.
      media: the most media of a sample.
      media_numbered: each has a vector of its own by its number; training with one image teaches the first of them only. False:
        all have the first one's, as the paper's images have, so that several can be read, and any number of them.
      cross_activation: activation there, a name of `ACTIVATIONS`.
      gate: what the gates of the cross-attentions start from, before their tanh; more than 0 for a network from nothing.
      immediate: text reads the last image before it only, instead of all before it.
      head: what the class head (`ClassHead`) reads: `image_and_text`, `text`, or `image` alone.
      mean_head: it reads the mean of all states up to the question's end, instead of that at the end.
      head_dropout: rate of dropout there.
      compat: names of quirks or of `PUBLISHED` (`jaxvqa.models.flamingo_quirks`), separated by commas.
      dtype: type of the multiplications and of the states; parameters, statistics, softmaxes and logits are float32.
    """

    vocab_size: int
    image_token: int
    num_answers: int = 0
    language: str = "gpt2"
    language_sizes: Mapping[str, Any] = FrozenDict()
    vision: str = "clip"
    vision_sizes: Mapping[str, Any] = FrozenDict()
    patches: bool = False
    every: int = 3
    latents: int = 64
    latent_scale: float = 1.0
    resampler_depth: int = 2
    cross_heads: int = 8
    cross_head_width: int = 64
    media: int = 4
    media_numbered: bool = True
    cross_activation: str = "gelu"
    gate: float = 0.0
    immediate: bool = True
    head: str = "image_and_text"
    mean_head: bool = False
    head_dropout: float = 0.1
    compat: str = ""
    dtype: Any = jnp.float32

    @property
    def quirks(self) -> Quirks:
        """What is computed as MLMI's code does."""
        return Quirks.parse(self.compat)

    @property
    def writes(self) -> bool:
        """Whether the language model can write: BERT reads in both directions, and cannot."""
        return towers.LANGUAGE_MODELS[self.language][0].is_causal  # type: ignore[attr-defined]

    def setup(self) -> None:
        """Makes the parts."""

        def tower(kind: str, field: str, **fixed: Any) -> Any:
            name, sizes = getattr(self, field), getattr(self, f"{field}_sizes")
            at = (f"model.{field}", f"model.{field}_sizes")
            return towers.make(kind, name, sizes, *at, **fixed, dtype=self.dtype, name=field)

        language = towers.LANGUAGE_MODELS.get(self.language, (None,))[0]
        own = {"types": 0, "pooler": False, "with_readout": True} if language is BERT else {}
        own |= self.quirks.language_fields(language)
        self.tower = tower("language model", "language", vocab_size=self.vocab_size, **own)
        self.encoder = tower("image encoder", "vision")
        if not isinstance(self.encoder, VisionTransformer) and not self.patches:
            raise ConfigError(f"model.vision is {self.vision!r}, which is read by its patches: set model.patches.")
        self.projection = Linear(self.tower.width, self.dtype)
        shared = {"heads": self.cross_heads, "head_width": self.cross_head_width, "dtype": self.dtype}
        shared["activation"] = self.cross_activation
        of_media: dict[str, Any] = {"media": self.media, "numbered": self.media_numbered, "scale": self.latent_scale}
        self.resampler = PerceiverResampler(self.latents, self.resampler_depth, **of_media, **shared)
        self.cross = {
            str(i): GatedCrossAttention(features=self.tower.width, gate=self.gate, name=f"cross_{i}", **shared)
            for i in range(0, self.tower.depth, self.every)
        }
        self.classify = ClassHead(self.num_answers, self.head, self.mean_head, self.head_dropout, self.dtype)
        nn.share_scope(self, self.classify)

    def __call__(
        self,
        *,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        image: Float[Array, "I *M H W C"] | None = None,
        media: Float[Array, "I M N D"] | None = None,
        question_end: Int[Array, " B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], Arrays]:
        """Scores every next token.

        Args:
          text: int[B, T], token ids, with an `image_token` where each image belongs.
          text_mask: bool[B, T], False for padding, on either side, which nothing reads; none is padding without.
          image: float[B, H, W, 3] or float[B, M, H, W, 3], normalised. Behind a sample's own images may stand any others, which
            no token reads. Or B / n of them, each for n texts side by side, which is encoded once.
          media: float[B, M, N, D], tokens for the resampler instead of images.
          question_end: int[B], place of the last token that the class head may read.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          float32[B, T, V] logits, and the named intermediates: those of `see`; `embedded`, `block_i`, `cross_i` and `hidden`
          [B, T, D], the states before the first block, after each, after each cross-attention, and the last of them;
          `attention_i` float32[B, K, T, T], except from a GPT-2 without `maps`; `media_attention_i` float32[B, K, T, M·L]; and
          with a class head `class_logits` float32[B, A], if it has what it reads.
        """
        latents, out = self.see(image=image, media=media, train=train)
        if latents is not None and len(latents) != len(text):
            times = len(text) // len(latents)
            latents, out = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), (latents, out))
        real = jnp.ones_like(text, jnp.bool_) if text_mask is None else text_mask
        x, inside, _ = self._read(text, real, self._keys(latents), train=train)
        logits, _ = self.tower.logits(x)
        out |= inside
        if self.num_answers:
            class_logits = self.classify(out, question_end, self._count(text)[:, -1], train=train)
            out |= {} if class_logits is None else {"class_logits": class_logits}
        return logits, out

    def see(
        self,
        *,
        image: Float[Array, "B *M H W C"] | None = None,
        media: Float[Array, "B M N D"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B M L D"] | None, Arrays]:
        """Turns images, or tokens of media, into latents. Images win where both are given.

        Returns:
          [B, M, L, D] latents, None without images and media; and the named intermediates: `latents`,
          `resampler_attention_i`; and of images `image_vector` [B, M, E], `projected` [B, M, D], and `vision_attention_i`
          float32[B, M, K, 1 + N, 1 + N].
        """
        out: Arrays = {}
        real = None
        if image is not None:
            image = image[:, None] if image.ndim == 4 else image
            batch, count = image.shape[:2]
            vector, inside = self.encoder(image.reshape(batch * count, *image.shape[2:]), train=train)

            def by_sample(x: Array) -> Array:
                return x.reshape(batch, count, *x.shape[1:])

            maps = {f"vision_{n}": by_sample(x) for n, x in inside.items() if n.startswith("attention_")}
            out |= {"image_vector": by_sample(vector)} | maps
            tokens = self.projection(by_sample(inside["tokens"] if self.patches else vector[:, None]))
            out["projected"] = tokens[:, :, 0]
            real = by_sample(inside["real"]) if "real" in inside else None
            media = self.quirks.media(tokens)
        if media is None:
            return None, out
        latents, inside = self.resampler(media, real)
        out |= {f"resampler_{n}": x for n, x in inside.items() if n.startswith("attention_")}
        return latents, out | {"latents": latents}

    def prefill(
        self,
        *,
        text: Int[Array, "B P"],
        text_mask: Bool[Array, "B P"],
        image: Float[Array, "B *M H W C"] | None = None,
        media: Float[Array, "B M N D"] | None = None,
        slots: int,
        texts: int = 1,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Reads prompts, with images as in a call; see `Writer`.

        The texts of a prompt share the latents as each cross-attention reads them; each knows how many images have begun.

        Raises:
          ConfigError: the language model is not a decoder, or does not take texts of this length.
        """
        if not self.writes:
            raise ConfigError(
                f"model.language is {self.language!r}, which reads in both directions and writes nothing."
            )
        check_length(slots, getattr(self.tower, "positions", 0), "Prompt and answer take")
        keys = self._keys(self.see(image=image, media=media)[0])
        x, _, blocks = self._read(text, text_mask, keys, train=False)
        last = jnp.max(jnp.where(text_mask, jnp.arange(text.shape[1])[None], 0), axis=-1)
        count = jnp.take_along_axis(self._count(text), last[:, None], axis=1)[:, 0]
        logits, _ = self.tower.logits(jnp.take_along_axis(x, last[:, None, None], axis=1))
        return logits[:, 0], DecoderCache.start(blocks, text_mask, slots=slots, texts=texts, shared=keys, own=count)

    def decode(self, token: Int[Array, " N"], cache: DecoderCache) -> tuple[Float[Array, "N V"], DecoderCache]:
        """Adds one token to each text; see `Writer`."""
        cache, count = cache.reserve(), cache.own + (token == self.image_token)
        text, positions, number = (cache.side_by_side(x) for x in (token, cache.position, count))
        x, _, blocks = self._run(text, positions, number, cache.mask, cache.shared, cache.past, train=False)
        logits, _ = self.tower.logits(x)
        return logits.reshape(len(token), -1), cache.advance(blocks, own=count)

    def decode_given(self, tokens: Int[Array, "C W"], cache: DecoderCache) -> Float[Array, "B C W V"]:
        """Reads C texts behind each of the cache's; see `Writer`."""
        text, positions, mask, past = cache.behind(tokens)
        count = cache.own[:, None] + self._count(tokens).reshape(1, -1)
        x, _, _ = self._run(text, positions, count, mask, cache.shared, past, train=False)
        logits, _ = self.tower.logits(x)
        return logits.reshape(len(text), *tokens.shape, -1)

    def _read(
        self, text: Array, real: Array, media: tuple[KeyValue, ...], *, train: bool
    ) -> tuple[Array, Arrays, tuple[KeyValue, ...]]:
        """Runs whole texts through the language model."""
        check_length(text.shape[1], getattr(self.tower, "positions", 0))
        real = self.quirks.as_read(self.writes, real)
        # Each token's number in its own text; padding before it has the first one's.
        positions = jnp.maximum(jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1, 0)
        mask = causal(real.shape[1]) & real[:, None, None] if self.writes else real[:, None, None]
        return self._run(text, positions, self._count(text), mask, media, train=train)

    def _run(
        self,
        text: Array,
        positions: Array,
        count: Array,
        mask: Array,
        media: tuple[KeyValue, ...],
        past: Sequence[Past | None] = (),
        *,
        train: bool,
    ) -> tuple[Array, Arrays, tuple[KeyValue, ...]]:
        """Embeds a text, and runs it through all blocks and cross-attentions; `count`: how many images have begun."""
        x = self.tower.embed_text(text, positions, train=train)
        out, kept = {"embedded": x}, []
        visible: tuple[Array, ...] = ()
        if media:
            number = media[0].key.shape[2] // self.latents
            visible = self.quirks.visible_media(count, number, immediate=self.immediate)
        for i, block in enumerate(self.tower.blocks):
            y, maps, seen = block(x, mask, past[i] if past else None, positions=positions, train=train)
            out |= numbered(maps, i)
            x = out[f"block_{i}"] = self.quirks.after_block(self.tower, x, y)
            kept.append(seen)
            if media and str(i) in self.cross:
                x, inside = self.cross[str(i)](x, media[i // self.every], *visible)
                out |= {f"cross_{i}": x, f"media_attention_{i}": inside["attention"]}
        return x, out | {"hidden": x}, tuple(kept)

    def _keys(self, latents: Array | None) -> tuple[KeyValue, ...]:
        """The latents as each cross-attention reads them; nothing without."""
        return () if latents is None else tuple(cross.project(latents) for cross in self.cross.values())

    def _count(self, text: Array) -> Array:
        """How many images have begun up to each token, itself included."""
        return jnp.cumsum(text == self.image_token, axis=-1, dtype=jnp.int32)
