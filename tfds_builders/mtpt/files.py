"""The original's files: lists of images with masks or labels, and lists of questions (CMSA spec section 10)."""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxvqa.errors import DataError
from tfds_builders.manual import ManualFile
from tfds_builders.vqa_rad import release

ABDOMEN_CLASSES = (
    *("background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland"),
)
"""Names of a mask's values."""

SPLITS = {"train": "trainset", "test": "valset"}
"""Split -> the part of a list's name."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One organ's images.

    Attributes:
      lists: The lists' names are LISTS_trainset.txt and LISTS_valset.txt.
      folder: Where the images are; the lists' paths start there.
      columns: What a line of a list holds.
      classes: Names of the labels, or of a mask's values.
      homes: Where the images come from.
    """

    lists: str
    folder: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    homes: str


IMAGE_SETS = {
    "abdomen": ImageSet(
        "abdomen",
        "Abdomen",
        ("image", "mask"),
        ABDOMEN_CLASSES,
        "https://www.synapse.org/#!Synapse:syn3193805 (slices as 8-bit PNG, with masks of the same size)",
    ),
    "brain": ImageSet(
        "brain_tumor",
        "brain_tumor_dataset",
        ("image", "mask", "label"),
        ("meningioma", "glioma", "pituitary"),
        "https://doi.org/10.6084/m9.figshare.1512427 (slices as 8-bit PNG)",
    ),
    "chest": ImageSet(
        "chest_xray", "chest_xray", ("image", "label"), ("normal", "pneumonia"), "https://doi.org/10.17632/rscbjbr9sj"
    ),
}

ORGANS = {"abdomen": "ABD", "brain": "HEAD", "chest": "CHEST"}
"""Image set -> VQA-RAD's name of the organ."""


def list_file(organ: str, split: str) -> ManualFile:
    """Returns where the list of an organ's images lies."""
    images = IMAGE_SETS[organ]
    name = f"{images.lists}_{SPLITS[split]}.txt"
    note = f"A list that you write: one image a line, {' '.join(images.columns)}, paths below {images.folder}/."
    return ManualFile((name, f"data/{name}"), images.homes, note)


def image_folder(organ: str) -> ManualFile:
    """Returns where the images of an organ lie."""
    return ManualFile((IMAGE_SETS[organ].folder,), IMAGE_SETS[organ].homes)


def image_examples(manual_dir: Path, organ: str, split: str, first: int) -> Iterator[dict[str, Any]]:
    """Yields an organ's images in the order of the list, as the builder stores them.

    Args:
      manual_dir: Folder of the files.
      organ: One of `IMAGE_SETS`.
      split: One of `SPLITS`.
      first: Number of the first image.

    Raises:
      DataError: A line, an image, a mask or a label is not as it should be; the message names it.
    """
    images = IMAGE_SETS[organ]
    folder = manual_dir / images.folder
    for number, (place, line) in enumerate(read_list(manual_dir, organ, split), start=first):
        path = folder / line["image"]
        content, size = _read_picture(path, place)
        example: dict[str, Any] = {"question_id": number, "image_id": number, "image_name": line["image"]}
        example["image"] = content
        if organ == "abdomen":
            example["mask"] = _read_mask(folder / line["mask"], place, size, len(images.classes))
        else:
            example["label"] = int(line["label"])
        yield example


def read_list(manual_dir: Path, organ: str, split: str) -> list[tuple[str, dict[str, str]]]:
    """Returns (where it stands, {column: text}) of each line of a list.

    Raises:
      DataError: The list is empty, or a line has other columns or a label that is none.
    """
    images = IMAGE_SETS[organ]
    path = list_file(organ, split).require(manual_dir)
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        place, parts = f"{path}, line {number}", text.split()
        if len(parts) != len(images.columns):
            raise DataError(f"{place}: {text!r}; expected {' '.join(images.columns)}, separated by blanks.")
        line = dict(zip(images.columns, parts, strict=True))
        if "label" in line and line["label"] not in map(str, range(len(images.classes))):
            names = ", ".join(f"{i} {name}" for i, name in enumerate(images.classes))
            raise DataError(f"{place}: label {line['label']!r}; expected one of {names}.")
        lines.append((place, line))
    if not lines:
        raise DataError(f"{path} is empty.")
    return lines


def _read_picture(path: Path, place: str) -> tuple[bytes, tuple[int, int]]:
    """Returns a PNG's or JPEG's bytes as they are, and its width and height."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            kind, size = picture.format, picture.size
    except OSError as error:
        raise DataError(f"{place}: {path} cannot be read as a picture ({error}).") from error
    if kind not in ("PNG", "JPEG"):
        raise DataError(f"{place}: {path} is a {kind} file; expected PNG or JPEG.")
    return content, size


def _read_mask(path: Path, place: str, size: tuple[int, int], classes: int) -> bytes:
    """Returns a mask as a grey PNG of its values, after checking size and values."""
    content, mask_size = _read_picture(path, place)
    with Image.open(io.BytesIO(content)) as picture:
        kind, mode, values = picture.format, picture.mode, np.asarray(picture)
    if kind != "PNG" or mode not in ("L", "P") or mask_size != size or values.max() >= classes:
        raise DataError(
            f"{place}: {path} is a {kind} file of mode {mode}, {mask_size} pixels and values up to {values.max()}; expected "
            f"an 8-bit PNG of one channel, {size} pixels and values up to {classes - 1}."
        )
    return content if mode == "L" else png(values)


def png(values: np.ndarray) -> bytes:
    """Returns uint8 [H, W] as a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


# The questions.


def read_questions(manual_dir: Path | None, download_dir: Path, organ: str, split: str) -> list[tuple[str, int]]:
    """Returns (question, whether it fits the organ) of a split.

    They are read from the original's ORGAN_SPLIT.json if that is in `manual_dir`, else made from VQA-RAD's release by the
    same rule.

    Args:
      manual_dir: Folder of the files, if there is one.
      download_dir: Folder to which VQA-RAD's rows are downloaded if need be.
      organ: One of `ORGANS`.
      split: "train" or "test".

    Raises:
      DataError: The file has another form, or VQA-RAD's rows are not to be had.
    """
    name = f"{organ}_{split}.json"
    path = ManualFile((name, f"data/{name}"), "").find(manual_dir) if manual_dir else None
    if path:
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            questions = [(str(entry["question"]), int(entry["label"])) for entry in content]
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"{path}: expected a list of {{question, label}} ({error!r}).") from error
        if not questions or not {label for _, label in questions} <= {0, 1}:
            raise DataError(f"{path}: expected questions with labels 0 and 1.")
        return questions
    nested = manual_dir / "vqa_rad" if manual_dir else None
    there = nested if nested and (nested / release.ROWS_FILE).is_file() else manual_dir
    rows = release.read_rows(release.rows_path(there, download_dir))
    records = [record for of, record in release.entries(rows) if of == split]
    return fitting_questions(((record["question"], record["organ"]) for record in records), ORGANS[organ])


def fitting_questions(asked: Iterable[tuple[str, str]], organ: str) -> list[tuple[str, int]]:
    """Returns each distinct question once, in order of first appearance, with 1 if it is asked about the organ, else 0.

    Args:
      asked: (question, organ of its image) of all questions of a split.
      organ: The organ.
    """
    fits: dict[str, int] = {}
    for question, of in asked:
        fits[question] = int(fits.get(question, 0) or of == organ)
    return list(fits.items())


def question_examples(questions: Sequence[tuple[str, int]], first: int) -> Iterator[dict[str, Any]]:
    """Yields the records of a list of questions, numbered from `first`."""
    for number, (question, label) in enumerate(questions, start=first):
        yield {"question_id": number, "question": question, "label": label}
