"""Reads pickled dicts of NumPy arrays without letting the file run anything.

A pickle may name any function and have it called. Here each name that a pickled array needs leads to a stand-in of ours,
which only notes its arguments; every other name is refused. NumPy itself sees nothing but shape, type and bytes, checked.
"""

import dataclasses
import io
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvqa.errors import CheckpointError

MODULES = ("numpy.core", "numpy._core")
"""Where NumPy keeps what its pickles name: before and since version 2."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a pickled dict of text -> array of numbers.

    Raises:
      CheckpointError: the file is missing, corrupt, or holds anything else. Nothing that it names is called.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        content = _Unpickler(path.read_bytes()).load()
    except _RefusedError as error:
        raise CheckpointError(
            f"{path} names {error}, which no dict of NumPy arrays needs: it was not called."
        ) from None
    except Exception as error:  # pickle raises whatever the damage leads to: UnpicklingError, EOFError, KeyError, …
        what = str(error) or type(error).__name__
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is no readable pickle of NumPy arrays: {what}. Is it cut off, or a "
            "pointer file of Git LFS? Fetch it again."
        ) from error
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds one {type(content).__name__}, not a dict of arrays.")
    foreign = [
        f"{key!r} ({type(value).__name__.lstrip('_')})"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, _Array))
    ]
    if foreign:
        raise CheckpointError(f"{path} is no dict of text -> array: it holds {', '.join(foreign[:5])}.")
    try:
        return {key: value.build() for key, value in content.items()}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from None


class _RefusedError(Exception):
    """A name that a pickled array does not need."""


@dataclasses.dataclass
class _Dtype:
    """Stands for a type of numbers, such as 'f4'; the byte order comes as its state."""

    name: Any
    order: Any = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def build(self) -> np.dtype:
        known = [f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)] + ["b1"]
        # The state's other entries are of structured types only, and those have other names.
        if self.name not in known or self.name == "f1" or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of {str(self.name)[:20]!r}, not of plain numbers")
        return np.dtype(self.name).newbyteorder(self.order)


@dataclasses.dataclass
class _Array:
    """Stands for an array: what its state says, not yet looked at."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    data: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def build(self) -> np.ndarray:
        shape, data = self.shape, self.data
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"an array of the shape {str(shape)[:40]}")
        if not isinstance(self.dtype, _Dtype) or not isinstance(data, bytes | bytearray):
            raise ValueError("an array without its type or its bytes")
        dtype = self.dtype.build()
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of the shape {list(shape)} and type {dtype} with {len(data)} bytes")
        flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(shape, order="F" if self.fortran else "C")


def _stand_ins() -> dict[tuple[str, str], Any]:
    """The names that pickled arrays need. New ones for each file: a pickle can set attributes of what it names."""

    def reconstruct(kind: Any, shape: Any, typecode: Any) -> _Array:
        return _Array()  # the state that follows says it all

    def dtype(name: Any, align: Any = False, copy: Any = True) -> _Dtype:
        return _Dtype(name)

    def frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:  # protocol 5
        return _Array(shape, dtype, order == "F", data)

    def encode(text: Any, encoding: Any) -> bytes:  # bytes in protocols 0 to 2
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes in an unknown form")
        return text.encode("latin1")

    found: dict[tuple[str, str], Callable[..., Any] | str] = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): dtype,
        ("_codecs", "encode"): encode,
    }
    for module in MODULES:
        found |= {
            (f"{module}.multiarray", "_reconstruct"): reconstruct,
            (f"{module}.numeric", "_frombuffer"): frombuffer,
        }
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._stand_ins = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._stand_ins:
            raise _RefusedError(f"{module}.{name}")
        return self._stand_ins[module, name]
