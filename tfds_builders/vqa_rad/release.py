"""The files of VQA-RAD's public release, and the rules by which the literature's two splits follow from them.

Other builders that need VQA-RAD's questions read them from here too.
"""

import hashlib
import json
import os
import shutil
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from jaxvqa.errors import DataError

HOME = "https://osf.io/89kps/"
ROWS_FILE = "VQA_RAD Dataset Public.json"
IMAGE_FOLDER = "VQA_RAD Image Folder"
ROWS_URL = "https://osf.io/download/6qdas/"
IMAGES_URL = "https://files.osf.io/v1/resources/89kps/providers/osfstorage/5b21453986d8510011c277bc/?zip="
ROWS_SHA256 = "948b7156059b864cf72344fb10669233526b175c243e5a046d20d4201d297a95"

ORGANS = ("ABD", "HEAD", "CHEST")
"""Body parts in the order of the modality classifier's outputs (CMSA spec section 7.4)."""

TEST_SHARE, VAL_SHARE = 0.2, 0.1
"""Shares of the images of each organ that `split_images` keeps apart; the others are for training."""

_TIMEOUT = 60  # seconds without an answer
_MISSING = "NULL"
_FIELDS = ("question", "answer", "answer_type", "question_type", "phrase_type", "image_name", "image_organ")

Row = Mapping[str, Any]


# The files.


def rows_path(manual_dir: Path | None, download_dir: Path) -> Path:
    """Returns where the release's rows lie: in `manual_dir`, else downloaded into `download_dir`.

    Raises:
      DataError: The file is in neither, and cannot be downloaded.
    """
    if manual_dir and (manual_dir / ROWS_FILE).is_file():
        return manual_dir / ROWS_FILE
    return _download(ROWS_URL, download_dir / ROWS_FILE, manual_dir, ROWS_FILE, ROWS_SHA256)


def read_images(manual_dir: Path | None, download_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (file name, JPEG bytes) of every image, by the number in the name.

    They are read from the folder or from a zip of it, in `manual_dir`, else downloaded into `download_dir`.

    Raises:
      DataError: The images are in neither and cannot be downloaded, or there are none.
    """
    for folder in filter(None, (manual_dir,)):
        if (folder / IMAGE_FOLDER).is_dir():
            # A copy may have the folder inside a folder of the same name, as some programs unpack a zip.
            paths = {path.name: path for path in (folder / IMAGE_FOLDER).rglob("*.jpg")}
            for name in _in_order(paths, folder / IMAGE_FOLDER):
                yield name, paths[name].read_bytes()
            return
    path = (manual_dir or Path()) / f"{IMAGE_FOLDER}.zip"
    if not (manual_dir and path.is_file()):
        path = _download(IMAGES_URL, download_dir / path.name, manual_dir, f"{IMAGE_FOLDER}/ or {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).name: name for name in archive.namelist() if name.endswith(".jpg")}
            for name in _in_order(members, path):
                yield name, archive.read(members[name])
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is cut off or damaged ({error}). Delete it and download it again: {HOME}") from error


def _in_order(names: Iterable[str], place: Path) -> list[str]:
    # Hidden files are those that macOS adds to zip archives.
    kept = sorted((name for name in names if not name.startswith(".")), key=image_id)
    if not kept:
        raise DataError(f"{place} holds no .jpg file. Expected the 315 images of the release: {HOME}")
    return kept


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


def read_rows(path: Path) -> list[Row]:
    """Reads the release's rows.

    Raises:
      DataError: The file is no JSON list, or rows lack fields; the message names the first of them.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a JSON file ({error}). Download it again: {HOME}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of rows, found {type(rows).__name__} without any.")
    for number, row in enumerate(rows):
        lacking = [field for field in _FIELDS if field not in row]
        if lacking or row["image_organ"] not in ORGANS:
            fault = f"no {', '.join(lacking)}" if lacking else f"organ {row['image_organ']!r}, not in {ORGANS}"
            raise DataError(f"{path}, row {number}: {fault}. Expected the file of {HOME}")
    return rows


def entries(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (split, question record) in the order of the literature's split files (CMSA spec section 7.1).

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
    """What a row's entries share. Texts stay as they are, but numbers become texts, and "NULL" becomes empty."""
    answer_type = row["answer_type"].strip()  # two rows have "CLOSED "
    answer = str(row["answer"])  # five rows have a number
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
            # Two rows lack the key question_rephrase.
            name: "" if row.get(name, _MISSING) == _MISSING else row[name]
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
    number = name.removeprefix("synpic").removesuffix(".jpg")
    if not number.isdecimal():
        raise DataError(f"An image of VQA-RAD is called {name!r}; expected synpicNUMBER.jpg.")
    return int(number)


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
        cases.setdefault(row.get("image_case_url", row["image_name"]), set()).add(row["image_name"])
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
