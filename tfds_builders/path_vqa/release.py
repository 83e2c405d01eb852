"""The files of PathVQA: a pickled list of questions a split, and a folder of images a split."""

from pathlib import Path
from typing import Any

from jaxvqa.convert import closed_pickle
from jaxvqa.errors import DataError, os_errors
from tfds_builders import checks
from tfds_builders.question_tables import Release
from tfds_builders.table.release import record

Record = dict[str, Any]


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


def _record(number: int, split: str, entry: Record) -> Record:
    texts = (f"{split}/{entry['image']}.jpg", entry["question"], [entry["answer"].strip()])
    return record(number, *texts, split=split)


RELEASE = Release(
    home="https://github.com/UCSD-AI4H/PathVQA",
    lists={
        split: tuple(f"{qas}{split}_qa.pkl" for qas in (f"qas/{split}/", "qas/", ""))
        for split in ("train", "val", "test")
    },
    images="images",
    folders=("", "pvqa/"),
    entries=_entries,
    fields={**dict.fromkeys(("image", "question"), checks.TEXT), "answer": checks.TEXT_OR_NUMBER},
    record=_record,
)
