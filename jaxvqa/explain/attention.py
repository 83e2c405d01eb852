"""Explanations of single answers: what the model of a run attends to, with what a person needs to judge it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa import configs
from jaxvqa.data.data_set import Split
from jaxvqa.errors import ConfigError, DataError, choose
from jaxvqa.evaluators.answers import annotators_of
from jaxvqa.explain.explanation import AttentionMap, Explanation
from jaxvqa.runs import Run
from jaxvqa.tasks import Explains, Matches, Task
from jaxvqa.tasks.predictions import Prediction
from jaxvqa.types import Config


def explain(
    run: Run,
    *,
    split: str = "",
    ids: Sequence[int] = (),
    positions: Sequence[int] = (),
    count: int = 8,
    predict: str = "explain",
) -> list[Explanation]:
    """Explains answers of a run's newest checkpoint.

    Args:
      run: the run.
      split: questions of which split; by default that of the config's main evaluation.
      ids: question ids, in the order wanted.
      positions: instead of ids, places of the questions in the split: found at once, where ids need a pass over it.
      count: without ids and positions, that many questions spread evenly over the split.
      predict: the task's predict function.

    Raises:
      CheckpointError: no checkpoint, or one that does not fit.
      ConfigError: the run's task gives no attention over regions, or has no such function.
      DataError: the data set is not built, or has no question of some id (all unknown ones are named).
    """
    task = run.task
    known = [name for name in task.predictions if name.startswith("explain")]
    if not known:
        raise ConfigError(f"The task {run.config.task!r} has no predict function 'explain', so nothing can be drawn.")
    if predict not in known:
        raise ConfigError(f"The task {run.config.task!r} explains nothing by {predict!r}{choose(predict, known)}")
    source = run.data.split(split or default_split(run.final))
    if ids:
        positions = _positions_of(ids, source)
    elif not positions:
        positions = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist()
    if outside := [p for p in positions if not 0 <= p < len(source)]:
        raise DataError(f"There are no questions at the places {outside}: the split has {len(source)}.")
    examples = source.read(positions)
    predictions = run.predict(predict, examples)
    images = _images(run, source)
    pairs = zip(examples, predictions, strict=True)
    return [explanation_of(example, prediction, task, images, blind=run.blind) for example, prediction in pairs]


def show(run: Run, *, split: str, positions: Sequence[int]) -> list[Explanation]:
    """Questions with their images alone, for answers that no single model gave: without answers, words and attention.

    Args:
      run: a run, or an ensemble.
      split: questions of which split.
      positions: their places in it.

    Raises:
      DataError: the data set is not built, or holds no such image.
    """
    source = run.data.split(split)
    images = _images(run, source)
    return [explanation_of(example, Prediction(()), None, images) for example in source.read(positions)]


def default_split(config: Config) -> str:
    """The split of the config's main evaluation, or that of training where there is none."""
    return config.evals[configs.main_evaluation(config)].split if config.evals else config.data.train_split


def _positions_of(ids: Sequence[int], source: Split) -> list[int]:
    missing, found = set(ids), {}
    for position, question in enumerate(source.all_records()):
        question_id = int(question["question_id"])
        if question_id in missing:
            found[question_id] = position
            missing.remove(question_id)
            if not missing:
                break
    if missing:
        raise DataError(
            f"{source.records.part} ({source.records.splits}) has no question with the id "
            f"{', '.join(map(str, sorted(missing)))}. Its first ids are "
            f"{', '.join(str(source.read_records([i])[0]['question_id']) for i in range(min(3, len(source))))}."
        )
    return [found[i] for i in ids]


def _images(run: Run, source: Split) -> Split | None:
    """Where the images are when the run's own image side has none: the data set's part `images`, if it is built."""
    data = run.final.data
    if data.images and "image" in source.read([0])[0]:
        return source
    try:
        part = f"{data.examples.partition('/')[0]}/images"
        return run.data.changed(images=part, image_splits="").split(source.records.splits)
    except DataError:
        return None


def explanation_of(
    example: Mapping[str, Any],
    prediction: Prediction,
    task: Task | None,
    images: Split | None = None,
    *,
    blind: bool = False,
) -> Explanation:
    """The explanation of one raw example by what the predict function `explain` gives for it.

    Args:
      example: a question with its image, or a caption.
      prediction: what is answered, and the attention.
      task: whose words and boxes the attention is over; None for no attention.
      images: where the image is, if the example does not hold it; None for nowhere.
      blind: whether the model answers without the image.
    """
    question, annotators = (
        example.get("question", ""),
        tuple(filter(None, annotators_of(example))),
    )  # a caption answers none
    if isinstance(task, Matches):  # the question is whether it belongs to the image
        question, annotators = example["caption"], ()
    words: Sequence[str] = ()
    boxes = np.zeros((0, 4), np.float32)
    if isinstance(task, Explains):
        words, boxes = task.words(example, prediction.outputs), task.boxes(example, prediction.outputs)
    image: Mapping[str, Any] = example
    if images is not None and "image" not in example:
        try:
            image = images.read_images([int(example["image_id"])])[0]
        except DataError:
            image = example
    maps = _maps(prediction.outputs, len(boxes), words, smooth=isinstance(task, Explains) and task.smooth)
    on_words = prediction.outputs.get("question_attention", np.zeros(len(words)))
    return Explanation(
        id=int(example["question_id"]),
        image_id=int(example["image_id"]),
        question=question,
        words=tuple(words),
        word_attention=np.asarray(on_words[: len(words)], np.float32),
        answers=prediction.answers,
        annotators=annotators,
        boxes=boxes if maps else boxes[:0],
        maps=maps,
        image=bytes(image.get("image", b"")),
        size=(int(image.get("image_w", 0)), int(image.get("image_h", 0))),
        blind=blind,
    )


def _maps(
    output: Mapping[str, np.ndarray], boxes: int, words: Sequence[str], *, smooth: bool
) -> tuple[AttentionMap, ...]:
    """The maps of `region_attention`: float[R], one for the answer, or float[T, R], one for each word."""
    if "region_attention" not in output or not boxes:
        return ()
    weights = np.asarray(output["region_attention"], np.float32)[..., :boxes]
    if weights.ndim == 1:
        return (AttentionMap(weights, smooth=smooth),)
    return tuple(AttentionMap(row, word, smooth) for row, word in zip(weights, words, strict=False))
