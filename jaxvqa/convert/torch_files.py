"""Reads and writes PyTorch's files without PyTorch, and without ever running what they hold.

`torch.save` writes a zip archive since PyTorch 1.6, and before it a row of pickles with the numbers behind them;
`torch.jit.save` writes an archive of another layout. In all of them a pickle says which tensors there are and where their
numbers lie; it is read by `jaxvqa/convert/closed_pickle.py`. Arrays are views of the file's bytes in memory.
"""

import dataclasses
import io
import math
import mmap
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jaxvqa.convert.closed_pickle import NAMES, Array, Foreign, Name, PickleError, load
from jaxvqa.convert.file_kinds import unreadable
from jaxvqa.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
ALIGNMENT = 64
"""Bytes to which PyTorch aligns each tensor of an archive."""

STORAGES: Mapping[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
"""PyTorch's class of a row of numbers -> the type of the numbers."""

DTYPES: Mapping[str, Any] = {
    **{
        name: getattr(np, name)
        for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
    },
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
    **{name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")},
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}
"""PyTorch's name of a type of numbers -> ours."""

_Declared = Mapping[str, tuple[list[str], ...]]

MAX_ENTRIES = 4_000_000
"""So many entries a file's containers may have together: a small pickle may name one list in many others."""


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
      value: NumPy arrays (views of the file, read-only), numbers, texts, None, lists, tuples and dicts of them; of a module,
        its tensors as its `state_dict()` gives them.
      dropped: what else it holds, and was left out: "args (argparse.Namespace)".
      scripted: whether it is a TorchScript archive.
    """

    value: Any
    dropped: tuple[str, ...]
    scripted: bool = False


@dataclasses.dataclass(eq=False)
class _Storage:
    """A row of numbers in the file, or a part of one.

    Attributes:
      key: its name in the file.
      dtype: the type of its numbers.
      size: how many.
      offset: where a part begins in the whole row.
    """

    key: str
    dtype: np.dtype
    size: int
    offset: int = 0


@dataclasses.dataclass(eq=False)
class _Tensor:
    """Stands for a tensor: which numbers of which storage, not yet looked at."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any = None

    def get(self, numbers: np.ndarray) -> np.ndarray:
        """The array, a view of its storage's `numbers`; raises PickleError where it does not lie within them."""
        sizes, strides, offset = self.size, self.stride, self.offset
        if not isinstance(sizes, tuple | list) or not isinstance(strides, tuple | list) or len(sizes) != len(strides):
            raise PickleError("a tensor without shape or strides")
        if not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *sizes, *strides)) or len(sizes) > 64:
            raise PickleError("a tensor whose shape, strides or offset are not sizes")
        if self.dtype is not None:
            numbers = numbers[: len(numbers) // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        count = math.prod(sizes)
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if count else 0
        if last >= len(numbers) and count:
            raise PickleError(f"a tensor {list(sizes)} that reaches beyond its {len(numbers)} numbers")
        if count > max(len(numbers), 2**24):  # repeated by strides of 0
            raise PickleError(f"a tensor {list(sizes)} of only {len(numbers)} numbers")
        steps = [step * numbers.itemsize for step in strides]
        start = numbers[offset:] if count else numbers[:0]
        return np.lib.stride_tricks.as_strided(start, tuple(sizes), steps, writeable=False)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    metadata = rest[2] if len(rest) > 2 else None
    if metadata:
        raise PickleError(f"a tensor that is still to be changed: {str(metadata)[:40]}")
    return _Tensor(storage, offset, size, stride)


def _rebuild_typed(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Any:
    found = DTYPES.get(dtype.name.removeprefix("torch.")) if isinstance(dtype, Name) else None
    if found is None:
        return Foreign(f"tensor of {getattr(dtype, 'name', dtype)}")
    return dataclasses.replace(_rebuild(storage, offset, size, stride, grad, hooks, *rest), dtype=np.dtype(found))


def _of_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a class of its own, such as a buffer."""
    if not isinstance(rebuild, Name) or rebuild.make is None or not isinstance(arguments, tuple):
        return Foreign(getattr(rebuild, "name", "tensor"))
    return rebuild.make(*arguments)


_TORCH_NAMES: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": lambda sizes=(): tuple(sizes),
    **{
        f"torch.jit._pickle.{name}": lambda values, *kind: values
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    NotImplementedError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
)
"""What `zipfile` raises for damaged archives, besides its own error."""


def read(path: str | Path) -> Content:
    """Reads what `torch.save` or `torch.jit.save` wrote, or a pickle of NumPy arrays.

    Raises:
      CheckpointError: the file is missing, is something else, or damaged. Nothing that it names is called.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        raise unreadable(path, "checkpoint file")
    try:
        content = _in_memory(path)
        if content[:4] == b"PK\x03\x04":
            return _read_archive(path, content)
        return _read_row(content)
    except RecursionError:
        raise unreadable(path, "checkpoint file", "its containers are nested too deep") from None
    except (PickleError, *_DAMAGE) as error:
        raise unreadable(path, "checkpoint file", str(error)) from error


def _in_memory(path: Path) -> mmap.mmap:
    """The file's bytes in memory of our own: to map the file itself would end the process when someone cuts it off."""
    size = path.stat().st_size
    content = mmap.mmap(-1, size)
    with path.open("rb") as file:
        found = 0
        while more := file.readinto(memoryview(content)[found:]):
            found += more
    if found != size:
        raise PickleError(f"{found} bytes could be read of {size}: it changes while it is read")
    return content


def _persistent(storages: dict[str, _Storage]) -> Callable[[Any], Any]:
    """What stands for a persistent id: a storage, noted in `storages`, or a module's class."""

    def make(saved: Any) -> Any:
        if not isinstance(saved, tuple) or len(saved) < 2:
            raise PickleError("an object that is stored elsewhere")
        if saved[0] == "module":  # a class with the text of its program
            return saved[1]
        _, kind, key, _, size, *view = saved
        name = kind.name.rpartition(".")[2] if isinstance(kind, Name) and kind.name.startswith("torch.") else ""
        if saved[0] != "storage" or not isinstance(key, str | int) or type(size) is not int or not 0 <= size < 2**62:
            raise PickleError("a storage in an unknown form")
        if name not in STORAGES:
            return Foreign(getattr(kind, "name", "storage"))
        whole = _Storage(str(key), np.dtype(STORAGES[name]), size)
        if storages.setdefault(whole.key, whole).size != size:
            raise PickleError(f"two sizes of the storage {key}")
        if view and view[0] is not None:
            _, offset, count = view[0]
            if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= size:
                raise PickleError(f"a part of the storage {key} that it does not have")
            return dataclasses.replace(whole, size=count, offset=offset)
        return whole

    return make


def _read_archive(path: Path, content: mmap.mmap) -> Content:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive without data.pkl, not one of torch.save or torch.jit.save: "
            f"it holds {', '.join(list(records)[:5]) or 'nothing'}."
        )
    folder = pickles[0].removesuffix("data.pkl")

    def place(name: str) -> slice:
        info = records.get(folder + name)
        if info is None:
            raise PickleError(f"no {folder}{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"{folder}{name} is compressed, which PyTorch never does; zip the files with -0")
        lengths = content[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        if start + info.file_size > len(content):
            raise PickleError(f"{folder}{name} is cut off")
        return slice(start, start + info.file_size)

    order = bytes(content[place("byteorder")]) if folder + "byteorder" in records else b"little"
    if order not in (b"little", b"big"):
        raise PickleError(f"the order of bytes is {order[:20]!r}")
    whole = memoryview(content)

    def numbers(storage: _Storage) -> np.ndarray:
        row = whole[place(f"data/{storage.key}")]
        return _numbers(row, storage, "<" if order == b"little" else ">")

    root = load(io.BytesIO(content[place("data.pkl")]), _names(), _persistent({}))
    scripted = folder + "constants.pkl" in records
    if scripted and not is_module(root):
        raise PickleError("a TorchScript archive whose module holds no tensors: it was frozen")
    plain = _plain(root, numbers, _declared(path, records, folder + "code/") if scripted else {})
    return dataclasses.replace(plain, scripted=scripted)


_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  __\w+__ = .*\n)*)", re.MULTILINE)
_DECLARED = re.compile(r"^  __(parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)
MAX_CODE = 2**24
"""Bytes of program that are looked through for the names of a TorchScript module's parameters and buffers."""


def _declared(path: Path, records: Mapping[str, zipfile.ZipInfo], folder: str) -> _Declared:
    """The names of each TorchScript class's parameters and of its buffers, by its name, as its program lists them."""
    result: dict[str, tuple[list[str], ...]] = {}
    left = MAX_CODE
    with zipfile.ZipFile(path) as archive:
        for name in records:
            if name.startswith(folder) and name.endswith(".py"):
                with archive.open(name) as record:
                    text = record.read(left + 1)
                left -= len(text)
                if left < 0:
                    raise PickleError(f"more than {MAX_CODE} bytes of program")
                module = name.removeprefix(folder).removesuffix(".py").replace("/", ".")
                for found in _CLASS.finditer(text.decode("utf-8", "replace")):
                    lists = {kind: re.findall(r'"([^"]+)"', names) for kind, names in _DECLARED.findall(found[2])}
                    if "buffers" in lists:  # versions before 1.6 list the parameters only
                        result[f"{module}.{found[1]}"] = lists.get("parameters", []), lists["buffers"]
    return result


def _names() -> Mapping[str, Callable[..., Any]]:
    return {**NAMES, **_TORCH_NAMES}


def _numbers(row: memoryview, storage: _Storage, order: Literal["<", ">"]) -> np.ndarray:
    """A storage's numbers from its bytes, in this machine's order."""
    size = storage.dtype.itemsize
    if len(row) < (storage.offset + storage.size) * size:
        raise PickleError(f"the storage {storage.key} has {len(row)} bytes, not {storage.size} x {size}")
    # bfloat16 and its kin have no order of bytes in NumPy: they are turned as integers.
    as_integers = np.dtype(f"u{size}") if storage.dtype.kind == "V" and size > 1 else storage.dtype
    found = np.frombuffer(row, as_integers.newbyteorder(order), storage.size, storage.offset * size)
    if found.dtype.byteorder == (">" if sys.byteorder == "little" else "<"):
        found = found.astype(as_integers)
    return found.view(storage.dtype)


def _read_row(content: mmap.mmap) -> Content:
    """Reads the form before 1.6: magic number, protocol, machine, object, the storages' keys, and their numbers."""
    first = load(content, _names())
    if first != _MAGIC:
        return _plain(first, lambda storage: np.empty(0))  # NumPy arrays; there is no storage without a persistent id
    if (protocol := load(content)) != 1001:
        raise PickleError(f"the protocol {protocol}, not 1001")
    load(content)  # of the machine that wrote it: the numbers are in little-endian order whatever it is
    storages: dict[str, _Storage] = {}
    root = load(content, _names(), _persistent(storages))
    keys = load(content)
    if not isinstance(keys, list):
        raise PickleError("no list of storages")
    rows: dict[str, memoryview] = {}
    whole, place = memoryview(content), content.tell()
    for key in map(str, keys):
        if key not in storages:
            raise PickleError(f"a storage {key[:40]} that no tensor has")
        (size,) = struct.unpack("<q", whole[place : place + 8])
        length = size * storages[key].dtype.itemsize
        if size < 0 or place + 8 + length > len(whole):
            raise PickleError(f"it ends within the storage {key[:40]}")
        rows[key] = whole[place + 8 : place + 8 + length]
        place += 8 + length
    if missing := storages.keys() - rows.keys():
        raise PickleError(f"no numbers of the storage {next(iter(missing))[:40]}")
    return _plain(root, lambda storage: _numbers(rows[storage.key], storage, "<"))


# --- stand-ins to arrays and plain Python ----------------------------------------------------------------------------------


def _plain(root: Any, numbers: Callable[[_Storage], np.ndarray], declared: _Declared | None = None) -> Content:
    made = _Plain(numbers, declared or {})
    value = made.value(root, "")
    return Content(None if value is _DROPPED else value, tuple(made.dropped))


_DROPPED = object()


class _Plain:
    """Turns what the pickle's stand-ins say into arrays and plain Python."""

    def __init__(self, numbers: Callable[[_Storage], np.ndarray], declared: _Declared) -> None:
        self.numbers, self.declared = numbers, declared
        self.rows: dict[tuple[str, int, int], np.ndarray] = {}
        self.dropped: list[str] = []
        self.count = 0

    def value(self, item: Any, path: str) -> Any:
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise PickleError(f"more than {MAX_ENTRIES:,} entries, or a container within itself")
        if isinstance(item, str | int | float | None):
            return item
        if isinstance(item, _Tensor):
            if isinstance(item.storage, _Storage):
                return self.tensor(item, path)
            return self.drop(item.storage, path)
        if isinstance(item, Array):
            try:
                return item.get()
            except PickleError:
                return self.drop(item, path)
        if isinstance(item, dict):
            return self.entries(item.items(), path)
        if isinstance(item, list | tuple | set):
            values = [self.value(inner, f"{path}[{i}]") for i, inner in enumerate(item)]
            values = [None if inner is _DROPPED else inner for inner in values]  # the others keep their places
            return tuple(values) if isinstance(item, tuple) else values
        if is_module(item):
            return self.entries(self.module(item, ""), path)
        return self.drop(item, path)

    def entries(self, items: Iterable[tuple[Any, Any]], path: str) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, inner in items:
            if isinstance(key, Name | Foreign):
                self.drop(key, path)
                continue
            value = self.value(inner, f"{path}.{key}" if path else str(key))
            if value is not _DROPPED:
                result[key] = value
        return result

    def module(self, module: Foreign, prefix: str) -> Iterator[tuple[str, Any]]:
        """A module's tensors as `state_dict()` gives them: its own parameters, its own buffers, those of the modules in it."""
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise PickleError("a module within itself")
        state = module.state
        if "_modules" in state:  # a pickled one
            left_out = state.get("_non_persistent_buffers_set") or ()
            buffers = {name: v for name, v in _dict_of(state.get("_buffers")).items() if name not in left_out}
            own, inner = _dict_of(state.get("_parameters")) | buffers, _dict_of(state["_modules"])
        else:
            names = [n for names in self.declared.get(module.name, (state,)) for n in state if n in names]
            own, inner = {name: state[name] for name in names}, state
        yield from ((f"{prefix}{name}", value) for name, value in own.items() if isinstance(value, _Tensor))
        for name, value in inner.items():
            if is_module(value):
                yield from self.module(value, f"{prefix}{name}.")

    def tensor(self, tensor: _Tensor, path: str) -> np.ndarray:
        storage = tensor.storage
        key = (storage.key, storage.offset, storage.size)
        if key not in self.rows:  # tensors of one storage stay views of one memory
            self.rows[key] = self.numbers(storage)
        try:
            return tensor.get(self.rows[key])
        except PickleError as error:
            raise PickleError(f"{path}: {error}") from None

    def drop(self, item: Any, path: str) -> Any:
        kind = item.name if isinstance(item, Name | Foreign) else type(item).__name__.lstrip("_")
        self.dropped.append(f"{path or 'all of it'} ({kind})")
        return _DROPPED


def is_module(item: Any) -> bool:
    """Whether it stands for a module: of TorchScript, or a pickled one."""
    if not isinstance(item, Foreign) or not isinstance(item.state, dict):
        return False
    scripted = item.name.startswith("__torch__.") and "training" in item.state
    return scripted or "_modules" in item.state


def _dict_of(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


# --- writing ---------------------------------------------------------------------------------------------------------------


def write(file: Any, content: Any) -> None:
    """Writes what `torch.load(weights_only=True)` reads: the same content gives the same bytes.

    Arrays of one memory become tensors of one storage.

    Args:
      file: the file, opened for writing bytes.
      content: dicts, lists, tuples, texts, numbers, None, and NumPy arrays.

    Raises:
      CheckpointError: it holds something else; says where.
    """
    writer = _Writer()
    writer.put(content, "")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", b"\x80\x02" + b"".join(writer.parts) + b".")
        _add(archive, ".format_version", b"1")
        _add(archive, ".storage_alignment", str(ALIGNMENT).encode())
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(writer.storages):
            little = array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"), copy=False)
            _add(archive, f"data/{key}", memoryview(little.reshape(-1).view(np.uint8)))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Adds a record whose content begins at a multiple of `ALIGNMENT`."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(content)
    large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides it, which then writes 20 bytes more
    begin = archive.fp.tell() + 30 + len(info.filename) + 20 * large  # type: ignore[union-attr]
    padding = -(begin + 4) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    with archive.open(info, "w") as record:
        record.write(content)


_STORAGE_OF = {np.dtype(kind): name for name, kind in STORAGES.items() if name != "UntypedStorage"}


class _Writer:
    """Writes the pickle; it names PyTorch's functions without having them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.storages: list[np.ndarray] = []
        self.keys: dict[tuple[int, int, np.dtype], int] = {}

    def put(self, value: Any, path: str) -> None:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            self.parts.append(pickle.dumps(value, 2)[2:-1])
        elif isinstance(value, np.ndarray):
            self.tensor(value, path)
        elif isinstance(value, Mapping):
            self.parts.append(b"}(" if type(value) is dict else b"ccollections\nOrderedDict\n)R(")
            for key, inner in value.items():
                self.put(key, path)
                self.put(inner, f"{path}.{key}")
            self.parts.append(b"u")
        elif isinstance(value, list | tuple):
            self.parts.append(b"](" if isinstance(value, list) else b"(")
            for i, inner in enumerate(value):
                self.put(inner, f"{path}[{i}]")
            self.parts.append(b"e" if isinstance(value, list) else b"t")
        else:
            raise CheckpointError(f"A {type(value).__name__} cannot be written to a checkpoint: {path.lstrip('.')}.")

    def tensor(self, array: np.ndarray, path: str) -> None:
        native = array.dtype.newbyteorder("=") if array.dtype.kind != "V" else array.dtype
        if native not in _STORAGE_OF:
            raise CheckpointError(f"PyTorch's files have no numbers of type {array.dtype}: {path.lstrip('.')}.")
        array = np.asarray(array, native, order="C")
        place = (array.__array_interface__["data"][0], array.size, array.dtype)
        if place not in self.keys or not array.size:
            self.keys[place] = len(self.storages)
            self.storages.append(array)  # also keeps the memory from being used again
        strides = [step // array.itemsize for step in array.strides]
        self.parts += [b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"]
        self.parts += [b"ctorch\n%s\n" % _STORAGE_OF[array.dtype].encode()]
        self.put(str(self.keys[place]), path)
        self.put("cpu", path)
        self.put(array.size, path)
        self.parts.append(b"tQK\x00")
        self.put(tuple(array.shape), path)
        self.put(tuple(strides), path)
        self.parts.append(b"\x89ccollections\nOrderedDict\n)Rt" + b"R")
