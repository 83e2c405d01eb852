"""The files of MIMIC-CXR and MIMIC-CXR-JPG, and their tables."""

import csv
import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.manual import ManualFile

JPG_HOME = "https://physionet.org/content/mimic-cxr-jpg/2.0.0/"
REPORTS_HOME = "https://physionet.org/content/mimic-cxr/2.0.0/"
_LICENCE = "PhysioNet Credentialed Health Data License: needs a credentialed account and a signed agreement."

SPLITS = ("train", "val", "test")

_IMAGES_A_STUDY = 100  # more than any study has
_DICOM_ID = checks.named(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a file's name without its ending")


def _places(project: str, *names: str) -> tuple[str, ...]:
    """In the project's folder, in that of its version as wget lays PhysioNet's files out, or right there."""
    return tuple(folder + name for name in names for folder in (f"{project}/*/", f"{project}/", ""))


def _table(name: str) -> ManualFile:
    return ManualFile(_places("mimic-cxr-jpg", f"{name}.csv*"), JPG_HOME, _LICENCE)  # packed by gzip or not


METADATA = _table("mimic-cxr-2.0.0-metadata")
OFFICIAL_SPLIT = _table("mimic-cxr-2.0.0-split")
PICTURES = ManualFile(
    _places("mimic-cxr-jpg", "files/p1?"), JPG_HOME, f"{_LICENCE} 570 GB; whole folders may be left out."
)
REPORTS = ManualFile(_places("mimic-cxr", "mimic-cxr-reports.zip", "files/p1?"), REPORTS_HOME, _LICENCE)
SECTION_FILES = "mimic_cxr_[0-9][0-9].csv"
SECTIONS = ManualFile(
    _places(
        "mimic-cxr",
        *(
            f"{folder}{name}"
            for folder in ("mimic-cxr-sections/", "")
            for name in ("mimic_cxr_sections.csv", SECTION_FILES)
        ),
    ),
    "https://github.com/MIT-LCP/mimic-cxr",
)
"""An option: what its txt/create_section_files.py writes, one file or one for each 10,000 reports."""

SPLIT_LISTS = {
    split: ManualFile((f"mimic_cxr_{split}.json",), "data/external of the original's repository") for split in SPLITS
}
"""An option: the split that the published checkpoints were trained on."""


@dataclasses.dataclass(frozen=True, order=True)
class Picture:
    """A row of the metadata.

    Attributes:
      subject_id: The patient.
      study_id: The study.
      dicom_id: Name of the file.
      view: ViewPosition, "" where none is stated.
      number: Place among the study's files by name, from 0.
    """

    subject_id: int
    study_id: int
    dicom_id: str
    view: str = ""
    number: int = 0

    @property
    def image_id(self) -> int:
        """The study's id and the number of the picture, two digits."""
        return self.study_id * _IMAGES_A_STUDY + self.number

    @property
    def group(self) -> str:
        """Folder of the patient's group, such as "p10"."""
        return f"p{str(self.subject_id)[:2]}"

    @property
    def report(self) -> str:
        """Where the study's report lies."""
        return f"files/{self.group}/p{self.subject_id}/s{self.study_id}.txt"

    @property
    def path(self) -> str:
        """Where the picture lies."""
        return f"files/{self.group}/p{self.subject_id}/s{self.study_id}/{self.dicom_id}.jpg"


def read_pictures(path: Path) -> list[Picture]:
    """Reads the metadata, sorted by patient, study and name.

    Raises:
      DataError: The file has other columns or values, or is damaged.
    """
    number, faults = checks.whole(2**31 - 1), list[str]()
    fields = {"subject_id": number, "study_id": number, "dicom_id": _DICOM_ID, "ViewPosition": checks.ANY_TEXT}
    read = checks.checked_rows(_read_columns(path, tuple(fields)), fields, str(path), faults, "line", first=2)
    faults += checks.twice((row["dicom_id"] for row in read), "dicom ids", path)
    seen: dict[int, int] = {}
    numbered = []
    for row in sorted(Picture(*row.values()) for row in read):
        seen[row.study_id] = number_of_study = seen.get(row.study_id, -1) + 1
        numbered.append(dataclasses.replace(row, number=number_of_study))
    large = [str(study) for study, last in seen.items() if last >= _IMAGES_A_STUDY]
    if large:
        faults.append(f"{len(large)} studies have more than {_IMAGES_A_STUDY} pictures, such as {large[0]}")
    _raise(path, faults)
    return numbered


def read_official_split(path: Path) -> dict[str, str]:
    """Returns dicom id -> train, val or test.

    Raises:
      DataError: The file has other columns or values, or is damaged.
    """
    names = {"train": "train", "validate": "val", "test": "test"}
    faults: list[str] = []
    fields = {"dicom_id": _DICOM_ID, "split": checks.one_of(*names)}
    rows = checks.checked_rows(_read_columns(path, tuple(fields)), fields, str(path), faults, "line", first=2)
    faults += checks.twice((row["dicom_id"] for row in rows), "dicom ids", path)
    _raise(path, faults)
    return {row["dicom_id"]: names[row["split"]] for row in rows}


def _raise(path: Path, faults: Sequence[str]) -> None:
    if faults:
        what = f"{path} has {len(faults)} fault(s), such as a row of another form"
        raise checks.error_of(what, faults, f"Download it again: {JPG_HOME}")


def _read_columns(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            reader = csv.DictReader(file)
            lacking = [name for name in wanted if name not in (reader.fieldnames or ())]
            if lacking:
                raise DataError(f"{path} has no column {', '.join(lacking)}; download it again: {JPG_HOME}")
            for row in reader:
                yield {name: row[name] for name in wanted}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is cut off or damaged ({error}); download it again: {JPG_HOME}") from error
