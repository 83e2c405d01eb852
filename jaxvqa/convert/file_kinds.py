"""Says what a file is that cannot be read as a checkpoint, and the way out."""

import re
from pathlib import Path

from jaxvqa.errors import CheckpointError

ORIGINAL = "load it where the original runs and save the tensors alone: torch.save(model.state_dict(), 'weights.pth')"

_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https://git-lfs",
        "is a pointer of Git LFS, not the file itself",
        "run `git lfs pull` in its repository",
    ),
    (
        rb"\s*(<!DOCTYPE html|<html|<\?xml|<head|<body)",
        "is a web page, not a checkpoint",
        "download the file that the page links to",
    ),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "is a compressed archive", "unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, as Keras and TensorFlow write", f"export it from there; {ORIGINAL}"),
    (rb"GGUF", "is a GGUF file", "take the checkpoint that it was made from"),
    (rb"\x93NUMPY", "is one NumPy array", "give a checkpoint of tensors with their names"),
    (rb"\x89PNG|\xff\xd8\xff|%PDF", "is a picture or a document", "give a checkpoint file"),
    (
        rb"(?s).{257}ustar",
        "is a tar archive",
        "unpack it first; if it is a checkpoint of before PyTorch 0.1.10, " + ORIGINAL,
    ),
    (rb"PK\x03\x04", "begins as a zip archive", "is it cut off? Fetch it again"),
    (rb"\s*[{\[]", "is a text file", "give the checkpoint file that belongs to it"),
)
"""Regular expression of a file's first bytes, what the file is, and the way out; the first that fits counts."""


def unreadable(path: Path, expected: str, why: str = "") -> CheckpointError:
    """The error for a file that is not the `expected` one.

    Args:
      path: the file.
      expected: what it should be: "checkpoint file".
      why: what went wrong when it was read.
    """
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        return CheckpointError(f"{path} is a folder, not a {expected}: name the file. The folder holds {inside}.")
    if not path.exists():
        return CheckpointError(f"There is no {expected} {path}.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return CheckpointError(f"{path} is empty (0 bytes), and not a readable {expected}: fetch it again.")
    reason = f" ({why})" if why else ""
    for beginning, what, way_out in _BEGINNINGS:
        if re.match(beginning, start, re.IGNORECASE):
            return CheckpointError(f"{path} ({size:,} bytes) {what}, and not a readable {expected}{reason}: {way_out}.")
    return CheckpointError(
        f"{path} ({size:,} bytes) is not a readable {expected}{reason}. Is it cut off? Fetch it again; or {ORIGINAL}."
    )
