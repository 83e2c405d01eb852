"""The original's files: lists of images with masks or labels, and lists of questions (docs/originals/cmsa.md, section 10)."""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from jaxvqa.data.pictures import Facts, decode_labels
from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json, read_text
from tfds_builders.checks import TEXT, checked_rows, error_of, one_of, picture_examples, read_bytes, whole_picture
from tfds_builders.manual import ManualFile, find_file
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


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a list.

    Attributes:
      number: The record's, over both splits.
      place: List and line, for messages.
      columns: Column -> text.
    """

    number: int
    place: str
    columns: Mapping[str, str]


def image_examples(
    manual_dir: Path, organ: str, splits: Mapping[str, Sequence[Line]], workers: int
) -> dict[str, Iterator[dict[str, Any]]]:
    """Returns an organ's images by split in the order of the lists, as the builder stores them.

    Args:
      manual_dir: Folder of the files.
      organ: One of `IMAGE_SETS`.
      splits: What `read_lists` returned.
      workers: Threads that read.

    Raises:
      DataError: When read to the end: images or masks are not as they should be; names all of them.
    """
    images = IMAGE_SETS[organ]
    folder = manual_dir / images.folder

    def make(place: str, line: Line) -> dict[str, Any]:
        columns = line.columns
        path = find_file(folder / columns["image"])
        content = read_bytes(path)
        facts = whole_picture(content, f"{place}: {path}", ("PNG", "JPEG"))
        example: dict[str, Any] = {"question_id": line.number, "image_id": line.number, "image_name": columns["image"]}
        example["image"] = content
        if organ == "abdomen":
            example["mask"] = _read_mask(folder / columns["mask"], place, facts, len(images.classes))
        else:
            example["label"] = int(columns["label"])
        return example

    def make_named(place: str, line: Line) -> dict[str, Any]:
        try:
            return make(place, line)
        except DataError as error:
            raise error if place in str(error) else DataError(f"{place}: {error}") from error

    items = {split: [(line.place, line) for line in lines] for split, lines in splits.items()}
    advice = "Mend the lists, or put whole files where they say."
    return picture_examples(f"mtpt/{organ}", items, make_named, advice, workers)


def read_lists(manual_dir: Path, organ: str) -> dict[str, list[Line]]:
    """Returns the lines of the lists of an organ's images by split.

    Raises:
      DataError: A list is empty, or lines have other columns, a label that is none, or a path that leaves the folder; the
        message names all of them.
    """
    images = IMAGE_SETS[organ]
    labels = tuple(map(str, range(len(images.classes))))
    meanings = ", ".join(f"{i} {name}" for i, name in enumerate(images.classes))
    splits: dict[str, list[Line]] = {}
    faults: list[str] = []
    count = 0
    for split in SPLITS:
        path = list_file(organ, split).require(manual_dir)
        splits[split] = []
        before = len(faults)
        for number, text in enumerate(read_text(path, f"lines of {' '.join(images.columns)}").split("\n"), start=1):
            if not text.strip():
                continue
            place, parts = f"{path}, line {number}", text.split()
            line = dict(zip(images.columns, parts, strict=False))
            if len(parts) != len(images.columns):
                faults.append(f"{place}: {text!r}; expected {' '.join(images.columns)}, separated by blanks.")
            elif line.get("label", labels[0]) not in labels:
                faults.append(f"{place}: label {line['label']!r}; expected one of {meanings}.")
            elif outside := [name for name in (line["image"], line.get("mask", "")) if _leaves(name)]:
                faults.append(f"{place}: {outside[0]!r} leaves the folder; expected a path below {images.folder}/.")
            else:
                splits[split].append(Line(count, place, line))
                count += 1
        if not splits[split] and len(faults) == before:
            faults.append(f"{path} is empty.")
    if faults:
        raise error_of(f"mtpt/{organ}: {len(faults)} fault(s) in the lists, nothing was built", faults, "Mend them.")
    return splits


def _leaves(name: str) -> bool:
    path = PurePath(name)
    return path.is_absolute() or ".." in path.parts


def _read_mask(path: Path, place: str, facts: Facts, classes: int) -> bytes:
    """Returns a mask as a grey PNG of its values, after checking size and values."""
    path = find_file(path)
    content = read_bytes(path)
    kind = whole_picture(content, f"{place}: {path}").kind
    try:
        values = decode_labels(content)
    except DataError as error:
        raise DataError(f"{place}: {path} {error}: an 8-bit PNG of one channel.") from error
    size, expected = values.shape[::-1], (facts.width, facts.height)
    if kind != "PNG" or size != expected or values.max() >= classes:
        raise DataError(
            f"{place}: {path} is a {kind} file, {size} pixels and values up to {values.max()}; expected an 8-bit PNG of one "
            f"channel, {expected} pixels and values up to {classes - 1}."
        )
    with Image.open(io.BytesIO(content)) as picture:
        return content if picture.mode == "L" else png(values)


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
        expected = "a list of {question, label}, as the original's files are"
        content = read_json(path, expected)
        if not isinstance(content, list) or not content:
            raise DataError(
                f"{path}: expected a list of {{question, label}}; came {type(content).__name__} without any."
            )
        faults: list[str] = []
        rows = checked_rows(content, {"question": TEXT, "label": one_of(0, 1)}, str(path), faults, "entry")
        if faults:
            raise error_of(
                f"{path}: expected a list of {{question, label}} with labels 0 and 1", faults, "Mend these entries."
            )
        return [(row["question"], row["label"]) for row in rows]
    nested = manual_dir / "vqa_rad" if manual_dir else None
    there = nested if nested and ManualFile((release.ROWS_FILE,), "").find(nested) else manual_dir
    released = release.read_rows(release.rows_path(there, download_dir))
    records = [record for of, record in release.entries(released) if of == split]
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
