"""The texts of MIMIC-CXR's reports: where they lie, and what of a report is its caption."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_text
from tfds_builders.checks import error_of
from tfds_builders.manual import find_file
from tfds_builders.vqa_v2.release import UNREADABLE

HIDDEN = "___"
"""What stands where names, dates and places were."""

# A line such as " FINDINGS: The lungs are clear."
_HEADER = re.compile(r" ([A-Z ()/,-]+):(?:\s(.*))?")

# What a header says -> its section; the first row that matches wins. Other headers open sections that no caption uses.
_SECTIONS = tuple(
    (re.compile(pattern), section)
    for pattern, section in (
        (r"impression|conclusion|^i?m[a-z]*s[a-z]*n$", "impression"),  # also those misspelt
        (r"^find|finding|^finidn", "findings"),
        (r"history|indication|reason for", "history"),
        (r"compar|reference exam", "comparison"),
        (r"addendum", "addendum"),
        (r"chest|portable|lateral|(frontal|two|pa|ap|one) view|frontal|bone window|ribs|pa and lat", "findings"),
    )
)

_CONCLUSIONS = ("impression", "findings", "last paragraph", "comparison")

Lines = Sequence[str]


def lines_of(report: str) -> Lines:
    """Cuts a report into lines."""
    return report.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def caption(lines: Lines) -> str:
    """Returns lines as one text: stripped, without empty ones and without "___", joined by blanks.

    docs/originals/flamingo.md, section 12.
    """
    return " ".join(line.strip().replace(HIDDEN, "") for line in lines if line.strip())


def conclusion(report: str) -> str:
    """Returns the caption of the section that says what is seen.

    That is the last impression that is not empty, else the last findings; else what follows the first paragraph of the last
    section, since short reports are a header and some paragraphs; else the last comparison. A report with none of them is
    taken whole. This is how MIT-LCP's mimic-cxr repository divides reports, but for some fifty that it treats by hand.
    """
    sections = _sections(lines_of(report))
    sections = [(name, lines) for name, lines in sections if caption(lines) or name not in ("impression", "findings")]
    if sections and not {"impression", "findings"} & {name for name, _ in sections}:
        name, lines = sections.pop()
        blank = next((i for i, line in enumerate(lines) if i and not line.strip()), len(lines))
        sections += [(name, lines[:blank]), ("last paragraph", lines[blank + 1 :])]
    found = {name: text for name, lines in sections if (text := caption(lines))}  # the last of each name
    return next((found[name] for name in _CONCLUSIONS if name in found), caption(lines_of(report)))


def _sections(lines: Lines) -> list[tuple[str, list[str]]]:
    """Returns the name and the lines of each section; the first begins with the report."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header:
            words = header[1].lower().strip()
            name = next((section for pattern, section in _SECTIONS if pattern.search(words)), words)
            sections.append((name, [header[2]] if header[2] is not None else []))
        else:
            sections[-1][1].append(line)
    return sections


def read_conclusions(paths: Iterable[Path]) -> dict[int, str]:
    """Reads sections that MIT-LCP's create_section_files.py has cut out: rows of a study's name and a text.

    Args:
      paths: Its files mimic_cxr_sections.csv, or mimic_cxr_00.csv and so on.

    Returns:
      Study id -> caption, "" where a report has none.

    Raises:
      DataError: A row is of another form.
    """
    found = {}
    expected = (
        "rows of a study such as s50414267 and a text, as create_section_files.py of MIT-LCP's repository writes them"
    )
    for path in paths:
        faults = []
        rows = csv.reader(io.StringIO(read_text(path, expected)))
        try:
            for number, row in enumerate(rows, start=1):
                if len(row) == 2 and re.fullmatch("s?[0-9]{1,9}", row[0]):
                    found[int(row[0].removeprefix("s"))] = caption(lines_of(row[1]))
                else:
                    faults.append(f"{path}, row {number}: {str(row)[:80]}; expected {expected}")
        except csv.Error as error:
            faults.append(f"{path}, line {rows.line_num}: {error}; expected {expected}")
        if faults:
            advice = "Write the file again: https://github.com/MIT-LCP/mimic-cxr"
            raise error_of(f"mimic_cxr: {len(faults)} fault(s)", faults, advice)
    return found


class Reports:
    """The reports, in mimic-cxr-reports.zip or unpacked."""

    def __init__(self, place: Path):
        """Opens the reports.

        Args:
          place: The zip file, or the folder that holds files/.

        Raises:
          DataError: The zip file is damaged.
        """
        self.place = place
        self._archive: zipfile.ZipFile | None = None
        if place.is_file():
            try:
                self._archive = zipfile.ZipFile(place)
            except zipfile.BadZipFile as error:
                raise DataError(f"{place} is cut off or damaged ({error}). Download it again.") from error
            self._members = set(self._archive.namelist())

    def __contains__(self, name: str) -> bool:
        """Whether there is a report, such as "files/p10/p10000032/s50414267.txt"."""
        return name in self._members if self._archive else find_file(self.place / name).is_file()

    def read(self, name: str) -> str:
        """Returns the text of a report.

        Raises:
          DataError: It cannot be read.
        """
        try:
            content = self._archive.read(name) if self._archive else find_file(self.place / name).read_bytes()
            return content.decode("utf-8-sig")
        except (UnicodeDecodeError, *UNREADABLE) as error:
            raise DataError(f"{self.place}: {name} cannot be read ({error}). Download it again.") from error
