"""What a user gives to be asked about: images in any form, and tables of images and questions."""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvqa.data import pictures
from jaxvqa.data.tables import read_rows
from jaxvqa.errors import DataError, os_errors
from jaxvqa.inputs import expand_home

Given = str | Path | bytes | Image.Image | np.ndarray
"""An image as a program may have it: a path, an encoded file, Pillow's, or an array (see `encoded`)."""

COLUMNS = ("image", "question", "regions")
"""What is read of a table: paths from its own folder on; the first has to be there."""

ARRAYS = {"uint8": (1, 3, 4), "bool": (1,), "uint16": (1,), "float32": (1,), "float64": (1,)}
"""Type of an array -> the channels it may have."""


@dataclass(frozen=True)
class Question:
    """One question about one image, as it was given.

    Attributes:
      image: the image.
      question: the text; empty for none.
      regions: the file of the image's regions; empty for none.
      where: the table and the row that it stands in; empty for none.
    """

    image: Given
    question: str = ""
    regions: str | Path = ""
    where: str = ""

    @property
    def name(self) -> str:
        """How results and messages call the image."""
        return str(self.image) if isinstance(self.image, str | Path) else "the image"


def encoded(image: Given) -> bytes:
    """An image as an encoded file: that of a path, the bytes themselves, or a PNG with the same pixels.

    Arrays are uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; or bool, uint16, or floats from 0 to 1, [H, W] or [H, W, 1].
    What is not 8-bit grey or RGB becomes that by the rules of `jaxvqa.data.pictures`.

    Raises:
      DataError: the array is none of these, or the image has no rule; without the image's name.
      UserError: there is no such file.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        path = Path(expand_home(str(image)))
        with os_errors(path, "an image"):
            return path.read_bytes()
    buffer = io.BytesIO()
    pictures.eight_bit(_of_array(image) if isinstance(image, np.ndarray) else image.copy()).save(buffer, "PNG")
    return buffer.getvalue()


def _of_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or not array.size or channels not in ARRAYS.get(array.dtype.name, ()):
        raise DataError(
            f"is an array of {array.dtype.name} {list(array.shape)}; expected uint8 [H, W], [H, W, 3] or [H, W, 4], or bool, "
            "uint16 or floats from 0 to 1 [H, W]"
        )
    array = array.reshape(array.shape[:2]) if channels == 1 else array
    return Image.fromarray(array.astype(np.float32) if array.dtype.kind == "f" else np.ascontiguousarray(array))


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, by their names' endings, in the order of the names.

    Raises:
      DataError: there is none.
    """
    with os_errors(folder, "a folder of images"):
        found = sorted(path for path in folder.iterdir() if path.is_file() and is_image_name(path))
    if not found:
        raise DataError(f"{folder} holds no image: expected files such as .png, .jpg or .tif in it.")
    return found


def is_image_name(path: Path) -> bool:
    """Whether a file's name ends as those of images do, and is not hidden."""
    return path.suffix.lower() in pictures.endings() and not path.name.startswith(".")


def read_table(path: Path) -> list[Question]:
    """The rows of a table of images and questions: .csv with a header, .jsonl with an object a line, or .parquet.

    Raises:
      DataError: it cannot be read, has no row, or rows without an image or that cannot be read; lists all.
    """
    found, faults = [], []
    for where, row in read_rows(path, dict.fromkeys(COLUMNS, str), COLUMNS[:1]):
        if isinstance(row, DataError):
            faults.append(str(row))
        elif not row.get("image"):
            faults.append(f"{where}: no image")
        else:
            image, regions = (
                path.parent / expand_home(row[name]) if row.get(name) else "" for name in ("image", "regions")
            )
            found.append(Question(image, row.get("question") or "", regions, where))
    if faults:
        raise DataError(f"{path} cannot be asked about:\n  " + "\n  ".join(faults))
    if not found:
        raise DataError(
            f"{path} has no row: expected the columns {', '.join(COLUMNS)}, the last one only if there are any."
        )
    return found


def pairs(images: Sequence[Given], questions: Sequence[str], regions: Path | None = None) -> list[Question]:
    """Every question about every image.

    Args:
      images: the images.
      questions: the questions; none for images alone.
      regions: a file of regions, of the only image; or a folder with NAME.npz or NAME.png.npz for NAME.png.

    Raises:
      DataError: several images share a file of regions, or the folder has none for some; lists all.
    """
    files, faults = [], []
    for image in images:
        file: str | Path = ""
        if regions is not None and regions.is_dir():
            name = Path(image).name if isinstance(image, str | Path) else ""
            names = [f"{name}.npz", f"{Path(name).stem}.npz"]
            file = next((regions / n for n in names if (regions / n).is_file()), "")
            if not file:
                faults.append(
                    f"{regions} has no {' or '.join(dict.fromkeys(names))} for {name or 'an image without a name'}"
                )
        elif regions is not None:
            file = regions
        files.append(file)
    if regions is not None and len(images) > 1 and not regions.is_dir():
        faults.append(f"{regions} is one file of regions, for {len(images)} images; give a folder with one for each")
    if faults:
        raise DataError("The regions do not fit the images:\n  " + "\n  ".join(faults))
    both = itertools.product(zip(images, files, strict=True), questions or [""])
    return [Question(image, question, file) for (image, file), question in both]
