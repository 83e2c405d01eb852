"""Choosing one of a closed list of answers by the image alone, as SYSU-HCP does; a question may only rule answers out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxvqa import losses, models
from jaxvqa.data import images, transforms
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.med_text import DiseaseList
from jaxvqa.ensembles import voting
from jaxvqa.ensembles.masks import Masks, allowed_classes, modality_of, read_masks
from jaxvqa.errors import ConfigError
from jaxvqa.tasks import Assets, Loss, Task
from jaxvqa.tasks.assets import answer_rule, answers_of
from jaxvqa.tasks.predictions import Predict, best_answers
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs


@dataclass(frozen=True)
class FindModality:
    """`question` str -> `modality` int32: the place of the last mask whose name the question holds, else their number."""

    masks: Masks

    def __call__(self, example: transforms.Example) -> transforms.Example:
        """Adds the place."""
        return example | {"modality": np.int32(modality_of(example["question"], self.masks))}


RULES = {
    "answers": voting.best,
    "answers_masked": voting.best_allowed,
    "answers_masked_unless_confident": voting.allowed_unless_confident,
    "answers_masked_as_written": voting.as_written,
}
"""Predict function -> rule. With `_flip` behind its name, logits are the mean of the image's and its mirror image's."""


class ImageClassification(Task):
    """Cross-entropy over the answers, or what `config.loss` makes of it; the question is not read.

    docs/originals/sysu_hcp.md, section 9.

    `config.loss`: `mixup`, `label_smooth` and `superloss` (bool), `smoothing` (the share of the target that is spread),
    `mixup_alpha`, `mixup_off_epoch` (from when on images are no longer mixed; 0: they always are), and `flags`, which says
    how to read them (`jaxvqa.losses.choose_loss`). Examples whose answer is not a class count for nothing in loss and accuracy:
    answers outside the list, and yes and no, whose meaning is in the question.
    """

    streams = ("dropout", "mixup")

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Reads the options.

        Args:
          config: the whole config.
          assets: `answers` (list of str), and `masks`, pairs of a modality and its classes' numbers.

        Raises:
          ConfigError: an option is not known, or there are no images.
        """
        data, loss = config.data, config.loss
        if not data.images:
            raise ConfigError("config.data.images is empty; image_classification answers by the image alone.")
        self.assets, self.answer_rule, self._data = assets, answer_rule(config), data
        self.classes = DiseaseList(tuple(assets["answers"]))
        self._masks: dict[str, list[int]] = dict(assets["masks"])
        self._allowed = allowed_classes(self._masks, len(self.classes))
        self.model = models.build(config.model.to_dict(), dtype=config.dtype, num_answers=len(self.classes))
        self._mixup_alpha = float(loss.mixup_alpha) if loss.mixup else 0.0
        self._mixup_off_epoch = float(loss.mixup_off_epoch) or math.inf
        self._loss = losses.choose_loss(
            mixup=loss.mixup,
            label_smooth=loss.label_smooth,
            superloss=loss.superloss,
            flags=loss.flags,
            smoothing=loss.smoothing,
        )
        self.batch_keys: Sequence[str] = ("image", "answer_class", "mask")
        rules = RULES if self._masks else {"answers": voting.best}
        asked, choices = ("image", "modality"), self.classes.answers
        self.asks, self.reads, self.unknown = "image", "pixels", {"question": ""}
        listed = Predict(self._predict_best, ("image",), choices)
        self.predictions: dict[str, Predict] = {"explain": listed}
        for flip in (False, True):
            end = "_flip" if flip else ""
            self.predictions["logits" + end] = Predict(partial(self._predict_logits, flip=flip), ("image",), choices)
            for name, rule in rules.items():
                function = partial(self._predict_answers, rule=rule, flip=flip)
                best = listed if name + end == "answers" else None
                self.predictions[name + end] = Predict(function, asked, choices, listed=best)

    # --- assets ------------------------------------------------------------------------------------------------------------

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """Makes the list of answers and reads the masks.

        The answers are those of the file that the config names; else the data set's own `class_names`; else the answers of
        `config.data.answers.splits` that occur `min_count` times, in order of first appearance.

        Raises:
          DataError: a file cannot be read, or no answer occurs that often.
        """
        answers, file = data.config.answers, data.config.mask_file
        named = None if answers.file else data.split(answers.splits).records.metadata.get("class_names")
        classes = list(DiseaseList(tuple(named)).answers) if named else answers_of(DiseaseList, data)
        return {"answers": classes, "masks": mask_assets(file, len(classes)) if file else []}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the published sizes, `config.compile.num_answers`, without any data."""
        names = [f"answer{i}" for i in range(config.compile.num_answers)]
        return {"answers": names, "masks": [["modality", [0]]] if config.data.mask_file else []}

    # --- data --------------------------------------------------------------------------------------------------------------

    def transforms(self, *, train: bool) -> Sequence[transforms.Transform]:
        """Raw example to `image`, `answer_class`, `modality`, `id`; in training the image is cropped and mirrored."""
        data = self._data
        room = data.augment.crop_and_flip if train else 0
        size = data.image_size if train else data.eval_size or data.image_size
        return (
            images.DecodeImage({"image": (size + room, 3)}, cache_mib=data.cache_mib),
            *([images.CropAndFlip(size)] if room else []),
            transforms.ClassOfAnswer(self.classes),
            FindModality(self._masks),
            transforms.Keep(("image", "answer_class", "modality")),
        )

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image` uint8[B, S, S, 3], `answer_class` and `modality` int32[B], `mask` float32[B]."""
        size = self._data.image_size
        return {
            "image": np.zeros((batch_size, size, size, 3), np.uint8),
            "answer_class": np.zeros((batch_size,), np.int32),
            "modality": np.zeros((batch_size,), np.int32),
            "mask": np.ones((batch_size,), np.float32),
        }

    # --- model -------------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        return self.model.init({"params": key}, image=images.normalised(jnp.asarray(self.init_batch(1)["image"])))

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The loss summed over the batch; metrics `loss` and `accuracy`, of mixed images by their shares in training."""
        inputs = images.normalised(batch["image"])
        mixup = None
        if train and self._mixup_alpha:
            mixup = losses.Mixup.draw(rngs["mixup"], len(inputs), self._mixup_alpha)
            mixup = mixup.only_if(jnp.less(epoch, self._mixup_off_epoch))
            inputs = mixup.images(inputs)
        (logits, _), updates = self.model.apply(
            {"params": params, **collections},
            image=inputs,
            train=train,
            rngs=dict(rngs),
            mutable=["batch_stats"] if train else [],
        )
        targets = jnp.where(batch["mask"] > 0, batch["answer_class"], -1)

        def total(each: losses.ExampleLoss) -> Float[Array, ""]:
            """The sum over the examples that have a class; a partner without one takes its share out."""

            def known(logits: Float[Array, "B A"], targets: Int[Array, " B"]) -> Float[Array, " B"]:
                return jnp.where(targets >= 0, each(logits, jnp.maximum(targets, 0)), 0)

            return jnp.sum(mixup.loss(known, logits, targets) if mixup else known(logits, targets))

        loss = total(self._loss)
        # At least 1: a batch without any class has no gradient, not one of 0 / 0.
        count = jnp.maximum(jnp.sum(targets >= 0).astype(jnp.float32), 1)
        return loss, ({"loss": (loss, count), "accuracy": (total(_right), count)}, {**collections, **updates})

    def _logits(
        self, params: Params, collections: Collections, image: Array, *, flip: bool = False
    ) -> Float[Array, "B A"]:
        """The logits; with `flip` their mean over the image and its mirror image."""
        views = [image, image[:, :, ::-1]] if flip else [image]
        logits = [
            self.model.apply({"params": params, **collections}, image=images.normalised(view))[0] for view in views
        ]
        return sum(logits[1:], logits[0]) / len(views)

    def _predict_answers(
        self, params: Params, collections: Collections, batch: Batch, *, rule: Callable[..., Array], flip: bool = False
    ) -> Arrays:
        """`answer` int32[B, 1], -1 for none, and its `probability` float32[B, 1] among all classes, 0 for none."""
        logits = self._logits(params, collections, batch["image"], flip=flip)
        answer = rule(logits, jnp.asarray(self._allowed)[batch["modality"]])[:, None]
        probability = jnp.take_along_axis(jax.nn.softmax(logits), jnp.maximum(answer, 0), axis=-1)
        return {"answer": answer, "probability": jnp.where(answer < 0, 0, probability)}

    def _predict_best(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """The best answers int32[B, 5] and probabilities, masks aside."""
        return best_answers(jax.nn.softmax(self._logits(params, collections, batch["image"])))

    def _predict_logits(self, params: Params, collections: Collections, batch: Batch, *, flip: bool = False) -> Arrays:
        """`logits` float32[B, A]: what several models vote with (`jaxvqa.ensembles`)."""
        return {"logits": self._logits(params, collections, batch["image"], flip=flip)}


def mask_assets(path: str | Path, classes: int) -> list[list[Any]]:
    """The entry `masks` of the assets from the original's `modelmask.json`; arguments and errors of `read_masks`."""
    return [[name, sorted(ids)] for name, ids in read_masks(path, classes).items()]


def _right(logits: Float[Array, "B A"], targets: Int[Array, " B"]) -> Float[Array, " B"]:
    return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
