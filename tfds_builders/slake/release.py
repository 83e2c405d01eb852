"""The files of SLAKE: a list of questions a split, and a folder an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvqa.inputs import read_json
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_file
from tfds_builders.table.release import joined, record

Record = dict[str, Any]

HOME = "https://www.med-vqa.com/slake"
FOLDERS = ("", "Slake1.0/", "Slake/")
"""Where files may lie below the folder of the files."""

LISTS: Mapping[str, ManualFile] = {
    split: ManualFile(tuple(f"{folder}{name}.json" for folder in FOLDERS for name in names), HOME)
    for split, names in {"train": ("train",), "val": ("validate", "validation"), "test": ("test",)}.items()
}
IMAGES = ManualFile(tuple(f"{folder}imgs/*/*" for folder in FOLDERS), HOME, "The folder imgs of the release.")
LANGUAGES = ("en", "zh")

FIELDS = {
    **dict.fromkeys(("img_name", "question"), checks.TEXT),
    "answer": checks.TEXT_OR_NUMBER,
    "q_lang": checks.one_of(*LANGUAGES),
    **dict.fromkeys(("answer_type", "content_type"), checks.ANY_TEXT.or_else("")),
}
"""What is read of an entry."""


def read(folder: Path, *, partial: bool = False) -> list[Record]:
    """The questions of all splits and languages; `language` is en or zh.

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
        entries = read_json(path, "a list of SLAKE's questions", [Any])
        for entry in checks.checked_rows(entries, FIELDS, str(path), faults, row="entry"):
            texts = (entry["img_name"], entry["question"], [entry["answer"].strip()])
            made = record(len(records), *texts, kind=entry["content_type"], split=split)
            closed = entry["answer_type"].strip().lower()
            records.append(made | {"open_closed": closed or made["open_closed"], "language": entry["q_lang"]})
    if faults:
        raise checks.error_of(f"slake: {len(faults)} fault(s)", faults, "Fetch the lists again.")
    return joined(records)


def image_path(folder: Path, name: str) -> Path:
    """Where an image such as xmlab1/source.jpg is."""
    places = [folder / above / "imgs" / name for above in FOLDERS]
    return next((path for path in map(find_file, places) if path.exists()), places[0])
