"""Whether a sentence is true of two images: BLIP's NLVR2 (docs/originals/blip.md, section 10)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from jaxvqa import losses
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.blip_text import CaptionTokenizer, pre_caption
from jaxvqa.data.transforms import BothImages, ClassOfAnswer, Example, Keep, Transform, random_of
from jaxvqa.tasks import Assets, Loss
from jaxvqa.tasks.blip import BlipTask, as_jax, empty_texts, statistics_of
from jaxvqa.tasks.predictions import Predict, best_answers
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs

TRUTHS = AnswerList(("false", "true"))
"""What a sentence can be, in the order of the model's logits."""

OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class SwapImages:
    """Half of the time the images of `image` [2, …] change places, and the words "left" and "right" of `question` with them.

    A word with a mark that cleaning keeps, such as "left,", stays as it is, as in the original.

    Attributes:
      max_words: the sentence is cleaned, and cut to that many words.
    """

    max_words: int

    def __call__(self, example: Example) -> Example:
        """Changes both, or neither."""
        if random_of(example, "swap").random() < 0.5:
            return example
        words = pre_caption(example["question"], self.max_words).split(" ")
        swapped = " ".join(OTHER_SIDE.get(word, word) for word in words)
        return example | {"image": example["image"][::-1], "question": swapped}


@dataclass(frozen=True)
class WriteSentence:
    """`question` str -> `text` int32[T], filled up with padding, and `text_mask` bool[T]; [ENC] comes first.

    Attributes:
      tokenizer: the tokenizer.
      max_tokens: T; what is longer is cut, which nothing is in the original.
      max_words: the sentence is cleaned, and cut to that many words.
    """

    tokenizer: CaptionTokenizer = field(repr=False)
    max_tokens: int
    max_words: int

    def __call__(self, example: Example) -> Example:
        """Adds the text."""
        text, mask = self.tokenizer.padded(pre_caption(example["question"], self.max_words), self.max_tokens)
        text[0] = self.tokenizer.encode_begin
        return example | {"text": text, "text_mask": mask}


class ImagePairs(BlipTask):
    """Cross-entropy of false and true, of those examples that say which.

    An example has two images, a sentence as its `question`, and "true" or "false" as its `multiple_choice_answer`. Besides
    `answers` there are two controls: `answers_blank` reads black images, `answers_first` a black one instead of the second.
    """

    answer_rule = "exact"
    batch_keys: Sequence[str] = ("image", "text", "text_mask", "answer_class", "mask")

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Args: as of `BlipTask`."""
        super().__init__(config, assets)
        answers = Predict(self._predict_answers, ("image", "text", "text_mask"), TRUTHS.answers)
        first = Predict(self._predict_first, answers.keys, answers.choices)
        self.predictions = {"answers": answers, "answers_blank": answers.blank("image"), "answers_first": first}

    def transforms(self, *, train: bool) -> Sequence[Transform]:
        """Raw example to `image`, `text`, `text_mask`, `answer_class` and `id`; in training, images are changed at random."""
        data = self._data
        swap = (SwapImages(data.max_words),) if train and data.augment.swap else ()
        write = WriteSentence(self.tokenizer, data.max_tokens, data.max_words)
        return (
            BothImages(self.see(train=train)),
            *swap,
            write,
            ClassOfAnswer(TRUTHS),
            Keep(self.batch_keys[:-1]),
        )

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image` [B, 2, …] as of `BlipTask.init_image`, `text` int32[B, T] with its mask, `answer_class` int32[B], `mask`."""
        text, text_mask = empty_texts((batch_size, self._data.max_tokens))
        one = self.init_image(batch_size)
        return {
            "image": np.stack([one, one], axis=1),
            "text": text,
            "text_mask": text_mask,
            "answer_class": np.zeros((batch_size,), np.int32),
            "mask": np.ones((batch_size,), np.float32),
        }

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        batch = as_jax(self.init_batch(1))
        return self.model.init({"params": key}, image=self.pair(batch["image"]), text=batch["text"])

    def pair(self, image: Array) -> Float[Array, "B 2 H W C"]:
        """What the model reads of a batch's pairs of images."""
        flat = self.pixels(image.reshape(-1, *image.shape[2:]))
        return flat.reshape(*image.shape[:2], *flat.shape[1:])

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The loss summed over the examples that say what is true; metrics `loss` and `accuracy`."""
        call = self.caller(params, collections, rngs.get("dropout"), train=train)
        logits, _ = call(image=self.pair(batch["image"]), text=batch["text"], text_mask=batch["text_mask"])
        known = (batch["mask"] > 0) & (batch["answer_class"] >= 0)
        each = losses.cross_entropy(logits, jnp.maximum(batch["answer_class"], 0))
        loss = jnp.sum(jnp.where(known, each, 0))
        right = jnp.sum(known & (jnp.argmax(logits, axis=-1) == batch["answer_class"]), dtype=loss.dtype)
        count = jnp.maximum(jnp.sum(known, dtype=loss.dtype), 1)  # a batch that says nothing has no gradient, not 0 / 0
        return loss, ({"loss": (loss, count), "accuracy": (right, count)}, {**collections, **call.statistics})

    def _predict_answers(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """`answer` int32[B, 2], the likelier one first, and their `probability` float32[B, 2]."""
        image, texts = self.pair(batch["image"]), {name: batch[name] for name in ("text", "text_mask")}
        variables: dict[str, Any] = {"params": params, **statistics_of(collections)}
        logits, _ = self.model.apply(variables, image=image, **texts)
        return best_answers(jax.nn.softmax(logits))

    def _predict_first(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """The same where the second image is black."""
        return self._predict_answers(params, collections, {**batch, "image": batch["image"].at[:, 1].set(0)})
