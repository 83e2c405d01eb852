"""Reads pickled dicts of NumPy arrays without letting the file run anything; see `jaxvqa/convert/closed_pickle.py`."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxvqa.convert import closed_pickle
from jaxvqa.convert.file_kinds import unreadable
from jaxvqa.errors import CheckpointError


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a pickled dict of text -> array of numbers.

    Raises:
      CheckpointError: the file is missing, corrupt, or holds anything else. Nothing that it names is called.
    """
    path = Path(path)
    if not path.is_file():
        raise unreadable(path, "pickle of NumPy arrays")
    try:
        content = closed_pickle.load(io.BytesIO(path.read_bytes()), strict=True)
    except closed_pickle.ForeignNameError as error:
        raise CheckpointError(
            f"{path} names {error}, which no dict of NumPy arrays needs: it was not called."
        ) from None
    except closed_pickle.PickleError as error:
        raise unreadable(path, "pickle of NumPy arrays", str(error)) from error
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds one {type(content).__name__}, not a dict of arrays.")
    foreign = [
        f"{key!r} ({type(value).__name__})"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, closed_pickle.Array))
    ]
    if foreign:
        raise CheckpointError(f"{path} is no dict of text -> array: it holds {', '.join(foreign[:5])}.")
    try:
        return {key: value.get() for key, value in content.items()}
    except closed_pickle.PickleError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from None
