"""Reads and writes checkpoint files, PyTorch's and safetensors, without PyTorch and without ever running what they hold."""

import collections
import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxvqa.convert import torch_files
from jaxvqa.convert.file_kinds import ORIGINAL, unreadable
from jaxvqa.errors import CheckpointError, DataError, choose
from jaxvqa.inputs import read_json

TORCH_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".ckpt")
INDEX = ".index.json"
"""The end of the name of a file that says which tensor is in which part of a checkpoint."""

PREFIX = "module."  # put before every key by PyTorch's DataParallel
WRAPPERS = (PREFIX, "_orig_mod.", "model.", "_model.", "net.", "network.", "ema_model.", "wrapped_model.")
"""Put before every key by what a model is wrapped in: DataParallel, torch.compile, Lightning's modules, averages."""

_WITHIN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Put within keys where a part of a model is wrapped."""

COUNT = "n_averaged"
"""The one tensor of `torch.optim.swa_utils.AveragedModel` that is not the model's."""

ENTRIES = ("state_dict", "model_state", "model_state_dict", "model", "module", "network", "net", "weights", "params")
"""Usual names of the entry that holds the tensors: the first of them counts where another holds another model's."""


@dataclasses.dataclass
class TorchFile:
    """The contents of a checkpoint file.

    Attributes:
      tensors: key -> array, in the file's order, without what wrappers put before each key.
      prefixed: whether every key began with `module.`.
      extra: the other entries of the outer dict, NumPy arrays and plain Python; None when the file holds nothing but tensors.
      weights_entry: name of the outer dict's entry that holds the tensors.
      path: the file.
      notes: what a user should know of how it was read: what was left out, taken off or chosen.
      scripted: whether it is a TorchScript archive.
      config: the content of the `config.json` that belongs to it; empty without one.
    """

    tensors: dict[str, np.ndarray]
    prefixed: bool = False
    extra: dict[str, Any] | None = None
    weights_entry: str = "state_dict"
    path: Path | None = None
    notes: tuple[str, ...] = ()
    scripted: bool = False
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Source = str | Path | TorchFile
"""A file by its path, or one that has been read."""


def read(source: Source, weights_entry: str = "state_dict", *, weights: str = "", prefix: str = "") -> TorchFile:
    """Reads a checkpoint: a `.safetensors` file, what `torch.save` or `torch.jit.save` wrote, or an index of parts.

    The content says what a file is, not its name. A file of `torch.save` holds either key -> tensor, or an outer dict with
    an entry that does.

    Args:
      source: the file; one that has been read already is returned as it is.
      weights_entry: usual name of the entry that holds the tensors.
      weights: name of the entry to take, where a file has several.
      prefix: what to take off each key, besides what is known of wrappers.

    Raises:
      CheckpointError: the file is missing, damaged, something else, holds no tensors with names, or several models. Nothing
        that it names is called.
    """
    if isinstance(source, TorchFile):
        return source
    path = Path(source)
    content = _content(path)
    if not isinstance(content.value, dict):
        what = ", ".join(content.dropped) or f"one {type(content.value).__name__}"
        raise CheckpointError(f"{path} holds {what}, not a dict of tensors: {ORIGINAL}.")
    name, held, extra, notes = _choose(path, content.value, weights_entry, weights)
    inside = f"{name}." if name else ""
    lost = [what for what in content.dropped if what.startswith(inside) and _TENSOR.search(what)]
    if lost:
        raise CheckpointError(f"{path} holds tensors that are not read here: {several(lost)}.")
    other = [f"{inside}{key} ({type(value).__name__})" for key, value in held.items() if not _is_array(value)]
    if left_out := [*content.dropped, *other]:
        notes.append(f"left out, being neither tensor, number nor text: {several(left_out)}")
    tensors = {str(key): value for key, value in held.items() if _is_array(value)}
    tensors, taken_off = _bare(path, tensors, prefix, notes)
    others = {str(key): value for key, value in extra.items()} if name else None
    return TorchFile(tensors, PREFIX in taken_off, others, name or weights_entry, path, tuple(notes), content.scripted)


def write(path: str | Path, file: TorchFile) -> None:
    """Writes a checkpoint as `torch.save` or safetensors does, whole or not at all.

    safetensors keeps no order and nothing but tensors: `extra` is left out there.

    Raises:
      CheckpointError: the file's ending is not one of the known ones, or PyTorch has no such numbers.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(
            f"{path}: a checkpoint file ends in .safetensors or one of {', '.join(TORCH_SUFFIXES)}, not {path.suffix!r}."
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name the file to write.")
    prefix = PREFIX if file.prefixed else ""
    tensors = collections.OrderedDict((prefix + key, np.asarray(value)) for key, value in file.tensors.items())
    if path.suffix == ".safetensors":
        rows = {key: np.asarray(value, order="C") for key, value in tensors.items()}
        with _whole(path) as temporary:
            safetensors.numpy.save_file(rows, temporary, metadata={"format": "pt"})
        return
    content = tensors if file.extra is None else {file.weights_entry: tensors, **file.extra}
    with _whole(path) as temporary, open(temporary, "wb") as opened:
        torch_files.write(opened, content)


def number(file: TorchFile, name: str) -> int | float | None:
    """A number among the other entries of a file; None where there is none of that name.

    Raises:
      CheckpointError: the entry is something else.
    """
    value = (file.extra or {}).get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if value is not None and not isinstance(value, int | float):
        raise CheckpointError(f"{file.path}: its entry {name!r} is {str(value)[:40]!r}, not a number.")
    return value


def several(items: list[str], most: int = 10) -> str:
    """The first items, and how many more there are."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


_TENSOR = re.compile(r"\(.*(tensor|Storage|Array|Parameter).*\)$", re.IGNORECASE)
"""What was left out and is a tensor of a kind that is not read: sparse, quantised, of unknown numbers."""


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _content(path: Path) -> torch_files.Content:
    if path.name.endswith(INDEX):
        return torch_files.Content(_parts(path), ())
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    if path.suffix == ".safetensors" or (start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**27):
        return torch_files.Content(_load_safetensors(path), ())
    return torch_files.read(path)


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file() or not path.stat().st_size:
        raise unreadable(path, "checkpoint file")
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # SafetensorError, OSError, and AttributeError for numbers that NumPy has not
        raise unreadable(path, "safetensors file", str(error)) from error


def _parts(index: Path) -> dict[str, np.ndarray]:
    """The tensors of the parts that an index lists."""
    try:
        content = read_json(
            index, "an index of a checkpoint's parts, as `save_pretrained` writes", {"weight_map": {str: str}}
        )
    except DataError as error:
        raise CheckpointError(str(error)) from error
    places = content["weight_map"]
    parts = sorted(set(places.values()))
    if outside := [part for part in parts if Path(part).name != part]:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not a file beside it.")
    if missing := [part for part in parts if not (index.parent / part).is_file()]:
        raise CheckpointError(f"{index} lists parts that are not beside it: {several(missing)}. Fetch them too.")
    tensors: dict[str, np.ndarray] = {}
    for part in parts:
        held = _content(index.parent / part).value
        tensors |= held if isinstance(held, dict) else {}
    if absent := [key for key in places if key not in tensors]:
        raise CheckpointError(f"{index} lists tensors that its parts do not hold: {several(absent)}.")
    return tensors


def _candidates(content: Mapping[Any, Any], depth: int = 3) -> dict[str, Mapping[Any, Any]]:
    """The entries that hold mostly tensors, by their dotted names; the outermost on each way."""
    found: dict[str, Mapping[Any, Any]] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict):
            if _is_weights(value):
                found[key] = value
            elif depth > 1:
                found |= {f"{key}.{name}": inner for name, inner in _candidates(value, depth - 1).items()}
    return found


def _is_weights(value: Mapping[Any, Any]) -> bool:
    arrays = sum(isinstance(key, str) and _is_array(inner) for key, inner in value.items())
    return 2 * arrays > len(value)


def _choose(
    path: Path, content: dict[Any, Any], usual: str, wanted: str
) -> tuple[str, Mapping[Any, Any], Mapping[Any, Any], list[str]]:
    """The name of the entry that holds the tensors ("" for the whole), the entry, its neighbours, and notes."""
    found = _candidates(content)
    if not wanted and (_is_weights(content) or (not found and any(map(_is_array, content.values())))):
        return "", content, {}, []
    if wanted:
        if wanted not in found:
            raise CheckpointError(
                f"{path} has no entry of tensors {wanted!r}{choose(wanted, found)} Give --weights=NAME."
            )
        name = wanted
    else:
        name = next((name for name in (usual, *ENTRIES) if name in found), next(iter(found), ""))
    if not found:
        entries = [f"{key} ({type(value).__name__})" for key, value in content.items()]
        raise CheckpointError(
            f"{path} is not a checkpoint of tensors: it is empty."
            if not content
            else f"{path} is not a checkpoint of tensors: it holds {several(entries)}. Expected key -> tensor, or "
            f"{{{usual!r}: key -> tensor, …}}; {ORIGINAL}."
        )
    others = [other for other in found if other != name]
    same = [other for other in others if _share(path, found[name], found[other]) > 0.5]
    if not wanted and (same or (others and name not in (usual, *ENTRIES))):
        raise CheckpointError(
            f"{path} holds several models' weights: {', '.join([name, *(same or others)])}. Choose with --weights=NAME."
        )
    notes = [] if name in (usual, *ENTRIES) and not same else [f"weights taken from {name!r}"]
    notes += [f"entry {other!r} left out, which holds tensors too" for other in others]
    outer: Any = content
    for part in name.split(".")[:-1]:
        outer = outer[part]
    last = name.rpartition(".")[2]
    return name, found[name], {key: value for key, value in outer.items() if key != last}, notes


def _share(path: Path, ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> float:
    """The share of their tensors that we have too, whatever wrappers put before the names."""
    names = [_bare(path, {k: v for k, v in held.items() if _is_array(v)}, "", [])[0].keys() for held in (ours, theirs)]
    return len(names[0] & names[1]) / max(len(names[1]), 1)


def _bare(
    path: Path, tensors: dict[str, np.ndarray], prefix: str, notes: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors without what wrappers put before and within keys; what was taken off, which goes to the notes too."""
    if prefix and not all(key.startswith(prefix) for key in tensors):
        raise CheckpointError(
            f"{path}: not every key begins with --prefix={prefix}; the first is {next(iter(tensors))}."
        )
    taken_off: list[str] = []
    for first in (prefix,) if prefix else ():
        tensors = {key.removeprefix(first): value for key, value in tensors.items()}
        taken_off.append(first)
    while True:
        count = next((key for key in tensors if key.rpartition(".")[2] == COUNT and len(tensors) > 1), None)
        if count is not None:
            notes.append(f"the weights are an average of {int(tensors[count])} states ({count})")
            tensors = {key: value for key, value in tensors.items() if key != count}
        first = next((w for w in WRAPPERS if all(key.startswith(w) for key in tensors)), "")
        if not first:
            break
        taken_off.append(first)
        tensors = {key.removeprefix(first): value for key, value in tensors.items()}
    within = {_WITHIN.sub("", key): value for key, value in tensors.items()}
    if len(within) == len(tensors):
        tensors = within
    if taken_off and taken_off != [PREFIX]:
        notes.append(f"every key began with {''.join(taken_off)}, which was taken off")
    return tensors, taken_off


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[str]:
    """Gives a temporary name beside `path`, which replaces it once the block has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp made it private
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
