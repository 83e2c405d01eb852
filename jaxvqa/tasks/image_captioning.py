"""Writing captions, as BLIP's captioner does (docs/originals/blip.md, section 8)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Key

from jaxvqa import losses
from jaxvqa.data.blip_text import CaptionTokenizer, pre_caption
from jaxvqa.data.transforms import Example, Keep, Transform
from jaxvqa.decoding import rules
from jaxvqa.decoding.loop import Generator
from jaxvqa.decoding.search import Beams, FullBeamsRule, Limits, Search, Single
from jaxvqa.errors import ConfigError
from jaxvqa.models.blip import Changes
from jaxvqa.tasks import Assets, Loss
from jaxvqa.tasks.attention_gradient import OF_LOSS, attention_and_gradient, explained, token_maps
from jaxvqa.tasks.blip import BlipTask, Caller, as_jax, empty_texts, statistics_of
from jaxvqa.tasks.predictions import Predict
from jaxvqa.types import Arrays, Batch, Collections, Config, Params, Rngs

HIDDEN_TOP_K = 50
SAMPLING_PENALTY = 1.1
"""What the original's sampling does without being asked: only so many tokens, and a penalty of repetitions."""


def search_of(settings: Config | Mapping[str, Any], *, end: int, padding: int, prompt: int) -> Search:
    """The search that `config.generate` names, by the rules that BLIP was published with.

    Args:
      settings: `max_length` and `min_length`, both with the prompt's tokens; `beams`, `repetition_penalty`; or `top_p`, which
        draws tokens.
      end: id of the token that ends a text.
      padding: id of the token that fills it up.
      prompt: how many tokens the prompt has.
    """
    penalty = SAMPLING_PENALTY if settings["sample"] else settings["repetition_penalty"]
    own: list[rules.Rule] = [rules.RepetitionPenalty(penalty)] if penalty != 1 else []
    own.append(rules.MinimumLength(settings["min_length"], end, with_prompt=True))
    if settings["sample"]:
        own += [rules.TopK(HIDDEN_TOP_K), rules.TopP(settings["top_p"])]
    limits = Limits(settings["max_length"] - prompt, end, padding, tuple(own))
    if settings["beams"] > 1 and not settings["sample"]:
        return Beams(limits, settings["beams"], FullBeamsRule())
    return Single(limits, draw=settings["sample"])


@dataclass(frozen=True)
class WritePromptAndCaption:
    """`caption` str -> `text` int32[T], the prompt and the cleaned caption, and `text_mask` bool[T]; [DEC] comes first."""

    tokenizer: CaptionTokenizer = field(repr=False)
    prompt: str
    max_tokens: int
    max_words: int

    def __call__(self, example: Example) -> Example:
        """Adds the text."""
        ids = self.tokenizer.whole(self.prompt + pre_caption(example["caption"], self.max_words), self.max_tokens)
        text = np.full(self.max_tokens, self.tokenizer.padding, np.int32)
        text[: len(ids)] = [self.tokenizer.decode_begin, *ids[1:]]
        return example | {"text": text, "text_mask": np.arange(self.max_tokens) < len(ids)}


class ImageCaptioning(BlipTask):
    """The loss of captions behind a prompt, which is not learned itself.

    `config.data.prompt` begins every caption. `config.loss.smoothing`: share of the target that is spread over all tokens.
    """

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Args: as of `BlipTask`.

        Raises:
          ConfigError: the longest text leaves no room behind the prompt.
        """
        super().__init__(config, assets)
        self._smoothing, self.asks, self.unknown = config.loss.smoothing, "description", {"caption": ""}
        data = config.data
        prompt = self.tokenizer.whole(data.prompt)[:-1]
        self._prompt = np.asarray([self.tokenizer.decode_begin, *prompt[1:]], np.int32)
        longest = min(data.max_tokens, config.generate.max_length)
        if longest <= len(prompt):
            raise ConfigError(
                f"The prompt {data.prompt!r} has {len(prompt)} tokens; config.data.max_tokens = {data.max_tokens} and "
                f"config.generate.max_length = {config.generate.max_length} leave no room behind it."
            )
        ends = {"end": self.tokenizer.end, "padding": self.tokenizer.padding}
        self._generator = Generator(self.model, search_of(config.generate, prompt=len(prompt), **ends))
        self._seed = config.generate.seed
        self.batch_keys: Sequence[str] = ("image", "text", "text_mask", "mask")
        answers = Predict(self._predict_text, ("image",), text=self._text_of)
        self.predictions: dict[str, Predict] = {"answers": answers, "answers_blank": answers.blank("image")}
        for name, sign in {"explain": 1, OF_LOSS: -1}.items():
            function = functools.partial(self._predict_explain, sign=sign)
            self.predictions[name] = Predict(function, ("image",), text=self._text_of)
        self.predictions["likelihood"] = Predict(self._predict_likelihood, ("image", "text", "text_mask"))

    def transforms(self, *, train: bool) -> Sequence[Transform]:
        """Raw example to `image`, `text`, `text_mask` and `id`; in training, images are changed at random."""
        data = self._data
        write = WritePromptAndCaption(self.tokenizer, data.prompt, data.max_tokens, data.max_words)
        return (*self.see(train=train), write, Keep(("image", "text", "text_mask")))

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image` as of `BlipTask.init_image`, `text` int32[B, T] with `text_mask`, `mask` float32[B]."""
        text, text_mask = empty_texts((batch_size, self._data.max_tokens))
        image = self.init_image(batch_size)
        return {"image": image, "text": text, "text_mask": text_mask, "mask": np.ones((batch_size,), np.float32)}

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        batch = as_jax(self.init_batch(1))
        return self.model.init({"params": key}, image=self.pixels(batch["image"]), text=batch["text"])

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The sum over all tokens behind the prompt; what is counted are tokens."""
        call = self.caller(params, collections, rngs.get("dropout"), train=train)
        each, count, logits = self.of_captions(call, batch)
        total, tokens = jnp.sum(each * batch["mask"]), jnp.sum(count * batch["mask"])
        right = jnp.sum(self._right(logits, batch) * batch["mask"])
        return total, ({"loss": (total, tokens), "accuracy": (right, tokens)}, {**collections, **call.statistics})

    def of_captions(self, call: Caller, batch: Batch, *, smoothing: float | None = None) -> tuple[Array, Array, Array]:
        """Each caption's loss, summed over its tokens, how many these are, and the logits."""
        _, out = call(image=self.pixels(batch["image"]), text=batch["text"], text_mask=batch["text_mask"])
        mask = self._learnt(batch)
        smoothing = self._smoothing if smoothing is None else smoothing
        each = losses.text_loss(out["logits"][:, :-1], batch["text"][:, 1:], mask, smoothing=smoothing)
        return each, jnp.sum(mask, axis=1, dtype=each.dtype), out["logits"]

    def _learnt(self, batch: Batch) -> Array:
        """Which tokens behind the first one are learned: bool[B, T - 1]."""
        behind = jnp.arange(batch["text"].shape[1]) >= len(self._prompt)
        return (batch["text_mask"] & behind[None])[:, 1:]

    def _predict_text(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`tokens` int32[B, W], `length` int32[B] and `score` float32[B]: the caption behind the prompt."""
        rows = len(batch["image"])
        prompt = jnp.broadcast_to(jnp.asarray(self._prompt)[None], (rows, len(self._prompt)))
        found = self._generator.write(
            {"params": params, **statistics_of(collections)},
            prompt,
            jnp.ones(prompt.shape, bool),
            jax.random.key(self._seed),
            image=self.pixels(batch["image"]),
        )
        return {"tokens": found.tokens, "length": found.lengths, "score": found.scores}

    def _predict_explain(self, params: Params, collections: Collections, batch: Batch, *, sign: int) -> Arrays:
        """The caption as of `answers`, and for each of its word pieces where the decoder looked when it wrote it.

        The gradients are those of the caption's log-probability, with the sign -1 those of its loss.
        """
        found = self._predict_text(params, collections, batch)
        written, begin = found["tokens"], len(self._prompt) - 1
        prompt = jnp.broadcast_to(jnp.asarray(self._prompt)[None], (len(written), begin + 1))
        text, there = (
            jnp.concatenate([prompt, written], axis=1),
            jnp.arange(written.shape[1])[None] < found["length"][:, None],
        )
        mask = jnp.concatenate([jnp.ones(prompt.shape, bool), there], axis=1)
        call, image = self.caller(params, collections, None, train=False), self.pixels(batch["image"])

        def forward(changes: Changes | None) -> tuple[Array, tuple[None, Mapping[str, Array]]]:
            tokens, real, _ = call("see", image=image)
            seen = call("remember", tokens=tokens, mask=real)
            logits, out = call("write", text=text, text_mask=mask, seen=seen, changes=changes)
            return -jnp.sum(losses.text_loss(logits[:, begin:-1], written, there)), (None, out)

        _, attention, gradient = attention_and_gradient(forward)
        maps = token_maps(attention, sign * gradient, mask)[
            :, begin:-1
        ]  # a token is written at the place before its own
        words = there & (written != self.tokenizer.end)
        return found | explained(jnp.where(words[:, :, None], maps, 0)) | {"words": written}

    def _text_of(self, output: Mapping[str, np.ndarray]) -> str:
        return self.tokenizer.decode(output["tokens"][: int(output["length"])])

    def _predict_likelihood(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """What `jaxvqa.evaluators.likelihood` adds up, float32[B] each: the captions' loss, probability and right tokens."""
        call = self.caller(params, collections, None, train=False)
        each, count, logits = self.of_captions(call, batch)
        plain, _, _ = self.of_captions(call, batch, smoothing=0.0)
        return {
            "loss": each,
            "loss_words": count,
            "words": count,
            "nll": plain,
            "right": self._right(logits, batch),
        }

    def _right(self, logits: Array, batch: Batch) -> Array:
        """How many of the learned tokens are the most probable ones: float32[B]."""
        right = (jnp.argmax(logits[:, :-1], axis=-1) == batch["text"][:, 1:]) & self._learnt(batch)
        return jnp.sum(right, axis=1, dtype=logits.dtype)
