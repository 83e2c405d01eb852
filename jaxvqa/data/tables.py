"""Tables of a user's own: CSV with a header, JSON lines or Parquet, row by row with the place of each."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jaxvqa.errors import DataError, first_line, nearest, os_errors
from jaxvqa.inputs import LFS, check_form, parse_json, read_text

ENDINGS = (".csv", ".jsonl", ".parquet")
"""The kinds of tables, by the endings of their names."""

Row = Mapping[str, Any] | DataError
"""The values of a row by column, or what is wrong with it."""


def read_rows(path: Path, form: Mapping[str, Any], needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Each row with the place that messages name: "table.csv, line 3", "table.parquet, row 3"; empty lines are left out.

    Args:
      path: a file whose name has one of `ENDINGS`.
      form: column -> what a value of JSON or Parquet is (`jaxvqa.inputs`); values of CSV are texts. Other columns are not
        looked at, and may be left out. A null of Parquet stands for no value, as an empty value of CSV does.
      needed: the columns that have to be there.

    Raises:
      DataError: the file cannot be read, or lacks one of these columns.
    """
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, needed)
    else:
        named = {name if name in needed else f"{name}?": kind for name, kind in form.items()}
        expected = f"an object with {', '.join(needed)}"
        yield from {".jsonl": _json_rows, ".parquet": _parquet_rows}[path.suffix.lower()](path, named, needed, expected)


def _csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    rows = csv.reader(io.StringIO(read_text(path, f"a table with the columns {', '.join(needed)}")))
    header = [name.strip().lower() for name in next(rows, [])]
    _check_columns(path, header, needed, " in its first line")
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if len(row) > len(header):
            yield (
                where,
                DataError(f"{where}: {len(row)} values for {len(header)} columns; put a text with commas in quotes"),
            )
        elif row:
            yield where, {name: value.strip() for name, value in zip(header, row, strict=False)}


def _check_columns(path: Path, header: Sequence[str], needed: Sequence[str], where: str = "") -> None:
    if missing := [name for name in needed if name not in header]:
        raise DataError(
            f"{path} has the columns {', '.join(header) or '(none)'}; expected {', '.join(needed)}{where}."
            + "".join(nearest(name, header) for name in missing)
        )


def _json_rows(path: Path, form: Mapping[str, Any], needed: Sequence[str], expected: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_text(path, expected).split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                yield where, parse_json(line, where, expected, form)
            except DataError as error:
                yield where, error


def _parquet_rows(
    path: Path, form: Mapping[str, Any], needed: Sequence[str], expected: str
) -> Iterator[tuple[str, Row]]:
    with os_errors(path, "a Parquet file"), path.open("rb") as stream:
        if stream.read(len(LFS)) == LFS:
            raise DataError(f"{path} is a pointer of Git LFS, not a table: run `git lfs pull` in its repository.")
        stream.seek(0)
        for number, row in enumerate(_parquet_objects(path, stream, form, needed), start=1):
            where = f"{path}, row {number}"
            try:
                check_form(row, form, where, expected)
                yield where, row
            except DataError as error:
                yield where, error


def _parquet_objects(
    path: Path, stream: IO[bytes], form: Mapping[str, Any], needed: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, without nulls, of the columns of `form` alone: others may be as large as images."""
    from pyarrow import parquet  # here: other tables need not wait for it

    known = {name.removesuffix("?") for name in form}
    try:
        file = parquet.ParquetFile(stream)
        called = {column: column.strip().lower() for column in file.schema_arrow.names}
        _check_columns(path, list(called.values()), needed)
        columns = [column for column, name in called.items() if name in known]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield {called[column]: value for column, value in row.items() if value is not None}
    except DataError:
        raise
    except Exception as error:  # what Arrow meets in a damaged file, it raises
        raise DataError(
            f"{path} cannot be read as Parquet ({type(error).__name__}: {first_line(error)}). Write or fetch it again."
        ) from error
