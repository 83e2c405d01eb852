"""VQA-Med's text files, and the list of abnormalities that SYSU-HCP chooses from (SYSU spec, section 7)."""

import collections
import contextlib
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxvqa.errors import DataError

Row = dict[str, str]

PAIRS = ("image", "question", "answer")
QUESTIONS = ("image", "question")
CATEGORISED = ("image", "category", "question", "answer")
REFERENCES = ("image", "answer", "*")
"""The columns of the files; "*" takes the rest of a line, separators and all."""

NO_DISEASES = frozenset({"yes", "no"})
"""Answers, in lower case, of questions whether an image is normal: they are no class, and not trained on."""

_MOST_FAULTS_SHOWN = 10


def parse_rows(text: str, columns: Sequence[str], source: str | Path) -> list[Row]:
    """Splits the lines of a file at "|" into columns.

    Lines end at line feeds only: answers hold no-break spaces and other characters that Python's `splitlines` takes for line
    ends. A line is stripped, its columns stay as they are; blank lines are passed over.

    Args:
      text: the file.
      columns: names of the columns.
      source: what the text was read from, for messages.

    Raises:
      DataError: lists the lines that have other columns.
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
        else:
            rows.append(dict(zip(columns, fields, strict=False)))
    _raise(faults, f"{source}: expected lines {'|'.join(columns)}")
    return rows


def tidy(text: str) -> str:
    """Returns a text with single blanks, none around it: some answers hold no-break spaces."""
    return " ".join(text.split())


def reference_answers(row: Row) -> tuple[str, ...]:
    """Returns the answers of a row `image|answer|answer…`."""
    return (row["answer"], *(row["*"].split("|") if "*" in row else ()))


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


# The packing of SYSU-HCP's authors, whose lists name images and class ids.


def parse_class_list(text: str, source: str | Path) -> list[tuple[str, int]]:
    """Returns (image, class id) of each line `image id` of one of the authors' lists.

    Raises:
      DataError: lists the lines that are not a name, one blank and a number.
    """
    pairs, faults = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        image, _, label = line.strip().partition(" ")
        if image and label.isdecimal():
            pairs.append((image, int(label)))
        elif line.strip():
            faults.append(f"line {number}: {line[:60]!r}")
    _raise(faults, f"{source}: expected lines of an image, one blank and a class id")
    return pairs


def parse_validation(
    classes: str, pairs: str, source: str | Path = "val.txt and label.txt"
) -> list[tuple[str, int, str]]:
    """Returns (image, class id, question) of the authors' validation files, which belong together line by line.

    Args:
      classes: the text of `val.txt`, lines `image id`.
      pairs: the text of `label.txt`, lines `image|question|answer`, of the same images in the same order.
      source: what the texts were read from, for messages.

    Raises:
      DataError: the files are not parallel, or have other lines.
    """
    labels, rows = parse_class_list(classes, source), parse_rows(pairs, PAIRS, source)
    faults = [
        f"line {number}: {image} and {row['image']}"
        for number, ((image, _), row) in enumerate(zip(labels, rows, strict=False), start=1)
        if image != row["image"]
    ]
    if len(labels) != len(rows):
        faults.append(f"{len(labels)} and {len(rows)} lines")
    _raise(faults, f"{source}: expected the same images in the same order")
    return [(image, label, row["question"]) for (image, label), row in zip(labels, rows, strict=True)]


# The classes.


@dataclass(frozen=True)
class DiseaseList:
    """The abnormalities that a model chooses from, in the order of its outputs.

    Raises:
      DataError: a name occurs twice.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.index) != len(self.names):
            twice = sorted({name for i, name in enumerate(self.names) if self.index[name] != i})
            raise DataError(f"The list of diseases holds {len(twice)} name(s) more than once: {twice[:20]}.")

    @classmethod
    def build(cls, answers: Iterable[str], min_count: int = 1) -> "DiseaseList":
        """Collects the answers that occur `min_count` times in order of first appearance, as they stand, without yes and no.

        The original takes all those of its training questions; VQA-Med 2020's train and validation answers give 330.
        """
        counts = collections.Counter(answer for answer in answers if answer.lower() not in NO_DISEASES)
        return cls(tuple(answer for answer, count in counts.items() if count >= min_count))

    @classmethod
    def from_file(cls, path: str | Path) -> "DiseaseList":
        """Reads the original's `disease2id.json`: {name: id}, or a list of names. Converted checkpoints need its order.

        Raises:
          DataError: the file is missing or of another form, or the ids are not 0, 1, 2, …
        """
        path = Path(path)
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"No list of diseases at {path}: expected the original's disease2id.json.") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} is not a JSON file ({error}).") from error
        if isinstance(ids, list) and ids and all(isinstance(name, str) for name in ids):
            return cls(tuple(ids))
        if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
            raise DataError(
                f"{path}: expected names with the ids 0 to n - 1, each once, as in {{name: id}}, or a list."
            )
        return cls(tuple(sorted(ids, key=lambda name: int(ids[name]))))

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Name to its position."""
        return {name: i for i, name in enumerate(self.names)}

    @functools.cached_property
    def _by_form(self) -> dict[str, int]:
        return {repaired(name): i for i, name in reversed(list(enumerate(self.names)))}

    def __len__(self) -> int:
        return len(self.names)

    def label(self, answer: str) -> int:
        """Returns the class of an answer; -1 if it is none. Its name as it stands goes first, then its `repaired` form."""
        return self.index.get(answer, self._by_form.get(repaired(answer), -1))


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
