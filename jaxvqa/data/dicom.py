"""A DICOM file's image -> 8 bits, as a viewer shows it at first (DICOM PS3.3, C.7.6.3 and C.11); the extra `dicom` reads it.

===================== ======================================================================================================
grey                  rescaled (slope and intercept, or the modality's table), then by the table of values of interest, or the
                      first window; without either the image's least to its largest value, padding aside, become 0 to 255
MONOCHROME1           the same, inverted: its least value is white
RGB, YBR, palette     RGB, by the high bits where there are more than 8
several frames        the first one
===================== ======================================================================================================
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxvqa.errors import DataError, first_line, install

ENDINGS = (".dcm", ".dicom")
"""How the names of such files end, where they have an ending."""


def is_dicom(encoded: bytes) -> bool:
    """Whether a file begins as DICOM files do."""
    return encoded[128:132] == b"DICM"


def read(encoded: bytes) -> Image.Image:
    """The image of a DICOM file, by the table above: of mode "L" or "RGB", its `format` "DICOM".

    Raises:
      DataError: pydicom is not installed; or the file holds no image, is damaged, too large, or compressed in a way that
        pydicom needs another package for.
    """
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise DataError(f"is a DICOM file, which needs the package pydicom: {install('dicom')}") from error
    try:
        header = pydicom.dcmread(io.BytesIO(encoded))
        if "PixelData" not in header:
            raise DataError("is a DICOM file without an image")
        if header.Rows * header.Columns > 2 * (Image.MAX_IMAGE_PIXELS or 2**31):
            raise DataError(f"is too large to be meant as a picture ({header.Columns} x {header.Rows} pixels)")
        values = pixel_array(header, index=0)
        pixels = _grey(values, header) if header.SamplesPerPixel == 1 else values
        if header.PhotometricInterpretation == "PALETTE COLOR":
            pixels = _palette(values, header)
    except DataError:
        raise
    except Exception as error:  # what pydicom meets in a damaged file, it raises
        raise DataError(f"is a DICOM file that cannot be read ({type(error).__name__}: {first_line(error)})") from error
    if pixels.dtype != np.uint8:
        pixels = (pixels >> max(int(header.BitsStored) - 8, 0)).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.format = "DICOM"
    return picture


def _grey(stored: np.ndarray, header: Any) -> UInt8[np.ndarray, "H W"]:
    from pydicom.pixels import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(stored, header), np.float64)
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if "VOILUTSequence" in header:
        table = header.VOILUTSequence[0]
        light = np.asarray(apply_voi(values.astype(np.int64), header), np.float64) / (
            2 ** int(table.LUTDescriptor[2]) - 1
        )
    elif centre is not None and width is not None:
        light = _windowed(values, centre, width, str(header.get("VOILUTFunction") or "LINEAR"))
    else:
        shown = values[stored != header.PixelPaddingValue] if "PixelPaddingValue" in header else values
        low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
        light = (values - low) / ((high - low) or 1)
    grey = np.round(255 * np.clip(light, 0, 1)).astype(np.uint8)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def _windowed(values: Float[np.ndarray, "H W"], centre: float, width: float, function: str) -> Float[np.ndarray, "H W"]:
    """From 0 to 1 across a window, by the three functions of C.11.2.1.2 and C.11.2.1.3.

    Raises:
      DataError: the function is none of the three, or has no window of this width.
    """
    if function not in _WIDTHS:
        raise DataError(f"is a DICOM file whose VOILUTFunction is {function!r}; expected one of {', '.join(_WIDTHS)}")
    words, fits = _WIDTHS[function]
    if not fits(width):
        raise DataError(
            f"is a DICOM file whose WindowWidth is {width:g}; {function} needs one {words} (PS3.3, C.11.2.1.2.1). Correct it, "
            "or take it out: the whole range of values is shown then"
        )
    if function == "SIGMOID":
        return (1 + np.tanh(2 * (values - centre) / width)) / 2  # 1 / (1 + exp(-4 …)), which may overflow
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


_WIDTHS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "LINEAR": ("of at least 1", lambda width: 1 <= width < np.inf),
    "LINEAR_EXACT": ("above 0", lambda width: 0 < width < np.inf),
    "SIGMOID": ("above 0", lambda width: 0 < width < np.inf),
}
"""The functions of a window, and how wide it has to be."""


def _first(value: Any) -> float | None:
    """The first of several values of a tag; None where it is empty."""
    values = np.ravel(np.asarray([] if value is None else value, np.float64))
    return float(values[0]) if values.size else None


def _palette(values: np.ndarray, header: Any) -> UInt8[np.ndarray, "H W 3"]:
    from pydicom.pixels import apply_color_lut

    colours = np.asarray(apply_color_lut(values, header))
    depth = int(header.RedPaletteColorLookupTableDescriptor[2])
    return (colours >> (depth - 8)).astype(np.uint8)
