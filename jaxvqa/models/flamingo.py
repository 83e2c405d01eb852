"""Flamingo: a language model that sees, by resampled images and gated cross-attention between its blocks.

F. Scherer, A. Mancu, A. Mellouli, Ç. Köksal, "Explaining Medical Image Classifiers with Visual Question Answering Models"
(MLMI), after J.-B. Alayrac and others, "Flamingo: a Visual Language Model for Few-Shot Learning", NeurIPS 2022. Images and a
text in which each image has a mark go in, scores of each next word come out, and of classes where there is a head for them:

    image ── vision ── projection ── resampler ── latents ──┬────────────────────┐
                          │                                 │                    │
    text ── embed ── block_0 ────────────────────────── cross_0 ── block_1 … ── cross_3 … ── readout
                          │                                                         │
                          └───────────── class_head ──── state at the question's end ┘

What MLMI's published checkpoints need beside their values, and what would be wrong for any other, is in `COMPAT`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.errors import ConfigError, nearest
from jaxvqa.models.layers.attention import KeyValue, causal
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.perceiver import GatedCrossAttention, PerceiverResampler, visible_media
from jaxvqa.models.layers.transformer import LayerNorm, numbered
from jaxvqa.models.towers.bert import BERT
from jaxvqa.models.towers.clip import VisionTransformer
from jaxvqa.models.towers.gpt2 import GPT2
from jaxvqa.models.towers.palm import PaLM
from jaxvqa.models.towers.regions import Regions
from jaxvqa.models.towers.resnet import PatchResNet
from jaxvqa.precision import wide, widened

COMPAT: Mapping[str, str] = {
    "mlmi_gpt2": "GPT-2's scores are not scaled, its GELU is exact, its last normalisation has no bias (Q4)",
    "doubled_residual": "what a block gives, its residual included, is added to its input once more (Q4)",
    "first_sample": "what a block gives for a batch's first sample is added to all of them (Q1)",
    "uniform_before_media": "text before the first image reads all latents alike, in place of nothing (Q2)",
    "uniform_beyond_media": "so does text after more marks than there are images (section 4)",
    "one_medium": "a sample's images are the tokens of one medium, in place of one medium each (Q5)",
    "attend_padding": "BERT reads padding like text (Q15)",
    "shared_loss_mask": "the loss of text counts a position as often as any sample of the batch has a word there (Q7)",
}
"""What `Flamingo.compat` can name; the numbers are those of docs/originals/flamingo.md, section 20."""

_OF_ALL_YEARS = (
    "mlmi_gpt2",
    "doubled_residual",
    "uniform_beyond_media",
    "one_medium",
    "attend_padding",
    "shared_loss_mask",
)
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "2022": (*_OF_ALL_YEARS, "uniform_before_media"),
    "2023": _OF_ALL_YEARS,
}
"""What checkpoints of July 2022, and of the last state of MLMI's code, need; each a name for several of `COMPAT`."""

FREEZE: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "flamingo_mode": (
        (r"vision/.*", True),
        (r"language/(block_\d+|readout/norm)/.*", True),
        (r".*", False),
    ),
    "vision": ((r"vision/.*", True), (r".*", False)),
}
"""Tables for `config.optim.freeze`: MLMI's `flamingo_mode`, which trains the embedding; all but vision.

docs/originals/flamingo.md, section 9.
"""

LANGUAGES: Mapping[str, type[nn.Module]] = {"gpt2": GPT2, "bert": BERT, "palm": PaLM}
VISIONS: Mapping[str, type[nn.Module]] = {"clip": VisionTransformer, "resnet": PatchResNet, "regions": Regions}

HEADS = ("image_and_text", "text", "image")


def parse_compat(compat: str) -> frozenset[str]:
    """Reads names of `COMPAT` and `PUBLISHED`, separated by commas.

    Raises:
      ConfigError: lists the names that are neither.
    """
    names = [name.strip() for name in compat.split(",") if name.strip()]
    known = (*COMPAT, *PUBLISHED)
    unknown = [f"{name!r}{nearest(name, known)}" for name in names if name not in known]
    if unknown:
        raise ConfigError(f"model.compat names {', '.join(unknown)}; there is {', '.join(known)}.")
    return frozenset(part for name in names for part in PUBLISHED.get(name, (name,)))


class Cache(flax.struct.PyTreeNode):
    """What is kept of texts from one word to the next: N texts of B prompts, as many of each.

    The texts of a prompt share its places, and those of one another's words; each knows which ones are its own. A text that
    goes on from another one takes over what that one knows, and nothing is copied.

    Attributes:
      blocks: keys and values of each block of the language model, with S places; of B rows.
      media: those of the latents, of each cross-attention; none without media; of B rows.
      filled: bool[N, S], which places hold a word of each text.
      slot: int32[], the next place, the same for all rows.
      position: int32[N], the next word's number in its own text, from 0.
      count: int32[N], how many media have begun.
    """

    blocks: tuple[KeyValue, ...]
    media: tuple[KeyValue, ...]
    filled: Bool[Array, "N S"]
    slot: Int[Array, ""]
    position: Int[Array, " N"]
    count: Int[Array, " N"]

    def of_texts(self, change: Callable[[Array], Array]) -> "Cache":
        """The same with `change` applied to what has a row for each text."""
        return self.replace(filled=change(self.filled), position=change(self.position), count=change(self.count))


class Flamingo(nn.Module):
    """The whole network; the defaults are the published sizes.

    Attributes:
      vocab_size: number of words V, marks included.
      image_token: number of the word that marks an image.
      num_answers: number of classes A; 0: no class head.
      language: `gpt2`, `bert` or `palm`.
      language_sizes: fields of that tower that differ from its defaults.
      vision: `clip`, whose vision transformer the published one has; `resnet`, which learns sooner from nothing; or `regions`,
        whose features were computed beforehand.
      vision_sizes: fields of that tower that differ from its defaults, which are ViT-B/32's.
      patches: the resampler reads an image's patches, in place of its one projected vector.
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
      immediate: text reads the last image before it only, in place of all before it.
      head: what the class head reads: `image_and_text`, `text`, or `image` alone.
      mean_head: it reads the mean of all states up to the question's end, in place of that at the end.
      head_dropout: rate of dropout there.
      compat: names of `COMPAT` or `PUBLISHED`, separated by commas.
      dtype: type of the multiplications and of the states; parameters, statistics, softmaxes and logits are float32.
    """

    inputs: ClassVar[tuple[str, ...]] = ("text", "text_mask", "image", "question_end")

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
    def writes(self) -> bool:
        """Whether the language model can write: BERT reads in both directions, and cannot."""
        return LANGUAGES[self.language].is_causal  # type: ignore[attr-defined]

    def patches_a_side(self, image_size: int) -> int:
        """How many patches an image of that size has in either direction."""
        patch = self.vision_sizes.get("patch", VISIONS[self.vision].patch)  # type: ignore[attr-defined]
        return -(-image_size // patch)

    def patch_attention(self, out: Mapping[str, Array], place: Int[Array, " B"]) -> Float[Array, "B N"]:
        """What the word at a place reads of the first image's patches: weights float32[B, N] that add up to 1.

        The word's attention to the latents, a mean over heads and cross-attentions, times the last layer's of the latents to
        what they read. If that is one vector an image, the patches weigh as in the vision transformer's last block for its
        class token.

        Args:
          out: the intermediates of a call with one image a sample.
          place: int[B], the word's place.
        """
        if self.patches:
            maps = [out[name] for name in out if name.startswith("media_attention_")]
            to_latents = jnp.mean(jnp.stack(maps), axis=(0, 2))
            to_latents = jnp.take_along_axis(to_latents, place[:, None, None], axis=1)[:, 0, : self.latents]
            to_tokens = jnp.mean(out[f"resampler_attention_{self.resampler_depth - 1}"], axis=1)
            weights = jnp.einsum("bl,bln->bn", to_latents, to_tokens[:, :, 1 : to_tokens.shape[-1] - self.latents])
        else:
            last = self.vision_sizes.get("depth", VisionTransformer.depth) - 1
            weights = jnp.mean(out[f"vision_attention_{last}"][:, 0, :, 0, 1:], axis=1)
        return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)

    def setup(self) -> None:
        """Makes the parts."""
        if self.language not in LANGUAGES:
            hint = nearest(self.language, LANGUAGES)
            raise ConfigError(f"model.language is {self.language!r}; there is {', '.join(LANGUAGES)}.{hint}")
        if self.vision not in VISIONS:
            hint = nearest(self.vision, VISIONS)
            raise ConfigError(f"model.vision is {self.vision!r}; there is {', '.join(VISIONS)}.{hint}")
        if self.vision != "clip" and not self.patches:
            raise ConfigError(f"model.vision is {self.vision!r}, which is read by its patches: set model.patches.")
        if self.head not in HEADS:
            raise ConfigError(f"model.head is {self.head!r}; there is {', '.join(HEADS)}.{nearest(self.head, HEADS)}")
        self.quirks = parse_compat(self.compat)
        own: dict[str, Any] = {"vocab_size": self.vocab_size, "dtype": self.dtype, **self.language_sizes}
        if self.language == "gpt2":
            own["mlmi"] = "mlmi_gpt2" in self.quirks
        elif self.language == "bert":
            own |= {"types": 0, "pooler": False, "with_readout": True}
        self.tower = LANGUAGES[self.language](**own, name="language")
        width = self.tower.width
        self.eye = VISIONS[self.vision](**self.vision_sizes, dtype=self.dtype, name="vision")
        self.projection = Linear(width, self.dtype)
        self.resampler = PerceiverResampler(
            self.latents,
            self.resampler_depth,
            self.cross_heads,
            self.cross_head_width,
            self.media,
            self.cross_activation,
            self.latent_scale,
            self.dtype,
            self.media_numbered,
        )
        self.cross = {
            str(i): GatedCrossAttention(
                self.cross_heads,
                self.cross_head_width,
                width,
                self.cross_activation,
                self.gate,
                self.dtype,
                name=f"cross_{i}",
            )
            for i in range(0, self.tower.depth, self.every)
        }
        if self.num_answers:
            self.class_norm = LayerNorm(epsilon=1e-5, use_bias=False, dtype=self.dtype)
            self.class_drop = Dropout(self.head_dropout)
            self.class_output = Linear(self.num_answers, self.dtype)

    def __call__(
        self,
        *,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        image: Float[Array, "I *M H W C"] | None = None,
        media: Float[Array, "I M N D"] | None = None,
        question_end: Int[Array, " B"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Scores every next word.

        Args:
          text: int[B, T], numbers of the words, with an `image_token` where each image belongs.
          text_mask: bool[B, T], False for padding, on either side, which nothing reads; none is padding without.
          image: float[B, H, W, 3] or float[B, M, H, W, 3], normalised. Behind a sample's own images may
            stand any others, which no word sees. Or B / n of them, each for n texts side by side, which is seen once.
          media: float[B, M, N, D], tokens for the resampler in place of images.
          question_end: int[B], place of the last word that the class head may read.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          float32[B, T, V] logits, and the named intermediates: those of `see`; `embedded`, `block_i`, `cross_i` and `hidden`
          [B, T, D], the states before the first block, after each, after each cross-attention, and the last of them;
          `attention_i` float32[B, K, T, T], but of a GPT-2 without `maps`; `media_attention_i` float32[B, K, T, M·L]; and with
          a class head `class_logits` float32[B, A], if it has what it reads.
        """
        latents, out = self.see(image=image, media=media, train=train)
        if latents is not None and len(latents) != len(text):
            times = len(text) // len(latents)
            latents, out = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), (latents, out))
        real = jnp.ones_like(text, jnp.bool_) if text_mask is None else text_mask
        keys = tuple(cross.project(latents) for cross in self.cross.values()) if latents is not None else ()
        x, inside, _ = self._run(text, self._positions(real), self._count(text), self._mask(real), keys, train=train)
        logits, _ = self.tower.logits(x)
        out |= inside
        if self.num_answers:
            class_logits = self._classify(out, question_end, self._count(text)[:, -1], train=train)
            out |= {} if class_logits is None else {"class_logits": class_logits}
        return logits, out

    def see(
        self,
        *,
        image: Float[Array, "B *M H W C"] | None = None,
        media: Float[Array, "B M N D"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B M L D"] | None, dict[str, Array]]:
        """Turns images, or tokens of media, into latents. Images win where both are given.

        Returns:
          [B, M, L, D] latents, None without images and media; and the named intermediates: `latents`,
          `resampler_attention_i`; and of images `image_vector` [B, M, E], `projected` [B, M, D], and `vision_attention_i`
          float32[B, M, K, 1 + N, 1 + N].
        """
        out: dict[str, Array] = {}
        real = None
        if image is not None:
            image = image[:, None] if image.ndim == 4 else image
            batch, count = image.shape[:2]
            vector, inside = self.eye(image.reshape(batch * count, *image.shape[2:]), train=train)

            def apart(x: Array) -> Array:
                return x.reshape(batch, count, *x.shape[1:])

            maps = {f"vision_{n}": apart(x) for n, x in inside.items() if n.startswith("attention_")}
            out |= {"image_vector": apart(vector)} | maps
            tokens = self.projection(apart(inside["tokens"] if self.patches else vector[:, None]))
            out["projected"] = tokens[:, :, 0]
            real = apart(inside["real"]) if "real" in inside else None
            # In the original, one medium of as many tokens as there are images.
            media = tokens.reshape(batch, 1, -1, tokens.shape[-1]) if "one_medium" in self.quirks else tokens
        if media is None:
            return None, out
        latents, inside = self.resampler(media, real)
        out |= {f"resampler_{n}": x for n, x in inside.items() if n.startswith("attention_")}
        return latents, out | {"latents": latents}

    def prefill(
        self,
        *,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"],
        image: Float[Array, "B *M H W C"] | None = None,
        media: Float[Array, "B M N D"] | None = None,
        slots: int,
        texts: int = 1,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Reads prompts, to go on with `decode`.

        Args:
          text: int[B, T], the prompts.
          text_mask: bool[B, T], False for padding, on either side.
          image: as in a call.
          media: as in a call.
          slots: how many words a text will have in all, padding included.
          texts: how many texts of each prompt there will be.

        Returns:
          The scores of each row's next word, and the cache.

        Raises:
          ConfigError: the language model is no decoder, or does not take texts of this length.
        """
        if not self.tower.is_causal:
            raise ConfigError(
                f"model.language is {self.language!r}, which reads in both directions and writes nothing."
            )
        longest = getattr(self.tower, "positions", 0)
        if longest and slots > longest:
            raise ConfigError(f"Prompt and answer take {slots} words; the language model has positions for {longest}.")
        latents, _ = self.see(image=image, media=media)
        keys = tuple(cross.project(latents) for cross in self.cross.values()) if latents is not None else ()
        positions, count = self._positions(text_mask), self._count(text)
        x, _, seen = self._run(text, positions, count, self._mask(text_mask), keys, train=False)
        length = text.shape[1]
        slots = length + texts * (slots - length)
        last = jnp.max(jnp.where(text_mask, jnp.arange(length)[None], 0), axis=-1)
        cache = Cache(
            blocks=tuple(s.padded(slots) for s in seen),
            media=keys,
            filled=jnp.pad(text_mask, ((0, 0), (0, slots - length))),
            slot=jnp.asarray(length, jnp.int32),
            position=jnp.sum(text_mask, axis=-1, dtype=jnp.int32),
            count=jnp.take_along_axis(count, last[:, None], axis=1)[:, 0],
        )
        logits, _ = self.tower.logits(jnp.take_along_axis(x, last[:, None, None], axis=1))
        return logits[:, 0], cache

    def decode(self, word: Int[Array, " N"], cache: Cache) -> tuple[Float[Array, "N V"], Cache]:
        """Adds one word to each text: the scores of the next one, and the cache with it."""
        texts, slots = cache.filled.shape
        prompts = cache.blocks[0].key.shape[0]
        # To attention, the texts of a prompt are positions in a row, of which each reads its own words only.
        beside = texts // prompts
        filled = cache.filled | (jnp.arange(slots)[None] == cache.slot + jnp.arange(texts)[:, None] % beside)
        count = cache.count + (word == self.image_token)
        x, _, seen = self._run(
            word.reshape(prompts, beside),
            cache.position.reshape(prompts, beside),
            count.reshape(prompts, beside),
            filled.reshape(prompts, 1, beside, slots),
            cache.media,
            past=[(block, cache.slot) for block in cache.blocks],
            train=False,
        )
        logits, _ = self.tower.logits(x)
        slot, position = cache.slot + beside, cache.position + 1
        cache = cache.replace(blocks=seen, filled=filled, slot=slot, position=position, count=count)
        return logits.reshape(texts, -1), cache

    def decode_given(self, words: Int[Array, "C W"], cache: Cache) -> Float[Array, "B C W V"]:
        """Reads C texts, each behind each of the cache's: the scores of the word after each of theirs.

        To attention, all of them are positions in a row, of which each reads the cache and its own text's earlier words: what
        has been read before is there once for all. The cache stays as it is.
        """
        batch, slots = cache.filled.shape
        count, length = words.shape
        row = jnp.arange(count * length)
        own = (row[:, None] // length == row[None] // length) & (row[None] <= row[:, None])
        mask = jnp.concatenate(
            [jnp.repeat(cache.filled[:, None], len(row), axis=1), jnp.repeat(own[None], batch, axis=0)], axis=-1
        )
        x, _, _ = self._run(
            jnp.repeat(words.reshape(1, -1), batch, axis=0),
            cache.position[:, None] + (row % length)[None],
            cache.count[:, None] + self._count(words).reshape(1, -1),
            mask[:, None],
            cache.media,
            past=[(block.padded(slots + len(row)), jnp.asarray(slots, jnp.int32)) for block in cache.blocks],
            train=False,
        )
        logits, _ = self.tower.logits(x)
        return logits.reshape(batch, count, length, -1)

    def _run(
        self,
        text: Array,
        positions: Array,
        count: Array,
        mask: Array | None,
        media: tuple[KeyValue, ...],
        past: list[Any] | None = None,
        *,
        train: bool,
    ) -> tuple[Array, dict[str, Array], tuple[KeyValue, ...]]:
        """Embeds a text, and runs it through all blocks and cross-attentions."""
        x = self.tower.embed_text(text, positions, train=train)
        out, seen = {"embedded": x}, []
        sees, reads = None, None
        if media:
            sees, reads = visible_media(
                count,
                media[0].key.shape[2] // self.latents,
                immediate=self.immediate,
                uniform_before="uniform_before_media" in self.quirks,
                uniform_beyond="uniform_beyond_media" in self.quirks,
            )
        for i, block in enumerate(self.tower.blocks):
            earlier = None if past is None else past[i]
            y, maps, kept = block(x, mask, earlier, positions=positions, train=train)
            out |= numbered(maps, i)
            if "doubled_residual" in self.quirks and self.language != "palm":
                y = x + (y[:1] if "first_sample" in self.quirks and self.language == "gpt2" else y)
            x = out[f"block_{i}"] = y
            seen.append(kept)
            if media and str(i) in self.cross:
                x, inside = self.cross[str(i)](x, media[i // self.every], sees, reads)
                out |= {f"cross_{i}": x, f"media_attention_{i}": inside["attention"]}
        return x, out | {"hidden": x}, tuple(seen)

    def _classify(self, out: Mapping[str, Array], end: Array | None, count: Array, *, train: bool) -> Array | None:
        """Scores classes; None where what the head reads is not there. count: int[B], how many images each text marks."""

        def mean_over_images(x: Array) -> Array:
            own = jnp.arange(x.shape[1])[None] < jnp.maximum(count, 1)[:, None]
            return jnp.mean(x, axis=1, where=own[..., None], dtype=wide(x.dtype)).astype(self.dtype)

        if self.head == "image":
            if "image_vector" not in out:
                return None
            vector = self.class_drop(mean_over_images(out["image_vector"]), train=train)
            return widened(nn.relu(self.class_output(vector)))
        if end is None or (self.head == "image_and_text" and "projected" not in out):
            return None
        hidden = out["hidden"]
        state = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        if self.mean_head:
            up_to = jnp.arange(hidden.shape[1])[None] <= end[:, None]
            state = jnp.mean(hidden, axis=1, where=up_to[..., None], dtype=wide(hidden.dtype)).astype(self.dtype)
        if self.head == "image_and_text":
            state = jnp.concatenate([mean_over_images(out["projected"]), state], axis=-1)
        state = self.class_drop(self.class_norm(state), train=train)
        return widened(self.class_output(state))

    def _positions(self, real: Array) -> Array:
        """Each word's number in its own text; padding before it has the first word's."""
        if "attend_padding" in self.quirks and not self.tower.is_causal:
            return jnp.broadcast_to(jnp.arange(real.shape[1])[None], real.shape)
        return jnp.maximum(jnp.cumsum(real, axis=-1, dtype=jnp.int32) - 1, 0)

    def _count(self, text: Array) -> Array:
        return jnp.cumsum(text == self.image_token, axis=-1, dtype=jnp.int32)

    def _mask(self, real: Array) -> Array | None:
        keys = real[:, None, None]
        if self.tower.is_causal:
            return causal(real.shape[1]) & keys
        return None if "attend_padding" in self.quirks else keys
