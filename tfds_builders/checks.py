"""What builders ask of a user's files: fields of the right kind, whole pictures, filled splits. All faults in one message."""

import collections
import dataclasses
import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from jaxvqa.data import pictures
from jaxvqa.errors import DataError

MOST_SHOWN = 20
"""Faults that a message shows; of the others it gives the number."""

_MOST_CHARACTERS = 60  # of a wrong value
_READ_AHEAD = 8  # files for each thread
_SILENCE = 10  # seconds between two lines of progress
_MISSING = object()

Record = dict[str, Any]
Item = TypeVar("Item")
Made = TypeVar("Made")


def error_of(what: str, faults: Sequence[str], advice: str) -> DataError:
    """Returns an error that lists faults, the first ones in full, and then says the way out."""
    shown = "\n  ".join([*faults[:MOST_SHOWN], *_more(faults)])
    return DataError(f"{what}:\n  {shown}\n{advice}")


def _more(faults: Sequence[str]) -> list[str]:
    return [f"and {len(faults) - MOST_SHOWN} more"] if len(faults) > MOST_SHOWN else []


# Fields.


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field may hold.

    Attributes:
      expected: In words.
      read: The value as it came -> as it is stored; raises ValueError, or TypeError, on any other.
      default: What stands for a field that is not there; such a field may be left out, but not be null.
    """

    expected: str
    read: Callable[[Any], Any]
    default: Any = _MISSING

    def or_else(self, default: Any) -> "Kind":
        """The same kind of a field that may be left out."""
        return dataclasses.replace(self, default=default)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _filled_text(value: Any) -> str:
    if not _text(value).strip():
        raise ValueError
    return value


def _text_or_number(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return _filled_text(value)


TEXT = Kind("a text that is not empty", _filled_text)
ANY_TEXT = Kind("a text", _text)
TEXT_OR_NUMBER = Kind("a text that is not empty, or a number", _text_or_number)


def whole(most: int = 2**63 - 1) -> Kind:
    """A whole number from 0 to `most`: 7, 7.0 or "7". It is kept as it is, or refused; never rounded or cut."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise TypeError
        if isinstance(value, str) and not re.fullmatch("[0-9]{1,19}", value):
            raise ValueError
        # Above 2**53 a float no longer tells neighbours apart.
        if not isinstance(value, (int, float, str)) or not 0 <= int(value) <= (2**53 if type(value) is float else most):
            raise ValueError
        return int(value)

    return Kind(f"a whole number from 0 to {'2**63 - 1' if most == 2**63 - 1 else most}", read)


def one_of(*values: Any) -> Kind:
    """One of these values, of the same type."""

    def read(value: Any) -> Any:
        if value not in values or type(value) not in map(type, values):
            raise ValueError
        return value

    return Kind("one of " + ", ".join(map(_shown, values)), read)


def named(pattern: str, expected: str) -> Kind:
    """A text of this form, such as a file's name."""

    def read(value: Any) -> str:
        if not re.fullmatch(pattern, _text(value)):
            raise ValueError
        return value

    return Kind(expected, read)


def list_of(field: str, kind: Kind) -> Kind:
    """A list that is not empty, of objects with a field of this kind."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise TypeError
        return [kind.read(item[field]) for item in value]

    return Kind(f"a list of {{{field}: {kind.expected}}} that is not empty", read)


def checked_rows(
    rows: Iterable[Any], fields: Mapping[str, Kind], place: str, faults: list[str], row: str = "row", first: int = 0
) -> list[Record]:
    """Reads the fields of rows.

    Args:
      rows: Objects, or lists of values in the order of `fields`.
      fields: What each row has to hold.
      place: The file, for messages.
      faults: Where each fault is added: file, row, field, what was expected and what came.
      row: What a row is called.
      first: Number of the first row.

    Returns:
      The fields of those rows that are without fault, in order.
    """
    good = []
    for number, given in enumerate(rows, start=first):
        if isinstance(given, (list, tuple)) and len(given) == len(fields):
            given = dict(zip(fields, given, strict=True))
        before, record = len(faults), {}
        if not isinstance(given, Mapping):
            faults.append(f"{place}, {row} {number}: expected the fields {', '.join(fields)}; came {_shown(given)}")
            continue
        for name, kind in fields.items():
            value = given.get(name, kind.default)
            if value is _MISSING:
                faults.append(f"{place}, {row} {number}: no {name}; expected {kind.expected}")
                continue
            try:
                record[name] = kind.read(value) if name in given else value
            except (ValueError, TypeError, LookupError, AttributeError):
                faults.append(f"{place}, {row} {number}: {name} is {_shown(value)}; expected {kind.expected}")
        if len(faults) == before:
            good.append(record)
    return good


def twice(values: Iterable[Any], what: str, place: str | Path) -> list[str]:
    """Returns one fault for values that occur more than once in a file, or none."""
    again = {value: None for value, count in collections.Counter(values).items() if count > 1}
    return (
        [f"{place}: {len(again)} {what} occur more than once, such as {', '.join(map(str, list(again)[:5]))}"]
        if again
        else []
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


# Splits.


def filled_splits(what: str, splits: Mapping[str, Sized], because: str, *, partial: bool) -> None:
    """Looks whether splits have records.

    Args:
      what: The data set, for messages.
      splits: Records by split.
      because: Why a split may have none.
      partial: Whether the user asked for what there is: then an empty split is reported, and not built.

    Raises:
      DataError: A split is empty, and `partial` is not asked for; or all are.
    """
    empty = [split for split, records in splits.items() if not len(records)]
    if not empty:
        return
    fault = f"{what}: no record for the split{'s' * (len(empty) > 1)} {', '.join(empty)}: {because}."
    if len(empty) == len(splits):
        raise DataError(f"{fault} Nothing can be built.")
    if not partial:
        raise DataError(f"{fault} Give the whole files, or build the other splits with --partial.")
    logging.warning("%s Built without.", fault)


# Files.


def read_bytes(path: Path) -> bytes:
    """Returns a file's content.

    Raises:
      DataError: It cannot be read: it is missing, a folder, or not the user's to read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def whole_picture(content: bytes, name: str, kinds: Sequence[str] = ()) -> pictures.Facts:
    """Returns what a picture file holds, after decoding all of it.

    Raises:
      DataError: It is damaged, or not of one of `kinds`; names it.
    """
    try:
        facts = pictures.inspect(content)
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    if kinds and facts.kind not in kinds:
        raise DataError(f"{name} is a {facts.kind} file, expected {' or '.join(kinds)}")
    return facts


def whole_pictures(what: str, paths: Iterable[Path], faults: list[str], workers: int) -> dict[Path, pictures.Facts]:
    """Decodes all of these files once, in threads.

    Args:
      what: The data set, for the lines of progress.
      paths: The files.
      faults: Where those are added that cannot be read, or are damaged.
      workers: Threads.

    Returns:
      What each file holds, but for those at fault.
    """
    named = ((str(path), path) for path in dict.fromkeys(paths))
    found = {}
    for name, made in _in_threads(what, named, lambda name, path: whole_picture(read_bytes(path), name), workers):
        if isinstance(made, DataError):
            faults.append(str(made))
        else:
            found[Path(name)] = made
    return found


def picture_examples(
    what: str,
    splits: Mapping[str, Iterable[tuple[str, Item]]],
    make: Callable[[str, Item], Record],
    advice: str,
    workers: int = 1,
) -> dict[str, Iterator[Record]]:
    """Makes the records of image files, in threads, in order.

    All splits are read to their end before damaged files are named, so that one message names all of them.

    Args:
      what: The data set, for messages.
      splits: (name, file or content) of each image by split, in the order in which splits are built.
      make: Returns a record with `image_id`, or raises a DataError that names the file.
      advice: The way out.
      workers: Threads.

    Returns:
      By split, an iterator of records that raises the DataError at its end; an `image_id` must not occur twice in them all.
    """
    seen: dict[int, str] = {}

    def examples(split: str) -> Iterator[Record]:
        faults: list[str] = []
        for each in list(splits)[list(splits).index(split) :]:
            if each != split and not faults:
                return
            try:
                for name, made in _in_threads(f"{what}, {each}", splits[each], make, workers):
                    if isinstance(made, DataError):
                        faults.append(str(made))
                    elif made["image_id"] in seen:
                        faults.append(f"{name}: image id {made['image_id']} is also that of {seen[made['image_id']]}")
                    else:
                        seen[made["image_id"]] = name
                        if not faults:
                            yield made
            except DataError as error:  # of what holds the files
                faults.append(str(error))
        if faults:
            raise error_of(f"{what}: {len(faults)} bad file(s), nothing was built", faults, advice)

    return {split: examples(split) for split in splits}


def _in_threads(
    what: str, items: Iterable[tuple[str, Item]], make: Callable[[str, Item], Made], workers: int
) -> Iterator[tuple[str, Made | DataError]]:
    """Yields (name, what `make` returned or raised) of each item in order, and prints how far it is."""

    def attempt(name: str, item: Item) -> Made | DataError:
        try:
            return make(name, item)
        except DataError as error:
            return error

    start = told = time.monotonic()
    count = 0
    waiting: deque[tuple[str, Future[Made | DataError]]] = deque()
    print(f"{what}: reading and checking the images", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for name, item in items:
                waiting.append((name, pool.submit(attempt, name, item)))
                if len(waiting) < _READ_AHEAD * workers:
                    continue
                first, future = waiting.popleft()
                yield first, future.result()
                count += 1
                if time.monotonic() - told > _SILENCE:
                    told = time.monotonic()
                    print(f"{what}: {count:,} images, {count / (told - start):.0f}/s", file=sys.stderr, flush=True)
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
