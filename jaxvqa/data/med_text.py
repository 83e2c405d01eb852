"""VQA-Med's text files, and the list of abnormalities that SYSU-HCP chooses from (docs/originals/sysu_hcp.md, section 7)."""

import contextlib
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxvqa.data.answers import AnswerList
from jaxvqa.errors import DataError

Row = dict[str, str]

PAIRS = ("image", "question", "answer")
QUESTIONS = ("image", "question")
CATEGORISED = ("image", "category", "question", "answer")
REFERENCES = ("image", "answer", "*")
"""The columns of the files; "*" takes the rest of a line, separators and all."""

NO_DISEASES = frozenset({"yes", "no"})
"""Answers, in lower case, of questions whether an image is normal: they are not classes, and not trained on."""

_MOST_FAULTS_SHOWN = 10


def parse_rows(text: str, columns: Sequence[str], source: str | Path) -> list[Row]:
    """Splits the lines of a file at "|" into columns.

    Lines end at line feeds only: answers hold no-break spaces and other characters that Python's `splitlines` takes for line
    ends. A line is stripped, its columns stay as they are, and are not empty; blank lines are passed over.

    Args:
      text: the file.
      columns: names of the columns.
      source: what the text was read from, for messages.

    Raises:
      DataError: lists the lines that have other columns, or empty ones.
    """
    open_end = columns[-1] == "*"
    names = columns[:-1] if open_end else columns
    rows, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.strip().split("|", len(names) if open_end else -1)
        if len(fields) < len(names) or (len(fields) > len(names) and not open_end):
            faults.append(f"line {number}: {len(fields)} columns in {line[:60]!r}")
        elif empty := [name for name, field in zip(names, fields, strict=False) if not field.strip()]:
            faults.append(f"line {number}: no {' and no '.join(empty)} in {line[:60]!r}")
        else:
            rows.append(dict(zip(columns, fields, strict=False)))
    _raise(faults, f"{source}: expected lines {'|'.join(columns)}")
    return rows


def tidy(text: str) -> str:
    """Returns a text with single blanks, none around it: some answers hold no-break spaces."""
    return " ".join(text.split())


def reference_answers(row: Row) -> tuple[str, ...]:
    """Returns the answers of a row `image|answer|answer…`; what is empty is none."""
    more = row["*"].split("|") if "*" in row else ()
    return (row["answer"], *(answer for answer in more if answer.strip()))


def alternatives(answer: str) -> tuple[str, ...]:
    """Returns the right answers of one of 2019's test references: "#" stands between them, "(…)" may be left out.

    "ct w/contrast (iv)" gives itself and "ct w/contrast".
    """
    given = [tidy(part) for part in answer.split("#")]
    shorter = [tidy(_without_brackets(part)) for part in given]
    return tuple(dict.fromkeys(part for part in (*given, *shorter) if part))


def _without_brackets(text: str) -> str:
    start, end = text.find("("), text.find(")")
    return text[:start] + text[end + 1 :] if 0 <= start < end else text


# The classes.


@dataclass(frozen=True)
class DiseaseList(AnswerList):
    """The abnormalities that a model chooses from, in the order of its outputs: answers as they stand, but for yes and no.

    The original takes all those of its training questions; VQA-Med 2020's train and validation answers give 330.
    """

    what: ClassVar[str] = "list of diseases"
    file: ClassVar[str] = "disease2id.json"

    @staticmethod
    def form(raw: str | int) -> str:
        """An answer as it stands."""
        return str(raw)

    @classmethod
    def build(cls, answers: Iterable[str | int], min_count: int = 1) -> "DiseaseList":
        """Collects the answers that occur `min_count` times, in order of first appearance."""
        return super().build((answer for answer in answers if str(answer).lower() not in NO_DISEASES), min_count)

    @staticmethod
    def answers_of(content: object, path: str | Path) -> tuple[str, ...]:
        """Returns the names of {name: id} by id. Converted checkpoints need this order."""
        if not isinstance(content, dict) or sorted(map(str, content.values())) != sorted(map(str, range(len(content)))):
            raise DataError(
                f"{path}: expected names with the ids 0 to n - 1, each once, as in {{name: id}}, or a list."
            )
        return tuple(sorted(content, key=lambda name: int(content[name])))

    @functools.cached_property
    def _by_form(self) -> dict[str, int]:
        return {repaired(name): i for i, name in reversed(list(enumerate(self.answers)))}

    def label(self, answer: str | int) -> int:
        """Returns the class of an answer; -1 if it is none. Its name as it stands goes first, then its `repaired` form."""
        return self.index.get(str(answer), self._by_form.get(repaired(str(answer)), -1))


def repaired(name: str) -> str:
    """Returns a name without the original's garbling, with single blanks.

    The authors' program read UTF-8 as GBK: six names hold "鈥檚" for "’s" or "聽" for a no-break space. To answer with mended
    names scores up to six more of the 500 test images of 2021; class ids stay.
    """
    with contextlib.suppress(UnicodeError):  # of names that were never garbled
        name = name.encode("gbk").decode("utf-8")
    return tidy(name)


def _raise(faults: Sequence[str], what: str) -> None:
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS_SHOWN} more"] if len(faults) > _MOST_FAULTS_SHOWN else []
        raise DataError(f"{what}; {len(faults)} fault(s):\n  " + "\n  ".join([*faults[:_MOST_FAULTS_SHOWN], *more]))
