"""Tasks: what a system learns and predicts from a batch. The loop knows a task only by this protocol.

A new system adds a module here (or uses one that is there) and a row to `TASKS`; one of a user's own package is named by its
place, as "package.module:Name".
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from jaxvqa import paths
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.transforms import Transform
from jaxvqa.named import Named
from jaxvqa.state import Kinds, TrainState
from jaxvqa.tasks.predictions import Predict
from jaxvqa.types import Batch, Collections, Params, Rngs

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Metrics by name, each a (sum, count): merged by adding, over microbatches, steps, devices and hosts."""

Loss = tuple[Float[Array, ""], tuple[Metrics, Collections]]
"""What a task's loss gives: the loss of a batch, its metrics, and the updated other collections."""

Assets = dict[str, Any]
"""JSON values that turn text into a model's numbers and back: vocabulary, answer list. Saved in every checkpoint."""

Starts = Mapping[str, np.ndarray]
"""What parameters start from instead of random numbers, by path, such as word vectors; read where a run begins."""


def started(variables: Mapping[str, Any], starts: Starts) -> dict[str, Any]:
    """Fresh variables whose parameters at these paths have these values."""
    params = paths.flatten(variables["params"])
    params |= {path: jnp.asarray(values, params[path].dtype) for path, values in starts.items()}
    return {**variables, "params": paths.nest(params)}


@runtime_checkable
class Task(Protocol):
    """How a system learns from a batch.

    Attributes:
      assets: see `Assets`.
      batch_keys: the entries of a batch that the loss reads.
      predictions: the predict functions by name.
      streams: the random streams that the loss draws from in training. Each has a key of its own in every step.
      kinds: the kind of each collection that a model of the task may have (`jaxvqa.state.Kind`), as the class knows it.
      additive: whether the loss of a batch is the sum of those of its parts, so that microbatches are possible. It is not
        where examples are compared with one another, means are added to sums, or memory is written. Batch statistics do
        not count: each part is normalised by its own.
      starts: see `Starts`; empty where a run goes on.
    """

    assets: Assets
    batch_keys: Sequence[str]
    predictions: Mapping[str, Predict]
    streams: Sequence[str] = ("dropout",)
    kinds: ClassVar[Kinds] = {"batch_stats": "statistics"}
    additive: bool = True
    starts: Starts = MappingProxyType({})

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """The assets of a run that begins, from its data or from the files that the config names."""
        raise NotImplementedError

    @staticmethod
    def make_starts(config: ml_collections.ConfigDict, assets: Assets, data: DataSet) -> Starts:
        """What the parameters of a run that begins start from; the only place where `config.data.word_vectors` is read."""
        return {}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the full size, as `config.compile` says, without any data."""
        raise NotImplementedError

    def transforms(self, *, train: bool) -> Sequence[Transform]:
        """The transforms from a source's raw example to an example of the batch; in training they may draw at random."""

    def init_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """An all-zero batch of the right shapes and dtypes: to trace with, and to initialise from."""

    def init(self, key: Key[Array, ""]) -> Collections:
        """Fresh variables: "params" and the model's other collections."""

    def before(self, state: TrainState) -> TrainState:
        """The state that a step's loss sees, made of the one before the step: where momentum encoders move, say."""
        return state

    def loss(
        self, params: Params, collections: Collections, batch: Batch, rngs: Rngs, *, train: bool, epoch: ArrayLike = 0.0
    ) -> Loss:
        """The loss of a batch, summed over its real examples, with metrics and the updated other collections.

        Args:
          params: the parameters.
          collections: the model's other collections.
          batch: what `batch_keys` names.
          rngs: this step's keys of `streams`; empty without `train`.
          train: whether to train, or to measure.
          epoch: how many epochs are done, with their fraction: float32 scalar, for what changes during training.
        """


@runtime_checkable
class Answers(Protocol):
    """What a task has besides whose predictions are answers.

    Attributes:
      answer_rule: how an answer is scored, one of `jaxvqa.data.answers.ANSWER_RULES`.
    """

    answer_rule: str


@runtime_checkable
class Asks(Protocol):
    """What a task has besides that answers about images of a user's own (`jaxvqa.ask`).

    Attributes:
      asks: what it answers: a "question"; what an "image" shows, where a question may come with it; or it gives a
        "description" of the image.
      reads: what it reads of an image: "pixels"; "regions", which have to come with it; "nothing", as a question-only baseline.
      unknown: entries of a raw example that its transforms read and its answers do not depend on, with values to stand there.
    """

    asks: str
    reads: str
    unknown: Mapping[str, Any]


@runtime_checkable
class Explains(Protocol):
    """What a task has besides whose prediction `explain` gives answers and attention maps.

    The maps are `question_attention` float32[B, T] over `words` and `region_attention` over `boxes`: float32[B, R], or
    float32[B, T, R], one for each word. A task without one of them gives no such map, and nothing for it to lie on. Functions
    whose names begin with `explain_` give the same in another way.

    Attributes:
      smooth: whether the boxes are the cells of a square grid, whose maps are drawn without edges.
    """

    smooth: bool

    def words(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> list[str]:
        """The words that maps are of: those of an example that the model reads, or those that it writes."""

    def boxes(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Float[np.ndarray, "R 4"]:
        """The boxes, x1, y1, x2, y2 in pixels of the image; [0, 4] for a model that reads no image."""


@runtime_checkable
class Matches(Protocol):
    """What a task has besides that compares images with texts (`jaxvqa.evaluators.pairs`).

    Its predict functions are, with E the width of the shared space:

    - `image_features`: `image_states` float[B, N, D], what matching reads of an image, and `image_feature` float32[B, E] of
      length 1.
    - `text_features`: of `text` int32[B, T] and `text_mask` bool or int[B, T], `text_feature` float32[B, E] of length 1.
    - `match`: of `image_states` [B, N, D] and what else its keys name of an image's features, and of `text` and `text_mask`
      [B, P, T], P texts beside each image, `match_logits` float32[B, P, 2]; the second is that of a match.
    """

    def text_transforms(self, max_tokens: int = 0) -> Sequence[Transform]:
        """The transforms from an example's own record, without its image, to `text` and `text_mask`, for evaluation.

        `max_tokens` is T; 0: as in training.
        """


TASKS = {
    "answer_classification": "jaxvqa.tasks.answer_classification:AnswerClassification",
    "radiology_vqa": "jaxvqa.tasks.radiology_vqa:RadiologyVqa",
    "image_classification": "jaxvqa.tasks.image_classification:ImageClassification",
    "image_captioning": "jaxvqa.tasks.image_captioning:ImageCaptioning",
    "answer_writing": "jaxvqa.tasks.answer_writing:AnswerWriting",
    "image_pairs": "jaxvqa.tasks.image_pairs:ImagePairs",
    "image_text": "jaxvqa.tasks.image_text:ImageText",
    "text_generation": "jaxvqa.tasks.text_generation:TextGeneration",
    "multi_task_pretraining": "jaxvqa.tasks.multi_task_pretraining:MultiTaskPretraining",
}


METHODS = tuple(name for name, value in vars(Task).items() if not name.startswith("_") and hasattr(value, "__get__"))

NAMED = Named(
    "a task",
    TASKS,
    "a class with the methods of jaxvqa.tasks.Task",
    lambda found: isinstance(found, type) and all(callable(getattr(found, name, None)) for name in METHODS),
)
"""What `config.task` may say."""


def task_class(name: str) -> Any:
    """The task of that name, or of a user's own at "package.module:Name".

    Raises:
      ConfigError: names the known ones, or says what is wrong with the user's own.
    """
    return NAMED.get(name, "config.task")


def make_task(config: ml_collections.ConfigDict, data: DataSet) -> Task:
    """Builds the task of a config for a run that begins: with assets and starting parameters made from the data."""
    cls = task_class(config.task)
    assets = cls.make_assets(config, data)
    task = cls(config, assets)
    task.starts = cls.make_starts(config, assets, data)
    return task


def task_with_assets(config: ml_collections.ConfigDict, assets: Assets) -> Task:
    """Builds the task of a config with the assets of a checkpoint."""
    return task_class(config.task)(config, assets)


def task_without_data(config: ml_collections.ConfigDict) -> Task:
    """Builds the task of a config at its full size with stand-in assets, to trace or compile it without any data."""
    cls = task_class(config.task)
    return cls(config, cls.stand_in_assets(config))


def abstract_batch(task: Task, batch_size: int, keys: Sequence[str] = ()) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a batch as the devices get it: of `keys`, or of what the loss reads."""
    batch = task.init_batch(batch_size)
    return {key: jax.ShapeDtypeStruct(batch[key].shape, batch[key].dtype) for key in keys or task.batch_keys}
