"""The files of ROCO's public repository, and what their rows mean."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from tfds_builders import checks
from tfds_builders.manual import ManualFile, by_name, plain

HOME = "https://github.com/razorx89/roco-dataset"

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
"""Split -> its folder."""

GROUPS = ("radiology", "non-radiology")
"""The folders of each split, in the order in which they are read."""

ROWS = {
    ("train", "radiology"): 65_448,
    ("val", "radiology"): 8_180,
    ("test", "radiology"): 8_179,
    ("train", "non-radiology"): 4_895,
    ("val", "non-radiology"): 611,
    ("test", "non-radiology"): 612,
}
"""Captions of each split and group in the release."""

_NAME = re.compile(r"ROCO_[0-9]{1,18}")
_MOST_SHOWN = 5

Record = dict[str, Any]
Row = tuple[str, Record]
"""An image's name, and columns of its record."""


def _places(path: str) -> tuple[str, ...]:
    """Below the repository, or below its folder data/."""
    return f"data/{path}", path


CAPTIONS = ManualFile(_places("*/*radiology/captions.txt"), HOME, "A clone of the repository; any part of it is built.")
PICTURES = ManualFile(
    (*_places("*/*radiology/images/*.jpg"), *_places("*/*radiology/images/*.jpeg")),
    HOME,
    "Fetched from PubMed Central: python scripts/fetch.py, in the clone.",
)


def read_split(split: str, manual_dir: Path, faults: list[str]) -> list[Record]:
    """Reads the captions of a split, radiology first, in the files' order.

    Args:
      split: One of `FOLDERS`.
      manual_dir: Folder of the files.
      faults: What is wrong is added here, so that one message can name all of it.

    Returns:
      Caption records; none for groups whose captions.txt is not there.
    """
    return [record for group in GROUPS for record in _read_group(split, group, manual_dir, faults)]


def _read_group(split: str, group: str, manual_dir: Path, faults: list[str]) -> list[Record]:
    folder = _folder(split, group, manual_dir)
    if folder is None:
        logging.warning("roco: no %s/%s/captions.txt in %s: built without", FOLDERS[split], group, manual_dir)
        return []
    tables = {name: _read(folder / name, parse, faults) for name, parse in _FORMS.items()}
    captions = tables["captions.txt"]
    wrong = [name for name in captions if not _NAME.fullmatch(name)]
    if wrong:
        faults.append(f"{folder / 'captions.txt'}: {len(wrong)} names are not ROCO_NUMBER, {_such_as(wrong)}")
    for file, rows in tables.items():
        without = [name for name in captions if name not in rows]
        if without and rows:
            faults.append(f"{folder / file}: {len(without)} captions have no row, {_such_as(without)}")
    if len(captions) != ROWS[split, group]:
        logging.warning("roco: %s has %d captions; the release has %d", folder, len(captions), ROWS[split, group])
    return [
        {
            "question_id": int(name.removeprefix("ROCO_")),
            "image_id": int(name.removeprefix("ROCO_")),
            "image_name": name,
            "question_type": group,
        }
        | {column: value for rows in tables.values() for column, value in rows[name].items()}
        for name in captions
        if not wrong and all(name in rows for rows in tables.values())
    ]


def has_files(split: str, manual_dir: Path) -> bool:
    """Whether a captions.txt of the split is there."""
    return any(_folder(split, group, manual_dir) for group in GROUPS)


def _folder(split: str, group: str, manual_dir: Path) -> Path | None:
    path = ManualFile(_places(f"{FOLDERS[split]}/{group}/captions.txt"), HOME).find(manual_dir)
    return path.parent if path else None


def _read(path: Path, parse: Callable[[str], Row | None], faults: list[str]) -> dict[str, Record]:
    """Reads a file of one row a line: name -> the row's columns."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path}: {error}")
        return {}
    # Only line feeds end a line, since captions hold other characters that do elsewhere; a CR before one belongs to it.
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    rows = {number: parse(line) for number, line in enumerate(lines, start=1) if line}
    wrong = [f"line {number}" for number, row in rows.items() if row is None]
    if wrong:
        faults.append(f"{path}: {len(wrong)} lines are not in ROCO's form, {_such_as(wrong)}")
    whole = [row for row in rows.values() if row is not None]
    if parse is _caption:
        faults += checks.twice((name for name, _ in whole), "names", path)
    return dict(whole)


def _caption(line: str) -> Row | None:
    """A name, a tab, and a text that mostly begins with a blank."""
    name, _, text = line.partition("\t")
    return (name, {"caption": normalised(text)}) if text.strip() else None


def _licence(line: str) -> Row | None:
    """Such as ROCO_00016,PMC5665693_cureus-i01.jpg,CC BY."""
    name, _, rest = line.partition(",")
    source, comma, licence = rest.rpartition(",")
    pmc_id, _, figure = source.partition("_")
    return (name, {"pmc_id": pmc_id, "figure": figure, "licence": licence}) if comma else None


def _keywords(line: str) -> Row | None:
    """Fields between tabs, the second of which is empty; some captions have no keyword."""
    name, *words = line.split("\t")
    return name, {"keywords": [word for word in words if word]}


_FORMS = {"captions.txt": _caption, "licences.txt": _licence, "keywords.txt": _keywords}


def normalised(text: str) -> str:
    """Returns a caption as the original stores it: without blanks around it, in Unicode's form NFKC.

    docs/originals/flamingo.md, section 13.
    """
    return unicodedata.normalize("NFKC", text.strip())


def twice(splits: Mapping[str, Iterable[Record]]) -> list[str]:
    """Returns one fault for the images that stand in two places, or none."""
    seen: set[int] = set()
    again = []
    for records in splits.values():
        for record in records:
            if record["image_id"] in seen:
                again.append(record["image_name"])
            seen.add(record["image_id"])
    return [f"{len(again)} images are captioned twice, {_such_as(again)}"] if again else []


def find_pictures(split: str, records: Iterable[Record], manual_dir: Path) -> dict[int, Path]:
    """Returns image id -> file of the pictures that are there.

    They are called ROCO_00016.jpg, or, fetched by an earlier script, after the article and the figure.
    """
    folders = {group: _folder(split, group, manual_dir) for group in GROUPS}
    images = {group: folder / "images" for group, folder in folders.items() if folder}
    there = {group: by_name(sorted(path.iterdir()) if path.is_dir() else ()) for group, path in images.items()}
    found = {}
    for record in records:
        for name in (f"{record['image_name']}.jpg", f"{record['pmc_id']}_{record['figure']}"):
            if path := there[record["question_type"]].get(plain(name)):
                found[record["image_id"]] = path
                break
    return found


def _such_as(names: list[str]) -> str:
    return f"such as {', '.join(names[:_MOST_SHOWN])}"
