"""Builder of easy-VQA from the installed package; README.md beside it describes the data."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from jaxvqa.data import pictures
from jaxvqa.data.region_features import FEATURE_WIDTH, region_features
from jaxvqa.errors import DataError, install
from jaxvqa.inputs import read_json
from tfds_builders.checks import TEXT, checked_rows, error_of, picture_examples, read_bytes, whole
from tfds_builders.manual import ManualFile, find_file

_QUESTIONS = {"train": 38_575, "test": 9_673}
_IMAGES = {"train": 4_000, "test": 1_000}

# The package numbers pictures and questions from 0 in both splits.
_FIRST_IMAGE = {"train": 0, "test": 100_000}
_FIRST_QUESTION = {"train": 0, "test": 1_000_000}

_IMAGE_SIZE = 64
_WINDOWS = ((32, 3), (20, 4))  # side in pixels, windows in a row

_AGAIN = "Install the package again: pip install --force-reinstall easy-vqa"

_SHAPES = frozenset({"circle", "rectangle", "triangle"})
_YES_NO = frozenset({"yes", "no"})


class Builder(tfds.core.GeneratorBasedBuilder):
    """easy-VQA: `questions`, and `images` with grid features."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions and their answers."),
        tfds.core.BuilderConfig(name="images", description="Pictures and features of a grid of regions."),
    ]
    EXPECTED_COUNTS = {"questions": _QUESTIONS, "images": _IMAGES}  # noqa: RUF012

    workers = 1
    """Threads that read pictures; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns nothing, as the package is the whole download; fails before a build starts if it is not installed."""
        package_data()
        return []

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Text(), tfds.features.Scalar
        features: dict[str, dict[str, Any]] = {
            "questions": {
                "question_id": number(np.int64),
                "image_id": number(np.int64),
                "question": text,
                "answers": tfds.features.Sequence(text),
                "multiple_choice_answer": text,
                "question_type": text,
                "answer_type": text,
            },
            "images": {
                "image_id": number(np.int64),
                "image": tfds.features.Image(shape=(_IMAGE_SIZE, _IMAGE_SIZE, 3), encoding_format="png"),
                "image_w": number(np.int32),
                "image_h": number(np.int32),
                "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32, encoding="bytes"),
                "features": tfds.features.Tensor(shape=(None, FEATURE_WIDTH), dtype=np.float16, encoding="bytes"),
            },
        }
        config = self.builder_config.name
        ids = {split: list(range(first, first + _IMAGES[split])) for split, first in _FIRST_IMAGE.items()}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features[config]),
            homepage="https://github.com/vzhou842/easy-VQA",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(image_ids=ids) if config == "images" else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = package_data()
        if self.builder_config.name == "images":
            examples = image_examples(folder, self.workers)
        else:
            examples = {split: question_examples(folder / split, split) for split in _QUESTIONS}
        return {split: self._generate_examples(records) for split, records in examples.items()}

    def _generate_examples(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(examples)


def package_data() -> Path:
    """Returns the data folder of the installed package `easy-vqa`.

    Raises:
        DataError: the package is not installed, or holds no data.
    """
    # Only located, not imported: its code opens files that it does not close.
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise DataError(
            f"easy_vqa comes from the PyPI package easy-vqa (22 MB), which is not installed: {install('demo')}"
        )
    folder = Path(spec.origin).parent / "data"
    if not folder.is_dir():
        raise DataError(f"The package easy-vqa has no folder {folder}. Install it again: pip install easy-vqa.")
    return folder


def question_examples(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yields the questions of a split in the package's order."""
    path, faults = folder / "questions.json", list[str]()
    rows = read_json(path, "a list of [question, answer, picture], as the package has it")
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of [question, answer, picture]. {_AGAIN}")
    fields = {"question": TEXT, "answer": TEXT, "image": whole(_IMAGES[split] - 1)}
    checked = checked_rows(rows, fields, str(path), faults)
    if faults:
        raise error_of(f"easy_vqa: {len(faults)} fault(s) in the package's files", faults, _AGAIN)
    for i, row in enumerate(checked):
        answer = row["answer"]
        yield {
            "question_id": _FIRST_QUESTION[split] + i,
            "image_id": _FIRST_IMAGE[split] + row["image"],
            "question": row["question"],
            "answers": [answer],
            "multiple_choice_answer": answer,
            "question_type": _question_type(answer),
            "answer_type": "yes/no" if answer in _YES_NO else "other",
        }


def image_examples(folder: Path, workers: int = 1) -> dict[str, Iterator[dict[str, Any]]]:
    """Returns the pictures of each split, by number, with the features of `grid_regions`.

    Raises:
        DataError: when read to the end: pictures are missing or damaged; names all of them.
    """
    boxes = grid_regions()

    def make(name: str, numbered: tuple[int, Path]) -> dict[str, Any]:
        image_id, path = numbered
        content = read_bytes(find_file(path))
        try:
            pixels = np.asarray(pictures.decode(content, 3))
        except DataError as error:
            raise DataError(f"{name} {error}") from error
        if pixels.shape[:2] != (_IMAGE_SIZE, _IMAGE_SIZE):
            raise DataError(f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {_IMAGE_SIZE} a side")
        return {
            "image_id": image_id,
            "image": content,
            "image_w": pixels.shape[1],
            "image_h": pixels.shape[0],
            "boxes": boxes,
            "features": region_features(pixels, boxes),
        }

    def paths(split: str) -> Iterator[tuple[str, tuple[int, Path]]]:
        for number in range(_IMAGES[split]):
            path = folder / split / "images" / f"{number}.png"
            yield str(path), (_FIRST_IMAGE[split] + number, path)

    return picture_examples("easy_vqa", {split: paths(split) for split in _IMAGES}, make, _AGAIN, workers)


def grid_regions() -> Float[np.ndarray, "R 4"]:
    """Returns the regions of every picture, float32 [26, 4]: the whole picture, then windows of two sizes that overlap.

    Shapes are told apart by their corners and edges, so that small windows see more: a small classifier on 4 x 4 windows of
    20 and 3 x 3 of 32 pixels finds 98.6 % of the shapes, on 3 x 3 of 32 alone 92 %, on 7 x 7 of 16 pixels 99.1 %.
    """
    boxes: list[list[float]] = [[0, 0, _IMAGE_SIZE, _IMAGE_SIZE]]
    for side, count in _WINDOWS:
        starts = np.linspace(0, _IMAGE_SIZE - side, count)
        boxes += [[x, y, x + side, y + side] for y in starts for x in starts]
    return np.array(boxes, np.float32)


def _question_type(answer: str) -> str:
    """Returns what a question asks for: "yes/no", "shape" or "color"."""
    if answer in _YES_NO:
        return "yes/no"
    return "shape" if answer in _SHAPES else "color"
