"""The two selections of MIMIC-CXR that the Flamingo system was trained on (docs/originals/flamingo.md, section 13)."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from absl import logging

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json
from tfds_builders import checks
from tfds_builders.manual import PICTURE_ENDINGS, any_case
from tfds_builders.mimic_cxr import release, reports
from tfds_builders.mimic_cxr.release import Picture

WITHOUT_FINDINGS = (58235663, 50798377, 54168089, 53071062, 56724958, 54231141, 53607029, 52035334)
"""Studies whose report says nothing of the pictures; frontal selections leave them out."""

FRONTAL = ("PA", "AP")
"""Views, as the metadata's ViewPosition names them."""

STUDIES, FRONTAL_IMAGES = 227_835, 243_324
"""What the whole release gives: studies, and frontal images less the ten of `WITHOUT_FINDINGS`."""

_FOLDER = checks.named(r"(?s)(.*/)?s[0-9]{1,9}/?", "a study's folder, such as files/p10/p10000032/s50414267")
_SEED = 42  # the original's split was drawn without one
_MOST_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is built.

    Attributes:
      splits: Pictures by split, sorted by patient, study and name; no empty split.
      captions: Study id -> caption, as far as MIT-LCP's files state them.
    """

    splits: Mapping[str, Sequence[Picture]]
    captions: Mapping[int, str]


def select(
    manual_dir: Path, frontal: bool, name_of: Callable[[Picture], str], exists: Callable[[str], bool]
) -> Selection:
    """Chooses pictures and divides them.

    Groups of patients of which there is no picture are left out; if there is no picture at all, no group is. Of the others
    every file has to be there.

    Args:
      manual_dir: Folder of the files.
      frontal: All frontal pictures with the official split, instead of one picture a study with a random split.
      name_of: The file that is needed of a picture.
      exists: Whether a file of this name is there.

    Raises:
      DataError: Tables are damaged or of another form, or files are missing; the message names them.
    """
    pictures = release.read_pictures(release.METADATA.require(manual_dir))
    captions = _captions(manual_dir) if frontal else {}
    without = [study for study, text in captions.items() if not text]
    chosen = _there(frontal_pictures(pictures, without) if frontal else first_of_each_study(pictures), manual_dir)
    absent = [name for name in dict.fromkeys(map(name_of, chosen)) if not exists(name)]
    if absent:
        raise DataError(
            f"mimic_cxr: {len(absent)} files are missing in {manual_dir}, such as {', '.join(absent[:_MOST_SHOWN])}.\n"
            f"Download them from {release.JPG_HOME} and {release.REPORTS_HOME}, or leave out the pictures of whole groups "
            "of patients, such as files/p10."
        )
    splits = _divided(chosen, manual_dir, frontal)
    whole = FRONTAL_IMAGES if frontal else STUDIES
    logging.info("mimic_cxr: %d pictures; the whole release gives %d", sum(map(len, splits.values())), whole)
    checks.filled_splits("mimic_cxr", splits, "none of its pictures is there", partial=True)
    return Selection({split: rows for split, rows in splits.items() if rows}, captions)


def first_of_each_study(pictures: Iterable[Picture]) -> list[Picture]:
    """Returns the first picture of each study by its name."""
    return [picture for picture in pictures if picture.number == 0]


def frontal_pictures(pictures: Iterable[Picture], without: Collection[int] = ()) -> list[Picture]:
    """Returns all frontal pictures but those of studies without findings, and of the studies `without`."""
    left_out = {*WITHOUT_FINDINGS, *without}
    return [picture for picture in pictures if picture.view in FRONTAL and picture.study_id not in left_out]


def random_split(studies: Sequence[int], seed: int = _SEED) -> dict[int, str]:
    """Divides studies 80/10/10, with the original's sizes: 182,268, 22,783 and 22,784 of 227,835.

    Returns:
      Study id -> split.
    """
    held_out = math.ceil(len(studies) / 5)
    test = math.ceil(held_out / 2)
    sizes = {"train": len(studies) - held_out, "val": held_out - test, "test": test}
    order = np.random.RandomState(seed).permutation(len(studies))
    names = [split for split, size in sizes.items() for _ in range(size)]
    return {studies[position]: name for position, name in zip(order, names, strict=True)}


def listed_split(manual_dir: Path) -> dict[int, str]:
    """Returns study id -> split by the original's lists; empty where they are not all there.

    Raises:
      DataError: A list is of another form.
    """
    paths = {split: file.find(manual_dir) for split, file in release.SPLIT_LISTS.items()}
    splits: dict[int, str] = {}
    for split, path in paths.items():
        faults: list[str] = []
        if path is None or None in paths.values():
            continue
        entries = read_json(path, "a list of {folder_path: …/s50414267, txt_path}")
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a list of {{folder_path: …/s50414267, txt_path}}; came another value.")
        for row in checks.checked_rows(entries, {"folder_path": _FOLDER}, str(path), faults, "entry"):
            study = int(PurePath(row["folder_path"]).name[1:])
            if splits.setdefault(study, split) != split:
                faults.append(f"{path}: study {study} is also in the list of {splits[study]}")
        if faults:
            what = f"{path}: expected a list of {{folder_path: …/s50414267, txt_path}}; {len(faults)} fault(s)"
            raise checks.error_of(what, faults, "Mend the list, or take it away for a random split.")
    return splits


def _captions(manual_dir: Path) -> dict[int, str]:
    """The sections that MIT-LCP's script has cut out, if its files are there: one, or one for each 10,000 reports."""
    first = release.SECTIONS.find(manual_dir)
    if first is None:
        return {}
    return reports.read_conclusions(sorted({first, *first.parent.glob(release.SECTION_FILES)}))


def _there(chosen: Sequence[Picture], manual_dir: Path) -> Sequence[Picture]:
    """Keeps the groups of patients of which there is a picture."""
    root = release.PICTURES.find(manual_dir)
    groups = {picture.group for picture in chosen}
    absent = {group for group in groups if not (root and _has_pictures(root.parent / group))}
    if absent == groups:
        logging.warning("mimic_cxr: no pictures in %s", manual_dir)
        return chosen
    if absent:
        logging.warning("mimic_cxr: no pictures of %s in %s: built without", ", ".join(sorted(absent)), manual_dir)
    return [picture for picture in chosen if picture.group not in absent]


def _has_pictures(group: Path) -> bool:
    return any(path for ending in PICTURE_ENDINGS for path in group.glob(any_case(f"*/*/*{ending}")))


def _divided(chosen: Sequence[Picture], manual_dir: Path, frontal: bool) -> dict[str, list[Picture]]:
    if frontal:
        of = release.read_official_split(release.OFFICIAL_SPLIT.require(manual_dir))
        names = [of.get(picture.dicom_id) for picture in chosen]
    else:
        by_study = listed_split(manual_dir) or random_split(sorted(picture.study_id for picture in chosen))
        names = [by_study.get(picture.study_id) for picture in chosen]
    if None in names:
        logging.warning("mimic_cxr: %d of %d pictures are in no split: left out", names.count(None), len(names))
    return {
        split: [picture for picture, name in zip(chosen, names, strict=True) if name == split]
        for split in release.SPLITS
    }
