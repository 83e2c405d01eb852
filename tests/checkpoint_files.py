"""PyTorch's files for tests, without PyTorch."""

from pathlib import Path
from typing import Any

from jaxvqa.convert import torch_files


def save(content: Any, path: Path) -> None:
    """Writes NumPy arrays in dicts and lists as `torch.save` writes tensors."""
    with path.open("wb") as file:
        torch_files.write(file, content)


def load(path: Path) -> Any:
    """Reads such a file as `torch.load` does, with NumPy arrays for tensors."""
    return torch_files.read(path).value
