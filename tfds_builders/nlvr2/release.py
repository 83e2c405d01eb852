"""The files of NLVR2: the release's JSON lines, or the JSON lists that BLIP reads; both name two images a sentence."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from absl import logging

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json, read_json_lines, read_text
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_files

Record = dict[str, Any]

HOME = "https://lil.nlp.cornell.edu/nlvr/"
REPOSITORY = "https://github.com/lil-lab/nlvr/tree/master/nlvr2"
LISTS_OF_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/datasets"

SENTENCES = {"train": 86_373, "val": 6_982, "test": 6_967}


def _list(name: str, of_blip: str) -> ManualFile:
    places = [f"{folder}{name}.json" for folder in ("", "data/", "nlvr2/data/")]
    places += [f"{folder}nlvr_{of_blip}.json" for folder in ("", "annotation/")]
    return ManualFile(tuple(places), REPOSITORY, f"Or nlvr_{of_blip}.json from {LISTS_OF_BLIP}.")


LISTS: Mapping[str, ManualFile] = {
    "train": _list("train", "train"),
    "val": _list("dev", "dev"),
    "test": _list("test1", "test"),
}
IMAGES = ManualFile(
    tuple(f"{folder}{split}/**/*-img0.png" for folder in ("images/", "") for split in ("train", "dev", "test1")),
    HOME,
    "On request, by the form that the repository names.",
)
FOLDERS = (".", "images")
"""Where images may lie whose path is not absolute, below the folder of the files."""

_PAIR = r"(train|dev|test1)-\d+-\d+"


def _truth(value: Any) -> str:
    """Of True, "True", "true": true."""
    if str(value) not in ("True", "False", "true", "false"):
        raise ValueError
    return str(value).lower()


def _two(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(x, str) and x.strip() for x in value):
        raise ValueError
    return value


_COMMON = {"sentence": checks.TEXT, "label": checks.Kind("True or False", _truth)}
OF_RELEASE = {
    **_COMMON,
    "identifier": checks.named(rf"{_PAIR}-\d+", "split-set-pair-sentence, such as train-10171-0-0"),
    "directory": checks.whole().or_else(None),
}
"""What is read of a line of the release; its images are called after its set and pair."""

OF_BLIP = {**_COMMON, "images": checks.Kind("a list of the paths of two images", _two)}
"""What is read of an entry of BLIP's lists (docs/originals/blip.md, section 13)."""


def read(folder: Path, *, partial: bool = False) -> tuple[dict[str, list[Record]], dict[str, Path]]:
    """The sentences of each split, and the image files.

    Args:
      folder: Folder of the files.
      partial: Whether lists may be missing, and sentences without both images are left out.

    Returns:
      By split `question_id`, `image_id`, `second_image_id`, `images`, `question` and `truth` of each sentence; and the path of
      each image by its name. Images are numbered in order of first appearance.

    Raises:
      DataError: Lists all entries that are not as they should be, and all images that are not there.
    """
    faults: list[str] = []
    splits: dict[str, list[Record]] = {}
    for split, file in LISTS.items():
        if (path := file.find(folder)) or not partial:
            splits[split] = _rows(path or file.require(folder), faults)
    names = dict.fromkeys(name for rows in splits.values() for row in rows for name in row["images"])
    faults += [f"image {name} leads out of the folder" for name in names if ".." in PurePosixPath(name).parts]
    found = find_files(names, folder, FOLDERS)
    missing = [name for name in names if name not in found]
    if missing and found and partial:
        logging.warning("nlvr2: %d of %d images are not there; built without", len(missing), len(names))
        splits = {split: [r for r in rows if found.keys() >= {*r["images"]}] for split, rows in splits.items()}
    else:
        faults += [f"image {name} is not there" for name in missing]
    if faults:
        advice = "Fetch the lists and images again, or build with --partial what has both of its images."
        raise checks.error_of(f"nlvr2: {len(faults)} fault(s) in {folder}", faults, advice)
    checks.filled_splits("nlvr2", splits, "its list has no sentence whose images are there", partial=partial)
    every = [row for rows in splits.values() for row in rows]
    ids = {name: number for number, name in enumerate(dict.fromkeys(name for row in every for name in row["images"]))}
    for number, row in enumerate(every):
        first, second = row["images"]
        row |= {"question_id": number, "image_id": ids[first], "second_image_id": ids[second]}
    return {split: rows for split, rows in splits.items() if rows}, found


def _rows(path: Path, faults: list[str]) -> list[Record]:
    """The sentences of a list, with `images`, `question` and `truth`."""
    try:
        expected = "NLVR2's sentences, as JSON lines or a JSON list"
        if read_text(path, expected).lstrip().startswith("["):
            entries, fields, row = read_json(path, expected, [Any]), OF_BLIP, "entry"
        else:
            entries, fields, row = read_json_lines(path, expected), OF_RELEASE, "sentence"
    except DataError as error:
        faults.append(str(error))
        return []
    found = checks.checked_rows(entries, fields, str(path), faults, row=row)
    return [
        {"images": one.get("images") or image_names(one), "question": one["sentence"], "truth": one["label"]}
        for one in found
    ]


def image_names(row: Mapping[str, Any]) -> list[str]:
    """The paths of the two images of a line of the release: in a folder of its `directory`, which training lines have."""
    pair, split = re.match(_PAIR, row["identifier"])[0], row["identifier"].partition("-")[0]  # type: ignore[index]
    folder = split if row["directory"] is None else f"{split}/{row['directory']}"
    return [f"{folder}/{pair}-img{i}.png" for i in (0, 1)]
