"""What builders ask of picture files."""

from pathlib import Path

from PIL import Image


def picture_size(path: Path) -> tuple[int, int] | None:
    """Returns (width, height) of a picture; None if the file is none."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError:
        return None
