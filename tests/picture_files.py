"""Encoded pictures of every kind: as they are drawn, cut, and larger than any picture."""

import io

import numpy as np
from PIL import Image

RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
"""All 16-bit values that are a whole number of 257ths, from black to white."""


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(picture: Image.Image | np.ndarray, orientation: int, kind: str = "JPEG") -> bytes:
    """A picture with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, kind, exif=exif)


def noise(mode: str = "RGB", size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Random pixels, whose file is long enough to be cut anywhere."""
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(np.random.default_rng(len(mode)).integers(0, 256, shape, np.uint8))


DAMAGED = {
    "cut off": lambda: (whole := encoded(noise(), "JPEG"))[: len(whole) * 6 // 10],
    "a bomb": lambda: encoded(Image.new("L", (20_000, 9_000)), compress_level=1),
    "no picture": lambda: b"no picture",
    "empty": lambda: b"",
}
"""What every builder has to name, made when it is asked for."""
