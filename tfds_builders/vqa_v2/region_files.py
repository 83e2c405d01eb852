"""Region feature files of RWSAN's layout: one `.npz` a picture (spec section 4.4)."""

import io
import os
import re
import zipfile
import zlib
from typing import IO

import numpy as np
from jaxtyping import Float, Float16

from jaxvqa.errors import DataError

FEATURE_WIDTH = 2048
"""Width F of a bottom-up region feature."""

MAX_REGIONS = 100
"""Regions that are kept of a picture; the models of the original see no more."""


def image_id_of(path: str | os.PathLike[str]) -> int:
    """Returns the COCO image id that a file name carries.

    The number after the name's last `_`, up to the first `.`: "COCO_train2014_000000000009.jpg.npz" -> 9.

    Raises:
        DataError: the name holds no such number.
    """
    name = re.split(r"[/\\]", os.fspath(path))[-1]
    digits = name.split("_")[-1].split(".")[0]
    if not digits.isdecimal():
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
            raise DataError("is no .npz file")
        with arrays:
            if "x" not in arrays:
                raise DataError(f"has no array 'x', only {sorted(arrays)}")
            x = arrays["x"]
            boxes = arrays["bbox"] if "bbox" in arrays else np.zeros((x.shape[-1] if x.ndim else 0, 4))
            image_w = int(arrays["image_w"]) if "image_w" in arrays else 0
            image_h = int(arrays["image_h"]) if "image_h" in arrays else 0
    except (ValueError, TypeError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot be read ({error})") from error
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
    return features.astype(np.float16), boxes, image_w, image_h
