"""Paths and files that a user gives: what is read is looked at before it is used.

A form says what the content of a JSON file should be, by example: `[str]` is a list of texts, `{str: int}` a map from text to
whole number, `{"questions": [{"question": str}]}` an object with at least that key (a key that ends in "?" may be absent),
`(str, int)` one of several, `float` a finite number, `math.nan` any number, `Any` anything.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxvqa.errors import ConfigError, DataError, from_os_error

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_NAMES |= {dict: "an object", list: "a list"}
_SHOWN = 10


def user_path(text: str) -> Path:
    """A path that a user wrote, as an argparse type: `~` and `~name` at its start are home folders.

    Raises:
      ConfigError: the text is empty, or nobody has that name.
    """
    if not text:
        raise ConfigError("A path is empty: is a variable of the command not set? Write . for the current folder.")
    return Path(expand_home(text))


def expand_home(text: str) -> str:
    """Replaces `~` or `~name` at the start of a path by the home folder; any other text stays as it is.

    Raises:
      ConfigError: nobody has that name.
    """
    if not text.startswith("~"):
        return text
    found = os.path.expanduser(text)
    if found.startswith("~") and not os.path.lexists(found.partition("/")[0]):
        raise ConfigError(
            f"{text}: no home folder is known of {found.partition('/')[0]}. Write ./{text} for that name."
        )
    return found


def read_text(path: str | Path, expected: str = "a text in UTF-8") -> str:
    r"""The text of a file in UTF-8, with or without a byte order mark; every line end becomes "\n".

    Args:
      path: the file.
      expected: what it should be, for messages: "the original's answer list".

    Raises:
      DataError: it is missing, is a folder or is not in UTF-8.
      StorageError: it may not be read, or the disk fails.
    """
    return _decoded(path, expected).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path, expected: str, form: Any = Any) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      expected: what it should be, for messages: "the original's answer_dict.json".
      form: what the content must look like (see the module).

    Raises:
      DataError: as `read_text`; or the file is not JSON, or not of that form, in which case all faults are listed.
      StorageError: as `read_text`.
    """
    return parse_json(_decoded(path, expected), path, expected, form)


def parse_json(text: str, path: str | Path, expected: str, form: Any = Any) -> Any:
    """As `read_json`, of a text that `path` names in messages."""
    try:
        content = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair could not be written or shown
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply. Expected {expected}. Check what wrote it.") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON: {error}. Expected {expected}. It may have been cut off or edited; fetch or write it again."
        ) from error
    check_form(content, form, path, expected)
    return content


def read_json_lines(path: str | Path, expected: str, form: Any = Any, *, cut: bool = False) -> list[Any]:
    """The rows of a file of one JSON value a line.

    Args:
      path: the file.
      expected: as in `read_json`.
      form: that of each row.
      cut: whether a last line that was cut off is left out, as of a file that is still written.

    Raises:
      DataError, StorageError: as `read_json`, naming the line.
    """
    lines = [(n, line) for n, line in enumerate(read_text(path, expected).split("\n"), 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            rows.append(parse_json(line, f"{path}:{number}", expected, form))
        except DataError:
            if not (cut and number == lines[-1][0]):
                raise
    return rows


def check_form(content: Any, form: Any, path: str | Path, expected: str) -> None:
    """Raises a DataError that lists where `content` differs from `form` (see the module)."""
    faults = []
    for fault in _faults(content, form, ""):
        faults.append(fault)
        if len(faults) > _SHOWN:
            faults[-1] = "…"
            break
    if faults:
        raise DataError(f"{path} is not what it should be: expected {expected}.\n  " + "\n  ".join(faults))


def _faults(value: Any, form: Any, where: str) -> Iterator[str]:
    if form is Any:
        return
    forms = form if isinstance(form, tuple) else (form,)
    same = next((f for f in forms if _outer(value, f)), None)
    if same is None:
        yield f"{where or 'the whole'}: expected {' or '.join(map(_name, forms))}, got {_shown(value)}"
    elif isinstance(same, list):
        for i, item in enumerate(value):
            yield from _faults(item, same[0], f"{where}[{i}]")
    elif isinstance(same, dict) and str in same:
        for key, item in value.items():
            yield from _faults(item, same[str], f"{where}[{key!r}]")
    elif isinstance(same, dict):
        for key, inner in same.items():
            name = key.removesuffix("?")
            if name in value:
                yield from _faults(value[name], inner, f"{where}.{name}".lstrip("."))
            elif name == key:
                yield f"{f'{where}.{name}'.lstrip('.')}: missing; the keys are {_shown(list(value))}"


def _outer(value: Any, form: Any) -> bool:
    if form is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(form, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return form is Any or isinstance(value, form if isinstance(form, type) else type(form))


def _name(form: Any) -> str:
    return _NAMES[form if isinstance(form, type) else type(form)]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)  # Parquet has more types
    return text if len(text) <= 60 else text[:59] + "…"


LFS = b"version https://git-lfs"
"""How the text begins that stands in a file's place where Git LFS has not fetched it."""


def _decoded(path: str | Path, expected: str) -> str:
    try:
        content = Path(path).read_bytes()
        if content.startswith(LFS):
            raise DataError(f"{path} is a pointer of Git LFS, not {expected}: run `git lfs pull` in its repository.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}. Expected {expected}. "
            "Save it as UTF-8, or fetch it again."
        ) from error
    except OSError as error:
        raise from_os_error(error, path=path, expected=expected, kind=DataError) from error
