"""The files of VQA-RAD's public release, and the rules by which the literature's two splits follow from them.

Other builders that need VQA-RAD's questions read them from here too.
"""

import hashlib
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json
from tfds_builders.checks import ANY_TEXT, TEXT, TEXT_OR_NUMBER, checked_rows, error_of, named, one_of
from tfds_builders.manual import PICTURE_ENDINGS, ManualFile, by_name
from tfds_builders.vqa_v2.release import Member, list_members

HOME = "https://osf.io/89kps/"
ROWS_FILE = "VQA_RAD Dataset Public.json"
IMAGE_FOLDER = "VQA_RAD Image Folder"
ROWS_URL = "https://osf.io/download/6qdas/"
IMAGES_URL = "https://files.osf.io/v1/resources/89kps/providers/osfstorage/5b21453986d8510011c277bc/?zip="
ROWS_SHA256 = "948b7156059b864cf72344fb10669233526b175c243e5a046d20d4201d297a95"

ORGANS = ("ABD", "HEAD", "CHEST")
"""Body parts in the order of the modality classifier's outputs (docs/originals/cmsa.md, section 7.4)."""

TEST_SHARE, VAL_SHARE = 0.2, 0.1
"""Shares of the images of each organ that `split_images` keeps apart; the others are for training."""

_TIMEOUT = 60  # seconds without an answer
_MISSING = "NULL"
_NAME = r"synpic(0|[1-9][0-9]{0,17})\.jpg"
_FIELDS = {
    "question": TEXT,
    "answer": TEXT_OR_NUMBER,  # five rows have a number
    "answer_type": named(r"(?i)\s*(open|closed)\s*", "OPEN or CLOSED"),
    "question_type": TEXT,
    "phrase_type": TEXT,
    "image_name": named(_NAME, "synpicNUMBER.jpg"),
    "image_organ": one_of(*ORGANS),
    # Two rows lack the key question_rephrase.
    "question_rephrase": ANY_TEXT.or_else(_MISSING),
    "question_relation": ANY_TEXT.or_else(_MISSING),
    "question_frame": ANY_TEXT.or_else(_MISSING),
    "qid_linked_id": ANY_TEXT.or_else(_MISSING),
    "image_case_url": ANY_TEXT.or_else(_MISSING),
    "evaluation": ANY_TEXT.or_else(_MISSING),
}

Row = Mapping[str, Any]


# The files.


def rows_path(manual_dir: Path | None, download_dir: Path) -> Path:
    """Returns where the release's rows lie: in `manual_dir`, else downloaded into `download_dir`.

    Raises:
      DataError: The file is in neither, and cannot be downloaded.
    """
    found = ManualFile((ROWS_FILE,), HOME).find(manual_dir) if manual_dir else None
    if found:
        return found
    return _download(ROWS_URL, download_dir / ROWS_FILE, manual_dir, ROWS_FILE, ROWS_SHA256)


def find_images(manual_dir: Path | None, download_dir: Path) -> dict[str, Member]:
    """Returns name -> file of every image, by the number in the name.

    They lie in the folder or in a zip of it, in `manual_dir`, else they are downloaded into `download_dir`.

    Raises:
      DataError: The images are in neither and cannot be downloaded, there are none, or names differ by case only.
    """
    place = image_place(manual_dir)
    if place is None:
        name = f"{IMAGE_FOLDER}.zip"
        place = _download(IMAGES_URL, download_dir / name, manual_dir, f"{IMAGE_FOLDER}/ or {name}")
    # A copy may have the folder inside a folder of the same name, as some programs unpack a zip.
    members = {Path(member.name or member.path): member for member in list_members(place, PICTURE_ENDINGS)}
    found = by_name(members)
    if not found:
        raise DataError(f"{place} holds no .jpg file. Expected the 315 images of the release: {HOME}")
    return {name: members[found[name]] for name in sorted(found, key=image_id)}


def image_place(manual_dir: Path | None) -> Path | None:
    """Returns the folder of the images, or the zip of it, in `manual_dir`; None if neither is there."""
    if manual_dir is None:
        return None
    if (manual_dir / IMAGE_FOLDER).is_dir():
        return manual_dir / IMAGE_FOLDER
    return ManualFile((f"{IMAGE_FOLDER}.zip",), HOME).find(manual_dir)


def _download(url: str, path: Path, manual_dir: Path | None, names: str, sha256: str = "") -> Path:
    """Downloads a file unless it is there, under another name until it is whole."""
    if path.is_file():
        return path
    logging.info("downloading %s from %s", path.name, url)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "jaxvqa"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, partial.open("wb") as file:
            shutil.copyfileobj(response, file)
        found = hashlib.sha256(partial.read_bytes()).hexdigest()
        if sha256 and found != sha256:
            raise ValueError(f"SHA-256 {found[:12]}…, expected {sha256[:12]}…")
        os.replace(partial, path)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"vqa_rad needs {names}, which is not in {manual_dir or 'a --manual_dir'} and could not be downloaded from "
            f"{url} ({error}). Download it from {HOME}, and name the folder that holds it: --manual_dir=DIR"
        ) from error
    return path


# The rows.


def read_rows(path: Path) -> Sequence[Row]:
    """Reads the release's rows: numbers among the answers become texts, and fields that no builder reads are left out.

    Raises:
      DataError: The file is not a JSON list, or rows have fields of another kind, or lack them; the message names all of them.
    """
    rows = read_json(path, f"the list of rows of {HOME}")
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of rows, found {type(rows).__name__} without any: {HOME}")
    faults: list[str] = []
    checked = checked_rows(rows, _FIELDS, str(path), faults)
    if faults:
        advice = f"Mend these rows, or take the file of {HOME}"
        raise error_of(f"vqa_rad: {len(faults)} fault(s), nothing was built", faults, advice)
    return checked


def entries(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (split, question record) in the order of the literature's split files (docs/originals/cmsa.md, section 7.1).

    Every row gives its question, to the test split if its phrase type says so, and, where it has one, the rewording of
    the question in the form of a template ("frame"). Frames go to the train split, those of test rows too. Both are
    counted from 1; the count is the question's id.

    Args:
      rows: The release's rows in file order.
    """
    counter = 0
    for number, row in enumerate(rows):
        split = "test" if row["phrase_type"].startswith("test_") else "train"
        record = _record(number, split, row)
        counter += 1
        yield split, record | {"question_id": counter}
        if record["question_frame"]:
            counter += 1
            yield (
                "train",
                record | {"question_id": counter, "question": record["question_frame"], "phrase_type": "frame"},
            )


def _record(number: int, split: str, row: Row) -> dict[str, Any]:
    """What a row's entries share. Texts stay as they are, but "NULL" becomes empty."""
    answer_type = row["answer_type"].strip()  # two rows have "CLOSED "
    answer = row["answer"]
    return {
        "image_id": image_id(row["image_name"]),
        "image_name": row["image_name"],
        "question": row["question"],
        "answers": [answer],
        "multiple_choice_answer": answer,
        "question_type": row["question_type"],
        "answer_type": answer_type,
        "open_closed": answer_type.lower(),
        "phrase_type": row["phrase_type"].removeprefix("test_"),
        "organ": row["image_organ"],
        # The first row's own id is a text, the others' are numbers; all are the row's position.
        "release_row": number,
        "release_split": split,
        **{
            name: "" if row[name] == _MISSING else row[name]
            for name in (
                *("qid_linked_id", "image_case_url", "evaluation"),
                *("question_rephrase", "question_relation", "question_frame"),
            )
        },
    }


# The images.


def image_id(name: str) -> int:
    """Returns the number in an image's name: 54610 of "synpic54610.jpg".

    Raises:
      DataError: The name has another form.
    """
    if not re.fullmatch(_NAME, name):
        raise DataError(f"An image of VQA-RAD is called {name!r}; expected synpicNUMBER.jpg.")
    return int(name.removeprefix("synpic").removesuffix(".jpg"))


def split_images(rows: Sequence[Row]) -> dict[str, str]:
    """Divides the images into train, val and test such that no image, and no patient's case, is in two of them.

    In each organ, cases are put into the order of the SHA-256 of their first image's name; the first images up to 20 %
    of the organ's are for test, those up to 30 % for val, the others for train.

    Args:
      rows: The release's rows.

    Returns:
      Image name -> split.
    """
    organs = {row["image_name"]: row["image_organ"] for row in rows}
    cases: dict[str, set[str]] = {}
    for row in rows:
        case = row["image_case_url"]
        cases.setdefault(row["image_name"] if case == _MISSING else case, set()).add(row["image_name"])
    first = {name: name for name in organs}  # the image that stands for all images of its case
    for names in cases.values():
        joined = {first[name] for name in names}
        if len(joined) > 1:
            first = {name: min(joined) if image in joined else image for name, image in first.items()}
    splits = {}
    for organ in ORGANS:
        members = sorted((_digest(first[name]), name) for name in organs if organs[name] == organ)
        digests = [digest for digest, _ in members]
        for digest, name in members:
            share = digests.index(digest) / len(members)  # of the case's first image, so that a case stays whole
            splits[name] = "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"
    return splits


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
