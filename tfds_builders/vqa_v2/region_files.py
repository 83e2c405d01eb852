"""Region feature files of RWSAN's layout: one `.npz` a picture (docs/originals/rwsan.md, section 4.4)."""

import io
import os
import re
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Float16

from jaxvqa.errors import DataError

FEATURE_WIDTH = 2048
"""Width F of a bottom-up region feature."""

MAX_REGIONS = 100
"""Regions that are kept of a picture; the models of the original see no more."""


_LARGEST = 2**31 - 1


def has_boxes(example: Mapping[str, Any]) -> bool:
    """Whether an image's record says where its regions lie: its file had boxes and the picture's size."""
    return bool(example["image_w"] > 0 and example["image_h"] > 0 and np.any(example["boxes"]))


def image_id_of(path: str | os.PathLike[str]) -> int:
    """Returns the COCO image id that a file name carries.

    The number after the name's last `_`, up to the first `.`: "COCO_train2014_000000000009.jpg.npz" -> 9.

    Raises:
        DataError: the name holds no such number.
    """
    name = re.split(r"[/\\]", os.fspath(path))[-1]
    digits = name.split("_")[-1].split(".")[0]
    if not re.fullmatch("[0-9]{1,18}", digits):
        raise DataError(f"{name}: no image id; expected a name such as COCO_train2014_000000000009.jpg.npz.")
    return int(digits)


def read_region_file(
    file: str | os.PathLike[str] | IO[bytes], *, max_regions: int = MAX_REGIONS, width: int | None = FEATURE_WIDTH
) -> tuple[Float16[np.ndarray, "R F"], Float[np.ndarray, "R 4"], int, int]:
    """Reads the region features of one picture.

    The file holds `x`, float [F, regions]; `bbox` [regions, 4] (x1, y1, x2, y2 in pixels), `image_w` and `image_h` may be
    missing, since the original reads only `x`.

    Args:
        file: a path or an open binary file.
        max_regions: of more regions, the first ones are kept.
        width: F that the file has to have; None takes any.

    Returns:
        Features float16 [R, F], never padded; boxes float32 [R, 4], zeros if the file has none; the picture's width and
        height in pixels, 0 if unknown.

    Raises:
        DataError: the file cannot be read, lacks `x`, or has values or shapes that cannot be right.
    """
    try:
        # Seeking in an archive's member is slow, and NumPy seeks.
        arrays = np.load(file if isinstance(file, (str, os.PathLike)) else io.BytesIO(file.read()))
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError("is not a .npz file")
        with arrays:
            if "x" not in arrays:
                raise DataError(f"has no array 'x', only {sorted(arrays)}")
            x = arrays["x"]
            given = "bbox" in arrays
            boxes = arrays["bbox"] if "bbox" in arrays else np.zeros((x.shape[-1] if x.ndim else 0, 4))
            sizes = {name: arrays[name] if name in arrays else np.int64(0) for name in ("image_w", "image_h")}
    except DataError:
        raise
    except Exception as error:  # a damaged zip or header inside it makes NumPy raise whatever it trips over
        raise DataError(f"cannot be read ({error})") from error
    wrong = [
        f"{name!r} is of type {array.dtype}"
        for name, array in (("x", x), ("bbox", boxes))
        if array.dtype.kind not in "fiu"
    ]
    if wrong:
        raise DataError(f"{' and '.join(wrong)}, expected numbers")
    for name, size in sizes.items():
        if size.size != 1 or size.dtype.kind not in "fiu" or not 0 <= size.item() <= _LARGEST or size.item() % 1:
            raise DataError(f"{name!r} is {str(size)[:40]}, expected the picture's size in pixels, a whole number")
    image_w, image_h = (int(size.item()) for size in sizes.values())
    if x.ndim != 2 or 0 in x.shape or (width is not None and x.shape[0] != width):
        raise DataError(f"'x' has shape {list(x.shape)}, expected [{width or 'width'}, regions]")
    if boxes.shape != (x.shape[1], 4):
        raise DataError(f"'bbox' has shape {list(boxes.shape)}, expected [{x.shape[1]}, 4]")
    features = np.ascontiguousarray(x.T[:max_regions], np.float32)
    boxes = np.ascontiguousarray(boxes[:max_regions], np.float32)
    if not (np.abs(features) <= np.finfo(np.float16).max).all():  # also false for NaN
        raise DataError("'x' holds NaN, infinite or larger values than float16 can hold")
    if not np.isfinite(boxes).all():
        raise DataError("'bbox' holds NaN or infinite values")
    if (boxes < 0).any():
        raise DataError(f"'bbox' holds negative values, such as {boxes.min():g}; expected x1, y1, x2, y2 in pixels")
    # Detectors count the last pixel in, so that a box of one pixel has no size here; all of them are none.
    if given and ((boxes[:, 0] == boxes[:, 2]) | (boxes[:, 1] == boxes[:, 3])).all():
        raise DataError("'bbox' holds boxes of no size only; expected x1, y1, x2, y2 in pixels")
    return features.astype(np.float16), boxes, image_w, image_h
