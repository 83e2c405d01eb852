"""Reads and writes PyTorch checkpoint files without ever running what they hold.

Needs the extra `convert` (torch, safetensors).
"""

import collections
import contextlib
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvqa.errors import CheckpointError

TORCH_SUFFIXES = (".pth", ".pt", ".pkl", ".bin")
PREFIX = "module."  # put before every key by PyTorch's DataParallel


@dataclasses.dataclass
class TorchFile:
    """The contents of a checkpoint file.

    Attributes:
      tensors: key -> array, in the file's order, without the prefix `module.`.
      prefixed: whether every key had that prefix.
      extra: the other entries of the outer dict, as they are (torch tensors inside); None when the file holds nothing
        but tensors.
      weights_entry: name of the outer dict's entry that holds the tensors.
    """

    tensors: dict[str, np.ndarray]
    prefixed: bool = False
    extra: dict[str, Any] | None = None
    weights_entry: str = "state_dict"


def read(path: str | Path, weights_entry: str = "state_dict") -> TorchFile:
    """Reads a `.safetensors` file, or one written by `torch.save`.

    A `torch.save` file holds either key -> tensor, or an outer dict whose entry `weights_entry` does.

    Raises:
      CheckpointError: the file is missing, corrupt, or holds anything else than tensors, numbers, texts and
        containers of them. Such a file is not unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}.")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds one {type(content).__name__}, not a dict of tensors. Save `model.state_dict()`, not the model."
        )
    extra = None
    if weights_entry in content and isinstance(content[weights_entry], Mapping):
        extra = {str(key): value for key, value in content.items() if key != weights_entry}
        content = content[weights_entry]
    foreign = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not _is_array(value)]
    if foreign or not content:
        what = f"besides tensors it holds {', '.join(foreign[:5])}" if foreign else "it is empty"
        raise CheckpointError(
            f"{path} is no checkpoint of tensors: {what}. Expected key -> tensor, or {{{weights_entry!r}: key -> tensor, …}}."
        )
    tensors = {str(key): to_numpy(value) for key, value in content.items()}
    prefixed = all(key.startswith(PREFIX) for key in tensors)
    if prefixed:
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    return TorchFile(tensors, prefixed, extra, weights_entry)


def write(path: str | Path, file: TorchFile) -> None:
    """Writes a checkpoint as `torch.save` or safetensors does, whole or not at all.

    safetensors keeps no order and nothing but tensors: `extra` is left out there.

    Raises:
      CheckpointError: the file's ending is none of the known ones.
    """
    path = Path(path)
    prefix = PREFIX if file.prefixed else ""
    if path.suffix == ".safetensors":
        import safetensors.numpy

        with _whole(path) as temporary:
            safetensors.numpy.save_file(
                {prefix + key: np.asarray(value, order="C") for key, value in file.tensors.items()},
                temporary,
                metadata={"format": "pt"},
            )
    elif path.suffix in TORCH_SUFFIXES:
        import torch

        tensors = collections.OrderedDict((prefix + key, to_tensor(value)) for key, value in file.tensors.items())
        content = tensors if file.extra is None else {file.weights_entry: tensors, **file.extra}
        with _whole(path) as temporary:
            torch.save(content, temporary)
    else:
        raise CheckpointError(
            f"{path}: a checkpoint file ends in .safetensors or one of {', '.join(TORCH_SUFFIXES)}, not {path.suffix!r}."
        )


def to_numpy(value: Any) -> np.ndarray:
    """Turns a torch tensor or an array into an array; bfloat16 stays bfloat16."""
    if isinstance(value, np.ndarray):
        return value
    import ml_dtypes
    import torch

    value = value.detach().contiguous()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def to_tensor(value: np.ndarray) -> Any:
    """Turns an array into a torch tensor of its own memory; bfloat16 stays bfloat16."""
    import torch

    value = np.array(value, order="C")  # a copy: arrays that come from JAX are read-only
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return True
    import torch

    return isinstance(value, torch.Tensor)


def _load_torch(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to: RuntimeError, EOFError, KeyError, …
        first = (str(error).splitlines() or [type(error).__name__])[0]
        if "Weights only load failed" in str(error):
            raise CheckpointError(
                f"{path} is damaged, or it holds objects other than tensors, and loading those could run any code. If "
                "you trust the file, load it where the original runs and save the tensors alone: "
                "torch.save(model.state_dict(), 'weights.pth')."
            ) from error
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is no readable torch.save file: {first}. Is it cut off, or a pointer "
            "file of Git LFS? Fetch it again."
        ) from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is no readable safetensors file: {error}. Is it cut off, or a pointer "
            "file of Git LFS? Fetch it again."
        ) from error


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
