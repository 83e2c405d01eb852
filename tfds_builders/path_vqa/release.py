"""The files of PathVQA: a pickled list of questions a split, and a folder of images a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvqa.convert import closed_pickle
from jaxvqa.errors import DataError, os_errors
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_file
from tfds_builders.table.release import joined, record

Record = dict[str, Any]

HOME = "https://github.com/UCSD-AI4H/PathVQA"
FOLDERS = ("", "pvqa/")
"""Where files may lie below the folder of the files."""

LISTS: Mapping[str, ManualFile] = {
    split: ManualFile(
        tuple(f"{above}{qas}{split}_qa.pkl" for above in FOLDERS for qas in (f"qas/{split}/", "qas/", "")), HOME
    )
    for split in ("train", "val", "test")
}
IMAGES = ManualFile(tuple(f"{above}images/*/*" for above in FOLDERS), HOME, "The folder images of the release.")

FIELDS = {**dict.fromkeys(("image", "question"), checks.TEXT), "answer": checks.TEXT_OR_NUMBER}
"""What is read of an entry."""


def read(folder: Path, *, partial: bool = False) -> list[Record]:
    """The questions of all splits.

    Args:
      folder: Folder of the files.
      partial: Whether a list may be missing.

    Raises:
      DataError: Lists all entries that are not as they should be.
    """
    faults: list[str] = []
    records: list[Record] = []
    for split, file in LISTS.items():
        if partial and file.find(folder) is None:
            continue
        path = file.require(folder)
        for entry in checks.checked_rows(_entries(path), FIELDS, str(path), faults, row="entry"):
            name = f"{split}/{entry['image']}.jpg"
            records.append(record(len(records), name, entry["question"], [entry["answer"].strip()], split=split))
    if faults:
        raise checks.error_of(f"path_vqa: {len(faults)} fault(s)", faults, "Fetch the lists again.")
    return joined(records)


def _entries(path: Path) -> list[Any]:
    """The list in a pickle, of which nothing is run.

    Raises:
      DataError: it is damaged, or holds something else.
    """
    expected = "a pickled list of {image, question, answer}"
    try:
        with os_errors(path, expected), path.open("rb") as stream:
            content = closed_pickle.load(stream)
    except closed_pickle.PickleError as error:
        raise DataError(f"{path} cannot be read: {error}. Expected {expected}. Fetch it again.") from error
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}. Expected {expected}. Fetch it again.")
    return content


def image_path(folder: Path, name: str) -> Path:
    """Where an image such as train/train_0422.jpg is."""
    places = [folder / above / "images" / name for above in FOLDERS]
    return next((path for path in map(find_file, places) if path.exists()), places[0])
