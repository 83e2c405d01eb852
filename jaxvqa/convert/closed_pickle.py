"""Reads pickles without letting the file run anything.

A pickle may name any function and have it called, and may set attributes of whatever it holds. Here the standard library only
splits the file into its operations (`pickletools.genops`); what they do is written below, over lists, dicts and stand-ins of
ours. A name leads to a stand-in of the reader's table; every other name becomes a `Foreign`, of which nothing is made.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_KEY_DEPTH = 8
"""Keys of dicts may be tuples, nested so deep: Python computes their hashes in C, which a deep enough tuple ends."""


class PickleError(Exception):
    """The pickle is damaged, or does what no file of arrays needs."""


@dataclasses.dataclass(eq=False)
class Name:
    """A name in a pickle, such as `collections.OrderedDict`, and what stands for calling it; None for one that is not known."""

    name: str
    make: Callable[..., Any] | None = None


@dataclasses.dataclass(eq=False)
class Foreign:
    """Stands for an object of a class that is not known: its class's name and its state; nothing of it was made."""

    name: str
    state: Any = None

    def build(self, state: Any) -> None:
        """Notes the object's state."""
        self.state = state


@dataclasses.dataclass(eq=False)
class Dtype:
    """Stands for NumPy's type of numbers, such as 'f4'; the byte order comes as its state."""

    name: Any
    order: Any = "="

    def build(self, state: Any) -> None:
        """Notes the byte order: the state's other entries are of structured types only."""
        self.order = state[1]

    def get(self) -> np.dtype:
        """The type; raises PickleError for one that is not of plain numbers."""
        known = [f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)] + ["b1", "c8", "c16"]
        if self.name not in known or self.name == "f1" or self.order not in ("<", ">", "=", "|"):
            raise PickleError(f"an array of {str(self.name)[:20]!r}, not of plain numbers")
        return np.dtype(self.name).newbyteorder(self.order)


@dataclasses.dataclass(eq=False)
class Array:
    """Stands for NumPy's array: what its state says, not yet looked at."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    data: Any = None

    def build(self, state: Any) -> None:
        """Notes shape, type and bytes."""
        _, self.shape, self.dtype, self.fortran, self.data = state

    def get(self) -> np.ndarray:
        """The array; raises PickleError where shape, type and bytes do not fit each other."""
        shape, data = self.shape, _bytes(self.data)
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise PickleError(f"an array of the shape {str(shape)[:40]}")
        if not isinstance(self.dtype, Dtype) or not isinstance(data, bytes | bytearray):
            raise PickleError("an array without its type or its bytes")
        dtype = self.dtype.get()
        if math.prod(shape) * dtype.itemsize != len(data):
            raise PickleError(f"an array of the shape {list(shape)} and type {dtype} with {len(data)} bytes")
        flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(shape, order="F" if self.fortran else "C")


def _bytes(data: Any) -> Any:
    """Python 2 wrote bytes as text of one letter a byte."""
    return data.encode("latin1") if isinstance(data, str) else data


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, Dtype):
        raise PickleError("a number without its type")
    return Array((), dtype, False, data).get().item()


def _never(*arguments: Any) -> Any:
    raise PickleError("a call of something that is only named")


def _encode(text: Any, encoding: Any) -> bytes:  # bytes in protocols 0 to 2
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("bytes in an unknown form")
    return text.encode("latin1")


def _dict(*content: Any) -> dict[Any, Any]:
    """OrderedDict and its kin: with nothing, pairs or a dict; a default's factory is passed over."""
    result: dict[Any, Any] = {}
    if content and isinstance(content[-1], list | dict):
        pairs = content[-1].items() if isinstance(content[-1], dict) else content[-1]
        for key, value in pairs:
            result[_key(key)] = value
    return result


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in items}


def _reconstructor(kind: Any, base: Any, state: Any) -> Foreign:  # objects in protocols 0 and 1
    return Foreign(kind.name if isinstance(kind, Name) else str(type(kind).__name__))


_ARRAYS: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": lambda kind, shape, typecode: Array(),  # the state that follows says it all
    "multiarray.scalar": _scalar,
    # protocol 5
    "numeric._frombuffer": lambda data, dtype, shape, order: Array(shape, dtype, order == "F", data),
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "set": _set,
    "frozenset": _set,
    "bytes": lambda *nothing: b"",
    "bytearray": lambda text="", encoding="latin1": bytearray(_encode(text, encoding)),
}
NAMES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _encode,
    "numpy.ndarray": _never,
    "numpy.dtype": lambda name, align=False, copy=True: Dtype(name),
    # before NumPy 2 and since
    **{f"{module}.{name}": make for module in ("numpy.core", "numpy._core") for name, make in _ARRAYS.items()},
    **{f"{module}.{name}": make for module in ("builtins", "__builtin__") for name, make in _BUILTINS.items()},
    **{f"{module}._reconstructor": _reconstructor for module in ("copyreg", "copy_reg")},
}
"""Name -> what stands for calling it: containers, and NumPy's arrays and numbers."""

_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_MARKED: Mapping[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": _set,
    "DICT": lambda items: _dict(list(zip(items[::2], items[1::2], strict=True))),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def load(stream: Any, names: Mapping[str, Callable[..., Any]] = NAMES, persistent: Any = None) -> Any:
    """Reads one pickle from a stream, which then stands behind it.

    Args:
      stream: a binary stream.
      names: `module.name` -> what stands for calling it.
      persistent: makes the value of a persistent id; without, there must be none.

    Returns:
      Numbers, texts, bytes, lists, tuples, dicts, sets, and stand-ins: what `names` made, `Array`, `Name` and `Foreign`.

    Raises:
      PickleError: the pickle is damaged, or does what no file of arrays needs.
    """
    try:
        return _Machine(names, persistent).run(stream)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        # What damage leads to, here and in genops: no operation of that number, an empty stack, wrong arguments.
        raise PickleError(str(error) or type(error).__name__) from error


class _Machine:
    def __init__(self, names: Mapping[str, Callable[..., Any]], persistent: Any) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Any) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _MARKED:
                self.stack.append(_MARKED[name](self.marked()))
            elif name in _TUPLES:
                items = [self.stack.pop() for _ in range(_TUPLES[name])]
                self.stack.append(tuple(reversed(items)))
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                if not hasattr(self, name):
                    raise PickleError(f"the operation {name}")
                getattr(self, name)(argument)
        raise PickleError("no end")

    def marked(self) -> list[Any]:
        """Takes what is on the stack above the last mark, and the mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:  # ends with an IndexError where there is none
            place -= 1
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise PickleError("a call of something that is not a name")
        return Foreign(called.name) if called.make is None else called.make(*arguments)

    def named(self, name: str) -> Name:
        return Name(name, self.names.get(name))

    # The operations, by the names that pickletools gives them.

    def MARK(self, _: Any) -> None:  # noqa: N802
        self.stack.append(_MARK)

    def POP(self, _: Any) -> None:  # noqa: N802
        self.stack.pop()

    def POP_MARK(self, _: Any) -> None:  # noqa: N802
        self.marked()

    def DUP(self, _: Any) -> None:  # noqa: N802
        self.stack.append(self.stack[-1])

    def PUT(self, place: Any) -> None:  # noqa: N802
        self.memo[place] = self.stack[-1]

    def GET(self, place: Any) -> None:  # noqa: N802
        self.stack.append(self.memo[place])

    BINPUT = LONG_BINPUT = PUT
    BINGET = LONG_BINGET = GET

    def MEMOIZE(self, _: Any) -> None:  # noqa: N802
        self.PUT(len(self.memo))

    def APPEND(self, _: Any) -> None:  # noqa: N802
        self.extend([self.stack.pop()])

    def APPENDS(self, _: Any) -> None:  # noqa: N802
        self.extend(self.marked())

    ADDITEMS = APPENDS

    def extend(self, items: list[Any]) -> None:
        holder = self.stack[-1]
        if isinstance(holder, set):
            holder |= _set(items)
        elif isinstance(holder, list):
            holder += items
        elif not isinstance(holder, Foreign):
            raise PickleError("items of something that is not a list")

    def SETITEM(self, _: Any) -> None:  # noqa: N802
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def SETITEMS(self, _: Any) -> None:  # noqa: N802
        self.update(self.marked())

    def update(self, items: list[Any]) -> None:
        holder = self.stack[-1]
        if isinstance(holder, dict):
            holder |= _dict(list(zip(items[::2], items[1::2], strict=True)))
        elif not isinstance(holder, Foreign):
            raise PickleError("entries of something that is not a dict")

    def GLOBAL(self, argument: Any) -> None:  # noqa: N802
        self.stack.append(self.named(argument.replace(" ", ".")))

    def STACK_GLOBAL(self, _: Any) -> None:  # noqa: N802
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name that is not a text")
        self.stack.append(self.named(f"{module}.{name}"))

    def INST(self, argument: Any) -> None:  # noqa: N802
        arguments = tuple(self.marked())
        self.stack.append(self.call(self.named(argument.replace(" ", ".")), arguments))

    def OBJ(self, _: Any) -> None:  # noqa: N802
        called, *arguments = self.marked()
        self.stack.append(self.call(called, tuple(arguments)))

    def REDUCE(self, _: Any) -> None:  # noqa: N802
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(called, arguments))

    NEWOBJ = REDUCE

    def NEWOBJ_EX(self, _: Any) -> None:  # noqa: N802
        self.stack.pop()  # arguments by name, which no stand-in needs
        self.REDUCE(_)

    def BUILD(self, _: Any) -> None:  # noqa: N802
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Foreign | Array | Dtype):
            built.build(state)
        elif not isinstance(built, dict):  # attributes of an OrderedDict, such as a state_dict's `_metadata`
            raise PickleError("a state of something that has none")

    def BINPERSID(self, _: Any) -> None:  # noqa: N802
        if self.persistent is None:
            raise PickleError("an object that is stored elsewhere")
        self.stack.append(self.persistent(self.stack.pop()))


def _key(key: Any, depth: int = 0) -> Any:
    """A key of a dict or member of a set, if its hash costs nothing; raises PickleError otherwise."""
    if isinstance(key, tuple) and depth < MAX_KEY_DEPTH and len(key) < 100:
        for part in key:
            _key(part, depth + 1)
    elif not isinstance(key, str | int | float | bytes | Name | Foreign | None):
        raise PickleError(f"a key that is a {type(key).__name__}")
    return key
