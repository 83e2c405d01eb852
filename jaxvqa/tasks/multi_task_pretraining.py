"""Pre-training of one of CMSA's image branches: a task of its images, and whether a question fits them.

docs/originals/cmsa.md, section 10.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Key

from jaxvqa import models
from jaxvqa.data import images, transforms
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.rad_text import RadVocabulary
from jaxvqa.errors import DataError
from jaxvqa.metrics.segmentation import mean_iou
from jaxvqa.tasks import Assets, Loss, Metrics, Task
from jaxvqa.tasks.predictions import Predict
from jaxvqa.types import Arrays, Batch, Collections, Params, Rngs

SPLITS = {True: "train", False: "test"}
"""Whether in training -> split of the question list that is drawn from."""


class DrawQuestion:
    """Adds a random `question` of a list, int32[T], and its label `fits`, whatever the image."""

    def __init__(self, questions: Sequence[Sequence[Any]], vocabulary: RadVocabulary, max_tokens: int):
        """Args: pairs of a question and its label, 0 or 1; the vocabulary and length to encode them with."""
        self._encoded = np.stack([vocabulary.encode(question, max_tokens) for question, _ in questions])
        self._labels = np.asarray([label for _, label in questions], np.int32)

    def __call__(self, example: transforms.Example) -> transforms.Example:
        """Draws by the example's `draw`: another question each time that an image is read."""
        i = transforms.random_of(example, "question").integers(len(self._labels))
        return example | {"question": self._encoded[i], "fits": self._labels[i]}


class MultiTaskPretraining(Task):
    """Cross-entropy of the image task (the mean over pixels, or of the image's class) and of the compatibility of a question.

    Both are summed over the examples, times `config.loss.image` and `config.loss.compatibility`.
    """

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Args: the whole config, and assets with `vocabulary`, `class_names`, and `questions`, {split: [[text, label]]}."""
        self.assets = assets
        self._data, self._weights = config.data, config.loss
        self.vocabulary = RadVocabulary(tuple(assets["vocabulary"]))
        self._segments = config.model.task == "segment"
        self._target = "segmentation" if self._segments else "label"
        self.batch_keys: Sequence[str] = ("image", self._target, "question", "fits", "mask")
        self.model = models.build(
            config.model.to_dict(),
            dtype=config.dtype,
            vocab_size=len(self.vocabulary),
            classes=len(assets["class_names"]),
        )
        self.predictions = {"scores": Predict(self._predict_scores, ("image", self._target, "question", "fits"))}

    # --- assets ------------------------------------------------------------------------------------------------------------

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """Reads the class names of the images, and the question lists of `config.data.question_list`."""
        class_names = data.split(data.config.train_split).records.metadata.get("class_names")
        if not class_names:
            raise DataError(f"{data.config.examples} names no classes in its metadata; build it anew with --overwrite.")
        questions = {}
        for split in SPLITS.values():
            records = data.records(data.config.question_list, split)
            questions[split] = [[r["question"], int(r["label"])] for r in records.read(range(len(records)))]
        words = RadVocabulary.build(question for question, _ in questions["train"])
        return {"vocabulary": list(words.tokens), "class_names": list(class_names), "questions": questions}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the published sizes, `config.compile.vocab_size` and `.num_classes`, without any data."""
        return {
            "vocabulary": [f"word{i}" for i in range(config.compile.vocab_size)],
            "class_names": [f"class{i}" for i in range(config.compile.num_classes)],
            "questions": {split: [["word0", 0]] for split in SPLITS.values()},
        }

    # --- data --------------------------------------------------------------------------------------------------------------

    def transforms(self, *, train: bool) -> Sequence[transforms.Transform]:
        """Raw example to `image`, `segmentation` or `label`, `question`, `fits`, `id`; cropped and turned in training."""
        data = self._data
        augment = train and any(data.augment.values())
        size = data.image_size + (data.augment.crop if augment else 0)
        steps: list[transforms.Transform] = [images.DecodeImage({"image": (size, 3)}, cache_mib=data.cache_mib)]
        if self._segments:
            steps.append(
                images.DecodeImage({"segmentation": (size, 1)}, source="mask", cache_mib=data.cache_mib, nearest=True)
            )
        else:
            steps.append(transforms.Label("label", tuple(range(len(self.assets["class_names"])))))
        if augment:
            label_map = "segmentation" if self._segments else ""
            steps.append(images.CropAndRotate(data.image_size, data.augment.degrees, label_map=label_map))
            steps.append(images.Brightness(data.augment.brightness))
        questions = self.assets["questions"][SPLITS[train]]
        return (
            *steps,
            DrawQuestion(questions, self.vocabulary, data.max_tokens),
            transforms.Keep(("image", self._target, "question", "fits")),
        )

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """`image` uint8[B, S, S, 3], `segmentation` uint8[B, S, S, 1] or `label` int32[B], `question` int32[B, T], `fits`."""
        size = self._data.image_size
        return {
            "image": np.zeros((batch_size, size, size, 3), np.uint8),
            **(
                {"segmentation": np.zeros((batch_size, size, size, 1), np.uint8)}
                if self._segments
                else {"label": np.zeros((batch_size,), np.int32)}
            ),
            "question": np.zeros((batch_size, self._data.max_tokens), np.int32),
            "fits": np.zeros((batch_size,), np.int32),
            "mask": np.ones((batch_size,), np.float32),
        }

    # --- model -------------------------------------------------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables."""
        image, question = (jnp.asarray(self.init_batch(1)[key]) for key in ("image", "question"))
        return self.model.init({"params": key}, image=images.normalised(image), question=question)

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The weighted sum of both losses, and metrics.

        These are `loss` and its parts (an example), `accuracy` of the pixels' classes or the image's, and `compatibility`,
        the share of questions that are judged rightly.
        """
        (image_logits, fits_logits), updates = self._apply(params, collections, batch, train=train, rngs=dict(rngs))
        mask = batch["mask"]
        count = jnp.sum(mask)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        target = batch[self._target]
        target = (target[..., 0] if self._segments else target).astype(jnp.int32)

        def total(of_each: Array) -> Array:
            """The sum over the examples of each one's mean."""
            return jnp.sum(of_each.reshape(of_each.shape[0], -1).mean(axis=1) * mask)

        image, fits = total(cross_entropy(image_logits, target)), total(cross_entropy(fits_logits, batch["fits"]))
        loss = self._weights.image * image + self._weights.compatibility * fits
        metrics: Metrics = {
            "loss": (loss, count),
            "image_loss": (image, count),
            "compatibility_loss": (fits, count),
            "accuracy": (total(jnp.argmax(image_logits, axis=-1) == target), count),
            "compatibility": (total(jnp.argmax(fits_logits, axis=-1) == batch["fits"]), count),
        }
        return loss, (metrics, {**collections, **updates})

    def _apply(self, params: Params, collections: Collections, batch: Batch, *, train: bool, **options: Any) -> Any:
        (logits, _), updates = self.model.apply(
            {"params": params, **collections},
            image=images.normalised(batch["image"]),
            question=batch["question"],
            train=train,
            mutable=["batch_stats"] if train else [],
            **options,
        )
        return logits, updates

    def _predict_scores(self, params: Params, collections: Collections, batch: Batch) -> Arrays:
        """Each example's score in [0, 1]: `iou` of a segmentation or `accuracy` of a class, and `compatibility`."""
        (image_logits, fits_logits), _ = self._apply(params, collections, batch, train=False)
        chosen = jnp.argmax(image_logits, axis=-1)
        if self._segments:
            scores = {"iou": mean_iou(chosen, batch["segmentation"][..., 0], len(self.assets["class_names"]))}
        else:
            scores = {"accuracy": (chosen == batch["label"]).astype(jnp.float32)}
        fits = jnp.argmax(fits_logits, axis=-1) == batch["fits"]
        return scores | {"compatibility": fits.astype(jnp.float32)}
