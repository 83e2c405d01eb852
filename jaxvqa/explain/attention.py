"""Explanations of single answers: what the model in a work directory attends to, with what a person needs to judge it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jaxtyping import Float

from jaxvqa import checkpoints, configs, fields, sharding
from jaxvqa.data.data_set import DataSet, Split
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.evaluate import restore_for_prediction
from jaxvqa.evaluators.answers import annotators_of
from jaxvqa.tasks import Task, task_with_assets
from jaxvqa.tasks.predictions import Predict

BATCH_SIZE = 16
"""Questions that are explained at once: bounds the memory, and compiles the model once."""


@dataclass(frozen=True)
class Explanation:
    """One question, its answers, and where the attention went.

    Attributes:
      id: the question's id.
      image_id: the image's id.
      question: the question as it was asked.
      words: what the model reads of it, in order; words behind `config.data.max_tokens` are left out.
      word_attention: float32[T], the weight of each word; they add up to 1.
      answers: the best answers with their probabilities, best first.
      annotators: the annotated answers; empty for a split without.
      boxes: float32[R, 4], x1, y1, x2, y2 in pixels of `size`. Empty for a model without attention over it.
      region_attention: float32[R], the weight of each box; they add up to 1.
      image: the encoded picture (PNG or JPEG), or empty when the data set holds none.
      size: width and height of the picture that the boxes lie on, in pixels; (0, 0) when nothing is known of it.
      blind: whether the model answers without the picture.
    """

    id: int
    image_id: int
    question: str
    words: tuple[str, ...]
    word_attention: Float[np.ndarray, " T"]
    answers: tuple[tuple[str, float], ...]
    annotators: tuple[str, ...]
    boxes: Float[np.ndarray, "R 4"]
    region_attention: Float[np.ndarray, " R"]
    image: bytes
    size: tuple[int, int]
    blind: bool = False


def explain(
    workdir: str | Path,
    *,
    split: str = "",
    ids: Sequence[int] = (),
    positions: Sequence[int] = (),
    count: int = 8,
) -> list[Explanation]:
    """Explains answers of the newest checkpoint in a work directory.

    Args:
      workdir: the run's folder.
      split: questions of which split; by default that of the config's main evaluation.
      ids: question ids, in the order wanted.
      positions: instead of ids, places of the questions in the split: found at once, where ids need a pass over it.
      count: without ids and positions, that many questions spread evenly over the split.

    Raises:
      CheckpointError: no checkpoint, or one that does not fit.
      ConfigError: the run's task gives no attention over regions.
      DataError: the data set is not built, or has no question of some id (all unknown ones are named).
    """
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    try:
        assets, meta = saved.read_json()
        config = run_config(Path(workdir), meta)
        task: Any = task_with_assets(config, assets)
        if "explain" not in task.predictions:
            raise ConfigError(f"The task {config.task!r} has no predict function 'explain', so nothing can be drawn.")
        source = DataSet(config.data).split(split or default_split(config))
        if ids:
            positions = _positions_of(ids, source)
        elif not positions:
            positions = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist()
        outside = [p for p in positions if not 0 <= p < len(source)]
        if outside:
            raise DataError(f"There are no questions at the places {outside}: the split has {len(source)}.")
        # One device is enough for a handful of questions, whatever mesh the run was trained on.
        mesh = sharding.make_mesh(ml_collections.ConfigDict(dict.fromkeys(sharding.AXES, 1)), jax.local_devices()[:1])
        with jax.set_mesh(mesh):
            state = restore_for_prediction(saved, config, task, mesh)
            predict: Predict = task.predictions["explain"]
            pictures = _pictures(config, source)
            blind = bool(config.data.get("blind")) or not (config.data.images or config.data.get("question_list"))
            size = min(BATCH_SIZE, len(positions))
            explanations = []
            for start in range(0, len(positions), size):
                examples = source.read(positions[start : start + size])
                batch = _batch(task, examples, size)
                output = jax.device_get(predict.jitted(*state.eval_variables, batch))
                for i, example in enumerate(examples):
                    mine = {key: np.asarray(value[i]) for key, value in output.items()}
                    explanations.append(_explanation(example, mine, task, pictures, blind=blind))
            return explanations
    finally:
        saved.close()


def show(config: ml_collections.ConfigDict, *, split: str, positions: Sequence[int]) -> list[Explanation]:
    """Questions with their pictures alone, for answers that no single model gave: without answers, words and attention.

    Args:
      config: of a run, or of runs that answer together.
      split: questions of which split.
      positions: their places in it.

    Raises:
      DataError: the data set is not built, or holds no such picture.
    """
    source = DataSet(config.data).split(split)
    where = _pictures(config, source)
    return [_explanation(example, {}, None, where) for example in source.read(positions)]


def run_config(workdir: Path, meta: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config of a run: config.json, which says where its data lie now; a converted folder has it in `meta` alone."""
    file = workdir / "config.json"
    return fields.final(configs.read(file) if file.exists() else configs.from_json(meta["config"]))


def default_split(config: ml_collections.ConfigDict) -> str:
    """The split of the config's main evaluation, or that of training where there is none."""
    return config.evals[configs.main_evaluation(config)].split if config.evals else config.data.train_split


def question_spans(
    question: str, words: Sequence[str], word_attention: Float[np.ndarray, " T"]
) -> list[tuple[str, float | None]]:
    """Cuts a question into pieces of text, each with the weight of the word in it.

    Joined, the pieces are the question again, with its punctuation and capitals. Pieces between words, and words that the
    model did not read, have None.
    """
    spans: list[tuple[str, float | None]] = []
    # Tokenisers drop, keep or split at punctuation, each in its own way; letters and digits they leave in their order.
    waiting = [
        ("".join(filter(str.isalnum, word.lower())), float(w)) for word, w in zip(words, word_attention, strict=True)
    ]
    for piece in filter(None, re.split(r"([\s/-]+)", question)):
        letters, weight = "".join(filter(str.isalnum, piece.lower())), None
        while letters and waiting:
            word, share = waiting[0]
            if letters.startswith(word):
                letters = letters[len(word) :]
                waiting.pop(0)
            elif word.startswith(letters):  # a word of two pieces, as "x-ray": both carry its weight
                waiting[0] = word[len(letters) :], share
                letters = ""
            else:
                waiting.clear()  # the model reads something else from here on
                break
            weight = (weight or 0.0) + share
        spans.append((piece, weight))
    return spans


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


def _batch(task: Task, examples: Sequence[Mapping[str, Any]], size: int) -> dict[str, Any]:
    """What the model reads of raw examples; filled up to `size`, so that all batches share one compilation."""
    ready = []
    for raw in examples:
        example = dict(raw) | {"draw": (0, int(raw["question_id"]))}  # for pictures of noise
        for transform in task.transforms(train=False):
            example = transform(example)
        ready.append(example | {"mask": np.float32(1)})
    ready += ready[:1] * (size - len(ready))
    return {key: np.stack([example[key] for example in ready]) for key in task.predictions["explain"].keys}


def _pictures(config: ml_collections.ConfigDict, source: Split) -> Split | None:
    """Where the pictures are when the run's own image side has none: the data set's part `images`, if it is built."""
    part = f"{config.data.examples.partition('/')[0]}/images"
    if config.data.images and "image" in source.read([0])[0]:
        return source
    try:
        return DataSet(config.data).changed(images=part, image_splits="").split(source.records.splits)
    except DataError:
        return None


def _explanation(
    example: Mapping[str, Any],
    output: Mapping[str, np.ndarray],
    task: Any,
    pictures: Split | None,
    *,
    blind: bool = False,
) -> Explanation:
    question = example.get("question", "")  # a caption answers none
    words = task.words(question) if task else []
    boxes = task.boxes(example) if task else np.zeros((0, 4), np.float32)
    image: Mapping[str, Any] = example
    if pictures is not None and "image" not in example:
        try:
            image = pictures.read_images([int(example["image_id"])])[0]
        except DataError:
            image = example
    return Explanation(
        id=int(example["question_id"]),
        image_id=int(example["image_id"]),
        question=question,
        words=tuple(words),
        word_attention=np.asarray(output.get("question_attention", np.zeros(len(words)))[: len(words)], np.float32),
        answers=task.predictions["explain"].prediction(output).answers if task else (),
        annotators=tuple(annotators_of(example)),
        boxes=boxes if "region_attention" in output else boxes[:0],
        region_attention=np.asarray(output.get("region_attention", ())[: len(boxes)], np.float32),
        image=bytes(image.get("image", b"")),
        size=(int(image.get("image_w", 0)), int(image.get("image_h", 0))),
        blind=blind,
    )
