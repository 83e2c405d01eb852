"""Any picture file -> 8-bit RGB or grey, by one rule; training, explanations, reports and builders all read pictures here.

====================================== ================================================================================
picture                                becomes
====================================== ================================================================================
8-bit grey or RGB                      itself, bit for bit
1 bit                                  0 and 255
16-bit grey, or integers up to 65535   value / 257, rounded: 0 to 65535 becomes 0 to 255; other integers are refused
float                                  255 x value, rounded, of values in [0, 1]; others, and NaN, are refused
palette, CMYK, YCbCr                   RGB
transparent (alpha, or one colour)     laid on white
with an EXIF orientation               turned and mirrored as it says
animated, or of several pages          its first one
DICOM                                  rescaled, by its window, inverted if MONOCHROME1 (`jaxvqa.data.dicom`)
====================================== ================================================================================

RGB becomes grey, and grey RGB, as Pillow does it (ITU-R 601-2). Colour of 16 bits a channel is Pillow's own: its high bytes.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxvqa.data import dicom
from jaxvqa.errors import DataError
from jaxvqa.inputs import LFS

MODES = {1: "L", 3: "RGB"}
"""Channels -> Pillow's name of the 8-bit picture."""

_DEEPEST, _STEP = 65535, 257  # 65535 / 257 = 255
_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)


class Facts(NamedTuple):
    """What a whole picture file holds.

    Attributes:
      kind: Pillow's name of the format, such as "JPEG" or "PNG".
      width: in pixels, of the picture as it is shown: turned by its EXIF orientation.
      height: likewise.
    """

    kind: str
    width: int
    height: int


@functools.cache
def endings() -> frozenset[str]:
    """How the names of files end that may be pictures, in lower case: ".png", ".jpg" and so on."""
    known = (name for name, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    return frozenset((*known, *dicom.ENDINGS))


def decode(encoded: bytes, channels: int | None = None) -> Image.Image:
    """Decodes a picture by the table above.

    Args:
      encoded: the file.
      channels: 1 for grey, 3 for RGB, None for the picture's own.

    Returns:
      A picture of mode "L" or "RGB".

    Raises:
      DataError: the file is not a picture, is damaged, too large to be meant, or of values that have no rule; says why.
    """
    picture = eight_bit(_opened(encoded))
    return picture.convert(MODES[channels]) if channels else picture


def decode_labels(encoded: bytes) -> UInt8[np.ndarray, "H W"]:
    """Decodes a label map: the values of an 8-bit picture of one channel, or the numbers of a palette's colours, as they are.

    Raises:
      DataError: the file is not a picture, is damaged, or has other values.
    """
    picture = _opened(encoded)
    _load(picture)
    if picture.mode not in ("L", "P"):
        raise DataError(
            f"is a picture of mode {picture.mode}; expected 8 bits and one channel, since values are labels"
        )
    return np.asarray(picture)


def inspect(encoded: bytes) -> Facts:
    """Decodes all of a picture, as cheaply as shows that it is whole and that `decode` will take it.

    Raises:
      DataError: as `decode` does.
    """
    picture = _opened(encoded)
    kind, size = picture.format or "", picture.size
    if kind in ("JPEG", "MPO") and picture.mode in MODES.values():
        picture.draft(picture.mode, (1, 1))  # every coefficient is read, but 1/64 of the pixels made: thrice as fast
        _load(picture)
        size = size[::-1] if _orientation(picture) in (5, 6, 7, 8) else size
    else:
        size = eight_bit(picture).size
    # A file of several JPEG pictures is, to everyone who reads one, a JPEG.
    return Facts("JPEG" if kind == "MPO" else kind, *size)


def eight_bit(picture: Image.Image) -> Image.Image:
    """Turns an opened picture into one of mode "L" or "RGB" by the table above.

    Raises:
      DataError: as `decode` does.
    """
    _load(picture)
    orientation = _orientation(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        picture = _scaled(picture)
    try:
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, _WHITE)
            grey = picture.mode in ("1", "L", "LA", "La")
            picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("L" if grey else "RGB")
        elif picture.mode not in MODES.values():
            picture = picture.convert("L" if picture.mode == "1" else "RGB")
    except ValueError as error:
        raise DataError(f"is a picture of mode {picture.mode}, which has no rule ({error})") from error
    return _turned(picture, orientation)


def _opened(encoded: bytes) -> Image.Image:
    if dicom.is_dicom(encoded):
        return dicom.read(encoded)
    try:
        return Image.open(io.BytesIO(encoded))
    except Exception as error:  # the readers of forty formats raise what comes to hand, OSError or not
        raise _unreadable(encoded, error) from error


def _load(picture: Image.Image) -> None:
    try:
        picture.load()
    except Exception as error:  # as above
        raise _unreadable(b"", error) from error


def _unreadable(encoded: bytes, error: Exception) -> DataError:
    if encoded.startswith(LFS):
        return DataError("is a pointer of Git LFS, not the picture itself: run `git lfs pull` in its repository")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"is not a picture ({len(encoded)} bytes of no known format)")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DataError(f"is too large to be meant as a picture ({_text(error)})")
    return DataError(f"is damaged or cut off ({_text(error)})")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged notes about a whole picture, such as some of COCO's
        return 1


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    if not 2 <= orientation <= 8:
        return picture
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    picture.info = {"exif": exif.tobytes()}
    return ImageOps.exif_transpose(picture)


def _scaled(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    hidden = picture.info.get("transparency")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    most = 1 if picture.mode == "F" else _DEEPEST
    if not 0 <= low <= high <= most:  # also false for NaN
        raise DataError(
            f"holds {'numbers' if picture.mode == 'F' else 'integers'} from {low} to {high}; of this kind only 0 to {most} has "
            "a rule. Save it as an 8-bit PNG"
        )
    if isinstance(hidden, int):
        values = np.where(values == hidden, most, values)
    scaled = values.astype(np.float64) * 255 if picture.mode == "F" else values.astype(np.float64) / _STEP
    return Image.fromarray(np.round(scaled).astype(np.uint8))
