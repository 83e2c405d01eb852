"""Tables of a user's own: CSV with a header, or JSON lines, row by row with the place of each."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvqa.errors import DataError, nearest
from jaxvqa.inputs import parse_json, read_text

ENDINGS = (".csv", ".jsonl")
"""The kinds of tables, by the endings of their names."""

Row = Mapping[str, Any] | DataError
"""The values of a row by column, or what is wrong with it."""


def read_rows(path: Path, form: Mapping[str, Any], needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Each row with the place that messages name, "table.csv, line 3"; lines without anything are left out.

    Args:
      path: a file whose name has one of `ENDINGS`.
      form: column -> what a value of JSON is (`jaxvqa.inputs`); values of CSV are texts. Other columns are kept as they are.
      needed: the columns that have to be there.

    Raises:
      DataError: the file cannot be read, or lacks one of these columns.
    """
    if path.suffix.lower() == ".jsonl":
        yield from _json_rows(path, form, needed)
    else:
        yield from _csv_rows(path, needed)


def _csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    rows = csv.reader(io.StringIO(read_text(path, f"a table with the columns {', '.join(needed)}")))
    header = [name.strip().lower() for name in next(rows, [])]
    if missing := [name for name in needed if name not in header]:
        raise DataError(
            f"{path} has the columns {', '.join(header) or '(none)'}; expected {', '.join(needed)} in its first line."
            + "".join(nearest(name, header) for name in missing)
        )
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if len(row) > len(header):
            yield (
                where,
                DataError(f"{where}: {len(row)} values for {len(header)} columns; put a text with commas in quotes"),
            )
        elif row:
            yield where, {name: value.strip() for name, value in zip(header, row, strict=False)}


def _json_rows(path: Path, form: Mapping[str, Any], needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    expected = f"an object with {', '.join(needed)}"
    named = {name if name in needed else f"{name}?": kind for name, kind in form.items()}
    for number, line in enumerate(read_text(path, expected).split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                yield where, parse_json(line, where, expected, named)
            except DataError as error:
                yield where, error
