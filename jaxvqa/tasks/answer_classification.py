"""Choosing one of a closed list of answers, from region features and a question: RWSAN's task."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key

from jaxvqa import models
from jaxvqa.data import images, transforms
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.region_features import FEATURE_WIDTH
from jaxvqa.data.text import Vocabulary, load_glove, tokenise
from jaxvqa.errors import DataError
from jaxvqa.precision import widened
from jaxvqa.tasks import Assets, Loss, Starts, Task, started
from jaxvqa.tasks.assets import answer_rule, answers_of, words_of
from jaxvqa.tasks.predictions import Predict, best_answers
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs


class AnswerClassification(Task):
    """Binary cross-entropy against a score for each answer, summed over answers and examples.

    docs/originals/rwsan.md, section 5.
    """

    smooth = False

    batch_keys: Sequence[str] = ("regions", "question", "answer_scores", "mask")

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Args: the whole config, and assets with `vocabulary`, `answers` (lists of str) and `region_width`."""
        self.assets, self.answer_rule = assets, answer_rule(config)
        self.vocabulary = Vocabulary(tuple(assets["vocabulary"]))
        self.answers = AnswerList(tuple(assets["answers"]))
        self._data = config.data
        self._propose = images.region_steps(config.data)
        self._regions = 1 if config.data.blind else config.data.max_regions
        self.model = models.build(
            config.model.to_dict(), dtype=config.dtype, vocab_size=len(self.vocabulary), num_answers=len(self.answers)
        )
        explain = Predict(self._predict_with_attention, ("regions", "question"), self.answers.answers)
        blind = config.data.blind or not config.data.images
        self.asks, self.unknown = "question", {"answers": ()}
        self.reads = "nothing" if blind else "pixels" if self._propose else "regions"
        self.predictions = {"answers": explain.first(), "explain": explain}

    # --- assets ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """Makes vocabulary and answer list from the built data set, or from the files that the config names."""
        width = data.config.region_width
        if images.region_steps(data.config):
            width = FEATURE_WIDTH
        elif data.config.images:
            first = data.split(data.config.train_split)[0]
            if "features" not in first:
                raise DataError(
                    f"{data.config.images} has no features of regions, which this model reads: take a part that has them "
                    "(config.data.images), or --config.data.regions=shapes, which proposes regions from the image alone."
                )
            width = first["features"].shape[1]
        words, answers = words_of(Vocabulary, data), answers_of(AnswerList, data)
        return {"region_width": int(width), "vocabulary": words, "answers": answers}

    @staticmethod
    def make_starts(config: ml_collections.ConfigDict, assets: Assets, data: DataSet) -> Starts:
        """The word vectors of the file `config.data.word_vectors`, if it names one."""
        file = data.config.word_vectors
        if not file:
            return {}
        vocabulary = Vocabulary(tuple(assets["vocabulary"]))
        return {"embed/embedding": load_glove(file, vocabulary, width=config.model.embed_width)}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the published sizes, `config.compile.vocab_size` and `.num_answers`, without any data."""
        return {
            "region_width": config.data.region_width,
            "vocabulary": ["PAD", "UNK", *(f"word{i}" for i in range(config.compile.vocab_size - 2))],
            "answers": [f"answer{i}" for i in range(config.compile.num_answers)],
        }

    # --- data --------------------------------------------------------------------------------------------------------------

    def transforms(self, *, train: bool) -> Sequence[transforms.Transform]:
        """Raw example to `regions`, `boxes`, `question`, `answer_scores`, `id`."""
        blind = self._data.blind or not self._data.images
        see: tuple[transforms.Transform, ...] = (
            (transforms.BlindRegions(self.assets["region_width"]),)
            if blind
            else (*self._propose, transforms.PadRegions(self._data.max_regions))
        )
        return (
            *see,
            transforms.EncodeQuestion(self.vocabulary, self._data.max_tokens),
            transforms.ScoreAnswers(self.answers, self._data.answers.rule),
            transforms.Keep(("regions", "boxes", "question", "answer_scores")),
        )

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`regions` float16[B, R, F], `question` int32[B, T], `answer_scores` float32[B, A], `mask` float32[B]."""
        return {
            "regions": np.zeros((batch_size, self._regions, self.assets["region_width"]), np.float16),
            "question": np.zeros((batch_size, self._data.max_tokens), np.int32),
            "answer_scores": np.zeros((batch_size, len(self.answers)), np.float32),
            "mask": np.ones((batch_size,), np.float32),
        }

    def words(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> list[str]:
        """The words of a question that the model reads."""
        return tokenise(example["question"])[: self._data.max_tokens]

    def boxes(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Float[np.ndarray, "R 4"]:
        """The regions' boxes; none for a model that reads no image."""
        if self._data.blind or not self._data.images:
            return np.zeros((0, 4), np.float32)
        return transforms.boxes_of(example, self._propose)[: self._data.max_regions]

    # --- model ---------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        batch = {name: jnp.asarray(array) for name, array in self.init_batch(1).items()}
        variables = self.model.init({"params": key}, regions=batch["regions"], question=batch["question"])
        return started(variables, self.starts)

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """Summed binary cross-entropy with logits; metrics `loss` (an example) and `accuracy` (the chosen answer's score)."""
        logits, _ = self.model.apply(
            {"params": params, **collections},
            regions=batch["regions"],
            question=batch["question"],
            train=train,
            rngs=dict(rngs),
        )
        logits, scores, mask = widened(logits), batch["answer_scores"], batch["mask"]
        loss = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, scores).sum(axis=-1) * mask)
        chosen = jnp.take_along_axis(scores, jnp.argmax(logits, axis=-1)[:, None], axis=-1)[:, 0]
        count = jnp.sum(mask)
        return loss, ({"loss": (loss, count), "accuracy": (jnp.sum(chosen * mask), count)}, collections)

    def _predict_with_attention(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        logits, out = self.model.apply(
            {"params": params, **collections}, regions=batch["regions"], question=batch["question"]
        )
        maps = {name: out[name] for name in ("region_attention", "question_attention")}
        return best_answers(jax.nn.sigmoid(logits.astype(jnp.float32))) | maps
