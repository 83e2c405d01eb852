"""Choosing one of a closed list of answers, from an image and a question, by VQA-RAD's rules: CMSA, BAN and SAN."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key

from jaxvqa import models
from jaxvqa.data import images, transforms
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.rad_text import RadAnswerList, RadVocabulary, load_vectors, second_embedding, tfidf, tokenise
from jaxvqa.errors import ConfigError
from jaxvqa.models.cmsa import ORGANS
from jaxvqa.state import Kinds
from jaxvqa.tasks import Assets, Loss, Starts, Task, started
from jaxvqa.tasks.assets import answer_rule, answers_of, words_of
from jaxvqa.tasks.predictions import Predict, best_answers, grid_boxes
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs

INPUTS = {"image": ("image_size", 3), "image_84": ("maml_size", 1), "image_128": ("autoencoder_size", 1)}
"""A model's input -> the field of `config.data` with its size, and its channels."""


class RadiologyVqa(Task):
    """Binary cross-entropy over the answers, with what a model's image branches are trained for beside it.

    docs/originals/cmsa.md, section 8.

    A model says in `inputs` which entries of a batch it reads, and in its intermediates what else there is to learn:

    - `organ_logits`: `config.loss.organ` times the cross-entropy of the part of the body that is shown;
    - `reconstruction`: `config.loss.reconstruction` times the mean squared error of the auto-encoder's image, once a batch.

    With `config.loss.dynamic` the weights of answers and organ follow how fast either loss falls (`--dwa` of the original).
    """

    smooth = False
    kinds: ClassVar[Kinds] = {**Task.kinds, "losses": "memory"}

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Args: the whole config, and assets with `vocabulary` and `answers` (lists of str)."""
        if len(config.data.organs) != len(ORGANS):
            raise ConfigError(f"config.data.organs is {config.data.organs!r}; expected one value for each of {ORGANS}.")
        self.assets, self.answer_rule = assets, answer_rule(config)
        self.vocabulary = RadVocabulary(tuple(assets["vocabulary"]))
        self.answers = RadAnswerList(tuple(assets["answers"]))
        self._data, self._loss = config.data, config.loss
        self.model = models.build(
            config.model.to_dict(), dtype=config.dtype, vocab_size=len(self.vocabulary), num_answers=len(self.answers)
        )
        self._sizes = {
            name: (int(config.data[size]), channels)
            for name, (size, channels) in INPUTS.items()
            if name in self.model.inputs
        }
        self.asks, self.reads = "question", "nothing" if config.data.blind or not config.data.images else "pixels"
        self.unknown = {"organ": config.data.organs[0]}
        self.additive = "image_128" not in self.model.inputs  # the mean error of reconstruction is added to sums
        self.batch_keys: Sequence[str] = (*self.model.inputs, "answer_scores", "organ", "mask")
        # A model with an organ head says too whether it is right, which takes the organ.
        explain = Predict(self._predict_with_attention, (*self.model.inputs, "organ"), self.answers.answers)
        answers = explain.first()
        self.predictions = {"answers": answers, "answers_blank": answers.blank(*self._sizes), "explain": explain}

    # --- assets ------------------------------------------------------------------------------------------------------------

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """Makes vocabulary and answer list: words and answers in the order in which the questions bring them."""
        return {"vocabulary": words_of(RadVocabulary, data), "answers": answers_of(RadAnswerList, data)}

    @staticmethod
    def make_starts(config: ml_collections.ConfigDict, assets: Assets, data: DataSet) -> Starts:
        """What the word tables start from where `config.data.word_vectors` names a local file.

        The first table has its vectors, the second one their mixture by the "tf-idf" matrix of the training questions
        (docs/originals/cmsa.md, sections 2.1 and 2.2).
        """
        file = data.config.word_vectors
        if not file:
            return {}
        vocabulary = RadVocabulary(tuple(assets["vocabulary"]))
        vectors = load_vectors(file, vocabulary, width=config.model.embed_width)
        starts = {"embed/table_0": np.concatenate([vectors, np.zeros((1, vectors.shape[1]), np.float32)])}
        if config.model.tables > 1:
            train = data.split(data.config.vocabulary_splits).all_records()
            matrix = tfidf((question["question"] for question in train), vocabulary)
            starts["embed/table_1"] = second_embedding(matrix, vectors)
        return starts

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the published sizes, `config.compile.vocab_size` and `.num_answers`, without any data."""
        return {
            "vocabulary": [f"word{i}" for i in range(config.compile.vocab_size)],
            "answers": [f"answer{i}" for i in range(config.compile.num_answers)],
        }

    # --- data --------------------------------------------------------------------------------------------------------------

    def transforms(self, *, train: bool) -> Sequence[transforms.Transform]:
        """Raw example to the images that the model reads, `question`, `answer_scores`, `organ`, `id`."""
        data = self._data
        blind = data.blind or not data.images
        steps: list[transforms.Transform] = []
        if blind:
            steps.append(images.NoiseImage(self._sizes))
        elif train and any(data.augment.values()):
            crops = {name: (size + data.augment.crop, channels) for name, (size, channels) in self._sizes.items()}
            steps.append(images.DecodeImage(crops, cache_mib=data.cache_mib))
            for name, (size, _) in self._sizes.items():
                steps.append(images.CropAndRotate(size, data.augment.degrees, image=name))
                steps.append(images.Brightness(data.augment.brightness, image=name))
        else:
            steps.append(images.DecodeImage(self._sizes, cache_mib=data.cache_mib))
        return (
            *steps,
            transforms.EncodeQuestion(self.vocabulary, data.max_tokens),
            transforms.ScoreAnswers(self.answers, data.answers.rule),
            transforms.Label("organ", tuple(data.organs)) if data.images else transforms.Constant("organ", np.int32(0)),
            transforms.Keep((*self.model.inputs, "answer_scores", "organ")),
        )

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """Images uint8[B, S, S, C]; `question` int32[B, T], `answer_scores` float32[B, A], `organ` int32[B], `mask`."""
        shown = {
            name: np.zeros((batch_size, size, size, channels), np.uint8)
            for name, (size, channels) in self._sizes.items()
        }
        return shown | {
            "question": np.zeros((batch_size, self._data.max_tokens), np.int32),
            "answer_scores": np.zeros((batch_size, len(self.answers)), np.float32),
            "organ": np.zeros((batch_size,), np.int32),
            "mask": np.ones((batch_size,), np.float32),
        }

    def words(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> list[str]:
        """The words of a question that the model reads."""
        return tokenise(example["question"])[: self._data.max_tokens]

    def boxes(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Float[np.ndarray, "R 4"]:
        """The cells of the map that the model attends to, row by row: x1, y1, x2, y2 in the image's own pixels."""
        if self._data.blind or not self._data.images or "image" not in self._sizes:
            return np.zeros((0, 4), np.float32)
        return grid_boxes(example, -(-self._sizes["image"][0] // 32))

    # --- model -------------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        batch = {name: jnp.asarray(array) for name, array in self.init_batch(1).items()}
        variables = started(self.model.init({"params": key}, **self._inputs(batch)), self.starts)
        if self._loss.dynamic:
            # Sums of (answer loss, organ loss) of the last step and of the one before.
            variables["losses"] = {"last": jnp.zeros(2), "before": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}
        return variables

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The loss summed over the batch; metrics `loss` and its parts (an example), `accuracy`, `organ_accuracy`."""
        variables = {"params": params, **{name: tree for name, tree in collections.items() if name != "losses"}}
        (logits, out), updates = self.model.apply(
            variables, **self._inputs(batch), train=train, rngs=dict(rngs), mutable=["batch_stats"] if train else []
        )
        scores, mask = batch["answer_scores"], batch["mask"]
        count = jnp.sum(mask)
        answers = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, scores).sum(axis=-1) * mask)
        chosen = jnp.take_along_axis(scores, jnp.argmax(logits, axis=-1)[:, None], axis=-1)[:, 0]
        metrics = {"answer_loss": (answers, count), "accuracy": (jnp.sum(chosen * mask), count)}
        organ = jnp.zeros(())
        if "organ_logits" in out:
            each = optax.softmax_cross_entropy_with_integer_labels(out["organ_logits"], batch["organ"])
            organ = jnp.sum(each * mask)
            right = jnp.argmax(out["organ_logits"], axis=-1) == batch["organ"]
            metrics |= {"organ_loss": (organ, count), "organ_accuracy": (jnp.sum(right * mask), count)}
        if self._loss.dynamic and train:
            weights, history = dynamic_weights(collections["losses"], jnp.stack([answers, organ]))
            updates = {**updates, "losses": history}
        else:
            weights = jnp.asarray([1.0, self._loss.organ])
        loss = weights[0] * answers + weights[1] * organ
        if "reconstruction" in out:
            wanted = self._inputs(batch)["image_128"]
            error = jnp.mean(jnp.square(out["reconstruction"] - wanted), axis=(1, 2, 3))
            # The original adds the mean over the batch to the sum of the answers' losses (docs/originals/cmsa.md, section 13,
            # quirk 21).
            error = jnp.sum(error * mask) / jnp.maximum(count, 1)
            metrics["reconstruction_error"] = (error, jnp.ones(()))
            loss += self._loss.reconstruction * error
        return loss, (metrics | {"loss": (loss, count)}, {**collections, **updates})

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model reads, by keyword."""
        return {"question": batch["question"]} | {name: images.normalised(batch[name]) for name in self._sizes}

    def _predict_with_attention(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        variables = {"params": params, **{name: tree for name, tree in collections.items() if name != "losses"}}
        logits, out = self.model.apply(variables, **self._inputs(batch))
        predicted = best_answers(jax.nn.sigmoid(logits))
        if "organ_logits" in out:
            predicted["organ_right"] = (jnp.argmax(out["organ_logits"], axis=-1) == batch["organ"]).astype(jnp.float32)
        maps = ("region_attention", "question_attention")
        return predicted | {name: out[name].reshape(len(logits), -1) for name in maps if name in out}


def dynamic_weights(
    history: Mapping[str, Array], losses: Float[Array, "2"]
) -> tuple[Float[Array, "2"], dict[str, Any]]:
    """Weights of the answer and the organ loss by how fast each has fallen, and the new history.

    docs/originals/cmsa.md, section 8, `--dwa`.

    The first two steps weigh both by 1; from then on weights = 2 · softmax((last / (before + 1e-8)) / 2). The history
    keeps the weighted answer loss with the plain organ loss: the original's slip.

    Args:
      history: `last` and `before` float32[2], `steps` int32.
      losses: the sums of this step.
    """
    ratio = history["last"] / (history["before"] + 1e-8)
    weights = jnp.where(history["steps"] < 2, jnp.ones(2), 2 * jax.nn.softmax(ratio / 2))
    weights = jax.lax.stop_gradient(weights)
    total = jnp.sum(weights * losses)
    last = jax.lax.stop_gradient(jnp.stack([total, losses[1]]))
    return weights, {"last": last, "before": history["last"], "steps": history["steps"] + 1}
