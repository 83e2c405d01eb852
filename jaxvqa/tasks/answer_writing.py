"""Answers that are written, or ranked, from the states of a question read beside its image: BLIP's VQA.

docs/originals/blip.md, section 7.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxvqa import losses
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.blip_text import CaptionTokenizer, pre_question, weighted_answers
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.transforms import Example, Keep, Transform
from jaxvqa.decoding.loop import Generator
from jaxvqa.errors import ConfigError
from jaxvqa.models.blip import Changes
from jaxvqa.tasks import Assets, Loss
from jaxvqa.tasks.assets import answer_rule, answers_of
from jaxvqa.tasks.attention_gradient import OF_LOSS, attention_and_gradient, explained, token_maps
from jaxvqa.tasks.blip import BlipTask, as_jax, empty_texts, statistics_of
from jaxvqa.tasks.image_captioning import search_of
from jaxvqa.tasks.predictions import SHOWN, Predict
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs

POSITIONS = 2048
"""How many tokens of answers are scored at a time, over all questions of a batch: bounds the memory of their scores."""

SHORT = 8
"""Answers of so many tokens are read without the padding that longer ones need."""


class Ranked(NamedTuple):
    """What ranking found.

    Attributes:
      first: float32[B, A], the probability of each answer's first token.
      kept: int32[B, k], the answers of highest such probability.
      loss: float32[B, k], theirs: smoothed, summed over their tokens, the end among them.
      best: int32[B], the answer of least loss.
    """

    first: Float[Array, "B A"]
    kept: Int[Array, "B k"]
    loss: Float[Array, "B k"]
    best: Int[Array, " B"]


@dataclass(frozen=True)
class WriteQuestionAndAnswers:
    """`question` and `answers` -> the question's and the answers' token ids.

    They are `question` int32[T] and `question_mask`, [ENC] first; `text` int32[P, W] and `text_mask`, [DEC] first; and `weight`
    float32[P], 0 for answers that are filled up. More than P answers lose those of least weight.
    """

    tokenizer: CaptionTokenizer = field(repr=False)
    max_tokens: int
    max_answers: int
    max_answer_tokens: int

    def __call__(self, example: Example) -> Example:
        """Adds the texts."""
        ids = self.tokenizer.whole(pre_question(example["question"]), self.max_tokens)
        question = np.full(self.max_tokens, self.tokenizer.padding, np.int32)
        question[: len(ids)] = [self.tokenizer.encode_begin, *ids[1:]]
        found, weights = weighted_answers(example.get("answers", ()))
        order = sorted(range(len(found)), key=lambda i: -weights[i])[: self.max_answers]
        text = np.full((self.max_answers, self.max_answer_tokens), self.tokenizer.padding, np.int32)
        mask, weight = np.zeros(text.shape, np.bool_), np.zeros(self.max_answers, np.float32)
        for row, i in enumerate(sorted(order)):
            ids_ = self.tokenizer.whole(found[i], self.max_answer_tokens)
            text[row, : len(ids_)], mask[row, : len(ids_)] = [self.tokenizer.decode_begin, *ids_[1:]], True
            weight[row] = weights[i]
        mask[:, 0] = True  # nothing may read nothing
        return example | {
            "question": question,
            "question_mask": np.arange(self.max_tokens) < len(ids),
            "text": text,
            "text_mask": mask,
            "weight": weight,
        }


class AnswerWriting(BlipTask):
    """The weighted loss of a question's answers, summed over their tokens; the mean is over images.

    `config.loss.smoothing`: share of the target that is spread over all tokens. Predictions are `answers`, which are written,
    and `ranked`, chosen from the answer list of `config.data.answers`: `config.ranking.first` are kept by their first token.
    """

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Args: as of `BlipTask`; assets also have `answers`, the list to rank."""
        super().__init__(config, assets)
        self.answer_rule, self.asks = answer_rule(config), "question"
        self._smoothing, self._keep = config.loss.smoothing, config.ranking.first
        if self._keep < 1:
            raise ConfigError(f"config.ranking.first is {self._keep}; expected at least 1.")
        ends = {"end": self.tokenizer.end, "padding": self.tokenizer.padding}
        self._generator = Generator(self.model, search_of(config.generate, prompt=1, **ends))
        self._attend_padding, self._seed = config.generate.attend_padding, config.generate.seed
        self.candidates = self._encoded(assets["answers"])
        self.batch_keys: Sequence[str] = ("image", "question", "question_mask", "text", "text_mask", "weight", "mask")
        asked = ("image", "question", "question_mask")
        written = Predict(self._predict_text, asked, text=self._text_of)
        ranked = Predict(self._predict_ranked, asked, tuple(assets["answers"]))
        self.predictions: dict[str, Predict] = {"answers": written, "ranked": ranked}
        for name, sign in {"explain": 1, OF_LOSS: -1}.items():
            function = functools.partial(self._predict_explain, sign=sign)
            self.predictions[name] = Predict(function, asked, tuple(assets["answers"]))
        self.predictions |= {
            f"{name}_blank": found.blank("image") for name, found in (("answers", written), ("ranked", ranked))
        }

    def _encoded(self, answers: Sequence[str]) -> tuple[Int[np.ndarray, "A W"], Bool[np.ndarray, "A W"]]:
        """The token ids of a list of answers, [DEC] first, and which of them are there."""
        rows = [self.tokenizer.whole(answer) for answer in answers]
        text = np.full((len(rows), max(map(len, rows))), self.tokenizer.padding, np.int32)
        for row, ids in zip(text, rows, strict=True):
            row[: len(ids)] = [self.tokenizer.decode_begin, *ids[1:]]
        return text, np.arange(text.shape[1])[None] < np.asarray([len(ids) for ids in rows])[:, None]

    # --- assets and data ---------------------------------------------------------------------------------------------------

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """The tokenizer as of `BlipTask`, and the answer list as other tasks make it (`answers_of`)."""
        return {**BlipTask.make_assets(config, data), "answers": answers_of(AnswerList, data)}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the sizes `config.compile.vocab_size` and `.num_answers`, without any data."""
        return {
            **BlipTask.stand_in_assets(config),
            "answers": [f"word{i % 1000}" for i in range(config.compile.num_answers)],
        }

    def transforms(self, *, train: bool) -> Sequence[Transform]:
        """Raw example to `image`, the texts of `WriteQuestionAndAnswers`, and `id`."""
        data = self._data
        write = WriteQuestionAndAnswers(self.tokenizer, data.max_tokens, data.max_answers, data.max_answer_tokens)
        return (*self.see(train=train), write, Keep(self.batch_keys[:-1]))

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image` as of `BlipTask.init_image`, texts as of `WriteQuestionAndAnswers`, `mask` float32[B]."""
        data = self._data
        question, question_mask = empty_texts((batch_size, data.max_tokens))
        text, text_mask = empty_texts((batch_size, data.max_answers, data.max_answer_tokens))
        return {
            "image": self.init_image(batch_size),
            "question": question,
            "question_mask": question_mask,
            "text": text,
            "text_mask": text_mask,
            "weight": np.zeros((batch_size, data.max_answers), np.float32),
            "mask": np.ones((batch_size,), np.float32),
        }

    # --- model -------------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        batch = as_jax(self.init_batch(1))
        image = self.pixels(batch["image"])
        return self.model.init({"params": key}, image=image, question=batch["question"], text=batch["text"][:, 0])

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The sum over the images, each the weighted sum of its answers' losses."""
        call = self.caller(params, collections, rngs.get("dropout"), train=train)
        rows, count, length = batch["text"].shape
        text, mask = (batch[name].reshape(-1, length) for name in ("text", "text_mask"))
        asked: Any = {name: batch[name] for name in ("question", "question_mask")}
        logits, _ = call(image=self.pixels(batch["image"]), text=text, text_mask=mask, **asked)
        each = losses.text_loss(logits[:, :-1], text[:, 1:], mask[:, 1:], smoothing=self._smoothing)
        total = jnp.sum(each.reshape(rows, count) * batch["weight"] * batch["mask"][:, None])
        counted = mask[:, 1:] & jnp.repeat(batch["weight"].reshape(-1) > 0, length - 1).reshape(-1, length - 1)
        counted = counted & jnp.repeat(batch["mask"] > 0, count * (length - 1)).reshape(counted.shape)
        right = (jnp.argmax(logits[:, :-1], axis=-1) == text[:, 1:]) & counted
        accuracy = jnp.sum(right, dtype=total.dtype), jnp.sum(counted, dtype=total.dtype)
        return total, (
            {"loss": (total, jnp.sum(batch["mask"])), "accuracy": accuracy},
            {**collections, **call.statistics},
        )

    def _predict_text(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`tokens` int32[B, W], `length` int32[B] and `score` float32[B] of the written answers."""
        begin = jnp.full((len(batch["question"]), 1), self.tokenizer.decode_begin, jnp.int32)
        found = self._generator.write(
            {"params": params, **statistics_of(collections)},
            begin,
            jnp.ones(begin.shape, bool),
            jax.random.key(self._seed),
            image=self.pixels(batch["image"]),
            question=batch["question"],
            question_mask=batch["question_mask"],
            attend_padding=jnp.asarray(self._attend_padding),
        )
        return {"tokens": found.tokens, "length": found.lengths, "score": found.scores}

    def _text_of(self, output: Mapping[str, np.ndarray]) -> str:
        return self.tokenizer.decode(output["tokens"][: int(output["length"])])

    def rank(
        self,
        params: Params,
        collections: Collections,
        batch: Batch,
        candidates: tuple[Int[ArrayLike, "A W"], Bool[ArrayLike, "A W"]],
        keep: int,
    ) -> Ranked:
        """Chooses among answers by their first token, and among those that are kept by their loss.

        Args:
          params: the parameters.
          collections: the other collections.
          batch: `image`, `question`, `question_mask`.
          candidates: the answers' token ids, [DEC] first, and which are there.
          keep: how many are kept.
        """
        text, there = (jnp.asarray(x) for x in candidates)
        call = self.caller(params, collections, None, train=False)
        question_mask = batch["question_mask"]
        image = self.pixels(batch["image"])
        states, _ = call("ask", image=image, question=batch["question"], question_mask=question_mask)
        begin = jnp.full((len(states), 1), self.tokenizer.decode_begin, jnp.int32)
        asked = {"states": states, "question_mask": question_mask}
        logits, _ = call("write", text=begin, text_mask=jnp.ones(begin.shape, bool), **asked)
        first = jax.nn.softmax(logits[:, 0], axis=-1)[:, text[:, 1]]
        kept = jax.lax.top_k(first, min(keep, len(text)))[1]
        each = self._losses(kept, text, there, functools.partial(call, "write", **asked))
        best = jnp.take_along_axis(kept, jnp.argmin(each, axis=1)[:, None], axis=1)[:, 0]
        return Ranked(first, kept.astype(jnp.int32), each, best.astype(jnp.int32))

    def _losses(
        self,
        kept: Int[Array, "B k"],
        text: Int[Array, "A W"],
        there: Bool[Array, "A W"],
        write: Callable[..., Any],
    ) -> Float[Array, "B k"]:
        """The losses of each question's answers, a part of them at a time, each part as wide as its longest.

        All of their scores would be k·W·V numbers a question; and one long answer in a list would make all as long.
        """
        (rows, count), width = kept.shape, text.shape[1]
        lengths = jnp.sum(there, axis=1)
        order = jnp.argsort(lengths[kept], axis=1)
        together = int(np.clip(POSITIONS // (rows * (width - 1)), 1, count))
        parts = jnp.pad(jnp.take_along_axis(kept, order, axis=1), ((0, 0), (0, -count % together)), mode="edge")
        widths = [*itertools.takewhile(lambda w: 2 * w <= width, (SHORT << i for i in itertools.count())), width]

        def of_width(width: int, tokens: Array, mask: Array) -> Array:
            # Nothing is scored behind the last token, so that it is not read.
            logits, _ = write(text=tokens[:, : width - 1], text_mask=mask[:, : width - 1])
            return losses.text_loss(logits, tokens[:, 1:width], mask[:, 1:width], smoothing=self._smoothing)

        def of_part(places: Int[Array, "B c"]) -> Float[Array, "B c"]:
            which = jnp.searchsorted(jnp.asarray(widths), jnp.max(lengths[places]))
            texts = (x[places].reshape(-1, width) for x in (text, there))
            found = jax.lax.switch(which, [functools.partial(of_width, w) for w in widths], *texts)
            return found.reshape(places.shape)

        each = jax.lax.map(of_part, jnp.moveaxis(parts.reshape(rows, -1, together), 1, 0))
        each = jnp.moveaxis(each, 0, 1).reshape(rows, -1)[:, :count]
        return jnp.take_along_axis(each, jnp.argsort(order, axis=1), axis=1)

    def _predict_ranked(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """The best answers int32[B, K] of the list, and their shares of the probability of those that were kept."""
        return self._best(self.rank(params, collections, batch, self.candidates, self._keep))

    def _predict_explain(self, params: Params, collections: Collections, batch: Batch, *, sign: int) -> Arrays:
        """The same, and for each word piece of the question a map: of the gradients of the best answer's log-probability.

        With the sign -1 they are those of its loss.
        """
        found = self.rank(params, collections, batch, self.candidates, self._keep)
        text, there = (jnp.asarray(x)[found.best] for x in self.candidates)
        call, image, mask = (
            self.caller(params, collections, None, train=False),
            self.pixels(batch["image"]),
            batch["question_mask"],
        )

        def forward(changes: Changes | None) -> tuple[Array, tuple[None, Mapping[str, Array]]]:
            states, out = call("ask", image=image, question=batch["question"], question_mask=mask, changes=changes)
            logits, _ = call("write", states=states, question_mask=mask, text=text, text_mask=there)
            return -jnp.sum(losses.text_loss(logits[:, :-1], text[:, 1:], there[:, 1:])), (None, out)

        _, attention, gradient = attention_and_gradient(forward)
        maps = explained(
            token_maps(attention, sign * gradient, mask & (batch["question"] != self.tokenizer.end))[:, 1:]
        )
        return self._best(found) | maps | {"words": batch["question"][:, 1:]}

    @staticmethod
    def _best(found: Ranked) -> Arrays:
        shares = jax.nn.softmax(-found.loss, axis=-1)
        probability, places = jax.lax.top_k(shares, min(SHOWN, shares.shape[1]))
        return {"answer": jnp.take_along_axis(found.kept, places, axis=1), "probability": probability}
