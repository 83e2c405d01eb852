"""Reading of JSON files that a user gives."""

import json
from pathlib import Path
from typing import Any

from jaxvqa.errors import DataError


def read_json(path: str | Path, what: str, expected: str) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: the file.
      what: what it should hold, for messages: "answer list".
      expected: which file that is: "the original's answer_dict.json".

    Raises:
      DataError: the file is missing, or is no JSON in UTF-8.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"No {what} at {path}: expected {expected}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a JSON file ({error}).") from error
