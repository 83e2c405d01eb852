"""BLIP: an image transformer and one text model that contrasts, matches and writes.

J. Li, D. Li, C. Xiong, S. Hoi, "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
Generation", ICML 2022; docs/originals/blip.md, sections 3 to 9:

    image ── vision ──┬── class token ── image_projection ──────────── image feature ┐
                      │                                                              ├ contrast
    text ── text ─────┼── first state ── text_projection ───────────── text feature  ┘
                      │
                      └── keys and values of every block, once an image
                             ├── text, encoder ── first state ── match_head          do they belong together?
                             └── text, decoder ── readout                            which token comes next?

What training compares, and the copies that move slowly behind the parameters, are the task's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.decoding.cache import DecoderCache
from jaxvqa.models import towers
from jaxvqa.models.layers.attention import KeyValue
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.norm import unit
from jaxvqa.precision import widened

Changes = Mapping[int, Callable[[Array], Array]]
"""Of the weights of some blocks' cross-attention, to ask for their gradients."""


class Seen(flax.struct.PyTreeNode):
    """An image as texts read it.

    Attributes:
      memory: keys and values for each block of the text model.
      mask: bool[B, N], which image tokens are there; None for all.
    """

    memory: tuple[KeyValue, ...]
    mask: Bool[Array, "B N"] | None


class BLIP(nn.Module):
    """The whole network.

    Attributes:
      vocab_size: number of tokens V, with the two that begin texts for the encoder and for the decoder.
      vision: a name of `towers.IMAGE_ENCODERS` whose tokens are normalised: `vit-base`, `vit-large`, `region-vit`,
        `efficientnet_lite0-vit`.
      vision_sizes: fields of that tower that differ from its defaults.
      text: a name of `towers.TEXT_ABOUT_IMAGES`.
      text_sizes: fields of that tower that differ from its defaults.
      features: width E of the features that are contrasted; 0 for none.
      reads: whether there is an encoder of text; a captioner has a decoder alone.
      matches: whether there is a matching head.
      writes: whether there is a decoder.
      temperature: what similarities are divided by at first; 0 for a model that is not trained to contrast.
    """

    vocab_size: int
    vision: str = "vit-base"
    vision_sizes: Mapping[str, Any] = FrozenDict()
    text: str = "med"
    text_sizes: Mapping[str, Any] = FrozenDict()
    features: int = 256
    reads: bool = True
    matches: bool = True
    writes: bool = True
    temperature: float = 0.07
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts."""
        self.vision_tower, make_text = _towers(self)
        self.text_tower = make_text()
        if self.features:
            self.image_projection, self.text_projection = (Linear(self.features, self.dtype) for _ in range(2))
        if self.matches:
            self.match_head = Linear(2, self.dtype)
        if self.temperature and self.is_initializing():  # nothing here reads it, and momentum copies have none
            self.param("temperature", nn.initializers.constant(self.temperature), ())

    def see(
        self, image: Float[Array, "B H W C"], *, train: bool = False
    ) -> tuple[Float[Array, "B N D"], Bool[Array, "B N"] | None, dict[str, Array]]:
        """Encodes images: all tokens, which of them are there (None: all), and the tower's intermediates.

        Among these is `feature` [B, E], of length 1, where features are contrasted.
        """
        pooled, out = self.vision_tower(image, train=train)
        if self.features:
            out = out | {"feature": unit(widened(self.image_projection(pooled)))}
        return out["tokens"], out.get("real"), out

    def read(
        self, text: Int[Array, "B T"], text_mask: Bool[Array, "B T"], *, train: bool = False
    ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
        """Encodes texts alone: their states, and the tower's intermediates, with `feature` [B, E] as of `see`."""
        states, out = self.text_tower.encode(text, text_mask, train=train)
        if self.features:
            out = out | {"feature": unit(widened(self.text_projection(states[:, 0])))}
        return states, out

    def remember(self, tokens: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None = None) -> Seen:
        """Makes the keys and values of images, for all texts about them."""
        return Seen(self.text_tower.remember(tokens), mask)

    def match(
        self,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"],
        seen: Seen,
        *,
        train: bool = False,
        changes: Changes | None = None,
    ) -> tuple[Float[Array, "B 2"], dict[str, Array]]:
        """Reads texts beside images, B / M texts in a row for each of M images.

        Returns:
          float32[B, 2] logits, no and yes; and the tower's intermediates with `states` [B, T, D].
        """
        states, out = self.text_tower.encode(text, text_mask, seen.memory, seen.mask, train=train, changes=changes)
        logits = widened(self.match_head(states[:, 0])) if self.matches else jnp.zeros((len(text), 2))
        return logits, out | {"states": states}

    def write(
        self,
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"],
        seen: Seen,
        *,
        train: bool = False,
        changes: Changes | None = None,
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Scores every next token of texts about images: float32[B, T, V], and the tower's intermediates."""
        return self.text_tower.write(text, text_mask, seen.memory, seen.mask, train=train, changes=changes)

    def prefill(
        self,
        *,
        text: Int[Array, "B P"],
        text_mask: Bool[Array, "B P"],
        image: Float[Array, "B H W C"],
        slots: int,
        texts: int = 1,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Reads prompts about images, whose keys and values all texts of a prompt share; see `Writer`."""
        tokens, mask, _ = self.see(image)
        memory = self.text_tower.remember(tokens)
        return self.text_tower.start_writing(text, text_mask, memory, mask, slots=slots, texts=texts)

    def decode(self, token: Int[Array, " N"], cache: DecoderCache) -> tuple[Float[Array, "N V"], DecoderCache]:
        """Adds one token to each text; see `Writer`."""
        return self.text_tower.go_on(token, cache)

    def decode_given(self, tokens: Int[Array, "C W"], cache: DecoderCache) -> Float[Array, "B C W V"]:
        """Reads C texts behind each of the cache's; see `Writer`."""
        return self.text_tower.read_behind(tokens, cache)

    def __call__(
        self,
        image: Float[Array, "B H W C"],
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "B 2"], dict[str, Array]]:
        """Everything that the network does with images and a text about each, whose first token the caller has set.

        Returns:
          The matching logits, and `image_feature`, `text_feature` [B, E], `image_states`, `text_states`, `states`, `logits`.
        """
        text_mask = jnp.ones(text.shape, bool) if text_mask is None else text_mask
        tokens, mask, image_out = self.see(image, train=train)
        seen, out = self.remember(tokens, mask), {"image_states": tokens}
        result = jnp.zeros((len(text), 2))
        if self.reads:
            states, text_out = self.read(text, text_mask, train=train)
            result, beside = self.match(text, text_mask, seen, train=train)
            out |= beside | {"text_states": states}
            if self.features:
                out |= {"image_feature": image_out["feature"], "text_feature": text_out["feature"]}
        if self.writes:
            out["logits"], _ = self.write(text, text_mask, seen, train=train)
        return result, out


class BlipVqa(nn.Module):
    """Answers to questions about images: an encoder reads the question beside the image, a decoder writes from its states.

    docs/originals/blip.md, section 7.

    Attributes:
      vocab_size: number of tokens V.
      vision: as of `BLIP`.
      vision_sizes: as of `BLIP`.
      text: as of `BLIP`; encoder and decoder are two of them.
      text_sizes: as of `BLIP`, of both.
    """

    vocab_size: int
    vision: str = "vit-base"
    vision_sizes: Mapping[str, Any] = FrozenDict()
    text: str = "med"
    text_sizes: Mapping[str, Any] = FrozenDict()
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts."""
        self.vision_tower, make_text = _towers(self)
        self.question_tower, self.answer_tower = make_text(), make_text()

    def ask(
        self,
        image: Float[Array, "B H W C"],
        question: Int[Array, "B T"],
        question_mask: Bool[Array, "B T"],
        *,
        train: bool = False,
        changes: Changes | None = None,
    ) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
        """The states of questions, each read beside its image, and the encoder's intermediates."""
        _, out = self.vision_tower(image, train=train)
        memory, real = self.question_tower.remember(out["tokens"]), out.get("real")
        return self.question_tower.encode(question, question_mask, memory, real, train=train, changes=changes)

    def write(
        self,
        states: Float[Array, "B T D"],
        question_mask: Bool[Array, "B T"] | None,
        text: Int[Array, "N L"],
        text_mask: Bool[Array, "N L"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N L V"], dict[str, Array]]:
        """Scores every next token of answers, N / B of them in a row for each question."""
        memory = self.answer_tower.remember(states)
        return self.answer_tower.write(text, text_mask, memory, question_mask, train=train)

    def prefill(
        self,
        *,
        text: Int[Array, "B P"],
        text_mask: Bool[Array, "B P"],
        image: Float[Array, "B H W C"],
        question: Int[Array, "B T"],
        question_mask: Bool[Array, "B T"],
        attend_padding: Bool[Array, ""] | None = None,
        slots: int,
        texts: int = 1,
    ) -> tuple[Float[Array, "B V"], DecoderCache]:
        """Reads questions and the beginnings of their answers; see `Writer`.

        Where `attend_padding` is true, the answers read the states of the questions' padding too, as in the original's
        generation (docs/originals/blip.md, section 18, quirk 3).
        """
        states, _ = self.ask(image, question, question_mask)
        mask = question_mask if attend_padding is None else question_mask | attend_padding
        memory = self.answer_tower.remember(states)
        return self.answer_tower.start_writing(text, text_mask, memory, mask, slots=slots, texts=texts)

    def decode(self, token: Int[Array, " N"], cache: DecoderCache) -> tuple[Float[Array, "N V"], DecoderCache]:
        """Adds one token to each text; see `Writer`."""
        return self.answer_tower.go_on(token, cache)

    def decode_given(self, tokens: Int[Array, "C W"], cache: DecoderCache) -> Float[Array, "B C W V"]:
        """Reads C texts behind each of the cache's; see `Writer`."""
        return self.answer_tower.read_behind(tokens, cache)

    def __call__(
        self,
        image: Float[Array, "B H W C"],
        question: Int[Array, "B T"],
        text: Int[Array, "N L"],
        question_mask: Bool[Array, "B T"] | None = None,
        text_mask: Bool[Array, "N L"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N L V"], dict[str, Array]]:
        """Scores every next token of answers, N / B of them in a row for each question, and `question_states` [B, T, D]."""
        question_mask = jnp.ones(question.shape, bool) if question_mask is None else question_mask
        text_mask = jnp.ones(text.shape, bool) if text_mask is None else text_mask
        states, _ = self.ask(image, question, question_mask, train=train)
        logits, out = self.write(states, question_mask, text, text_mask, train=train)
        return logits, out | {"question_states": states}


class BlipNlvr(nn.Module):
    """Whether a sentence is true of two images (docs/originals/blip.md, section 10).

    Attributes:
      vocab_size: number of tokens V.
      vision: as of `BLIP`.
      vision_sizes: as of `BLIP`.
      text: as of `BLIP`.
      text_sizes: as of `BLIP`.
      merge_from: the first block that merges what it reads of the two images; those before take the mean.
    """

    vocab_size: int
    vision: str = "vit-base"
    vision_sizes: Mapping[str, Any] = FrozenDict()
    text: str = "med"
    text_sizes: Mapping[str, Any] = FrozenDict()
    merge_from: int = 6
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the parts."""
        self.vision_tower, make_text = _towers(self, twin=self.merge_from)
        self.text_tower = make_text()
        self.head = [Linear(features, self.dtype) for features in (self.text_tower.width, 2)]

    def __call__(
        self,
        image: Float[Array, "B 2 H W C"],
        text: Int[Array, "B T"],
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "B 2"], dict[str, Array]]:
        """float32[B, 2] logits, no and yes, and the text model's intermediates."""
        text_mask = jnp.ones(text.shape, bool) if text_mask is None else text_mask
        flat = jnp.swapaxes(image, 0, 1).reshape(-1, *image.shape[2:])  # all first images, then all second ones
        _, out = self.vision_tower(flat, train=train)
        memory = self.text_tower.remember(out["tokens"])
        states, inside = self.text_tower.encode(text, text_mask, memory, out.get("real"), train=train)
        return widened(self.head[1](nn.relu(self.head[0](states[:, 0])))), inside | {"states": states}


def _towers(model: Any, **fixed: Any) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """A model's image encoder, and what makes its text models; to be called where it makes its parts."""
    given, sizes = "config.model.{}", "config.model.{}_sizes"
    of_vision = (model.vision, model.vision_sizes, given.format("vision"), sizes.format("vision"))
    of_text = (model.text, model.text_sizes, given.format("text"), sizes.format("text"))
    vision = towers.make("image encoder", *of_vision, dtype=model.dtype)
    fixed |= {"vocab_size": model.vocab_size, "dtype": model.dtype}
    return vision, lambda: towers.make("text about images", *of_text, **fixed)
