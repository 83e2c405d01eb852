"""BLIP's RandomAugment: operations on 8-bit images, in NumPy alone (docs/originals/blip.md, section 13).

An operation takes uint8[H, W, 3] in RGB and gives another. The original's warps are those of OpenCV 4.10, whose arithmetic in
fixed point is kept here. Where `sound` may be chosen, its default is the original, whose faults are in section 18, quirk 8.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxvqa.data.transforms import Example, random_of

Pixels = UInt8[np.ndarray, "H W 3"]

GREY = (128, 128, 128)
"""What a warp fills the places with that no pixel of the image falls on."""

WEIGHTS = (0.114, 0.587, 0.299)
"""Of the three channels in the brightness of a pixel: meant for BGR, and taken in array order all the same."""


def identity(image: Pixels) -> Pixels:
    """The image."""
    return image


def autocontrast(image: Pixels, *, sound: bool = False) -> Pixels:
    """Stretches each channel to 0 … 255: v -> (v − min)·255/(max − min), truncated; unchanged if flat.

    The original's offset wraps around as an unsigned byte, so that a channel without a zero turns white; not if `sound`.
    """

    def table(channel: np.ndarray) -> np.ndarray:
        low, high = int(channel.min()), int(channel.max())
        if high <= low:
            return np.arange(256)
        scale = 255 / (high - low)
        return np.clip(np.arange(256) * scale + (-low if sound else -low % 256) * scale, 0, 255)

    return _by_channel(image, table)


def equalize(image: Pixels) -> Pixels:
    """Spreads each channel's values so that they are about equally frequent; unchanged if it has too few pixels for that."""

    def table(channel: np.ndarray) -> np.ndarray:
        counts = np.bincount(channel.ravel(), minlength=256)
        step = int(counts[counts > 0][:-1].sum()) // 255
        if step == 0:
            return np.arange(256)
        return np.clip(np.cumsum([step // 2, *counts[:-1]]) // step, 0, 255)

    return _by_channel(image, table)


def solarize(image: Pixels, threshold: float) -> Pixels:
    """Inverts the values from the threshold on."""
    values = np.arange(256)
    return np.where(values < threshold, values, 255 - values).astype(np.uint8)[image]


def posterize(image: Pixels, bits: float) -> Pixels:
    """Keeps the high `bits` bits of each value."""
    return image & np.uint8(255 << (8 - int(bits)) & 255)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Multiplies by the factor, in float32; clipped and truncated."""
    return np.clip(np.arange(256, dtype=np.float32) * np.float32(factor), 0, 255).astype(np.uint8)[image]


def contrast(image: Pixels, factor: float) -> Pixels:
    """Away from the image's mean brightness by the factor, or towards it below 1; clipped and truncated."""
    mean = float(np.sum(image.mean(axis=(0, 1)) * np.asarray(WEIGHTS)))
    return np.clip((np.arange(256) - mean) * factor + mean, 0, 255).astype(np.uint8)[image]


def color(image: Pixels, factor: float) -> Pixels:
    """Away from each pixel's grey by the factor, or towards it below 1, in float32; clipped and truncated."""
    grey = np.asarray(WEIGHTS)[:, None]
    matrix = np.float32(np.eye(3) - grey) * np.float32(factor) + np.float32(grey)
    mixed = image.astype(np.float32) @ matrix
    return np.clip(mixed, 0, 255).astype(np.uint8)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Away from the blurred image by the factor, or towards it below 1; the outermost pixels are kept.

    Blurred by a 3×3 kernel of ones with 5 at its centre. The factor 0 gives the blurred image whole, its outermost pixels too.
    """
    if factor == 1:
        return image
    padded = np.pad(image.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="reflect")
    height, width, _ = image.shape
    summed = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3)) + 4 * image.astype(np.int64)
    blurred = ((2 * summed + 13) // 26).astype(np.uint8)  # rounded: no sum of these is half-way
    if factor == 0:
        return blurred
    result = image.copy()
    sharp, soft = (x[1:-1, 1:-1].astype(np.float32) for x in (image, blurred))
    result[1:-1, 1:-1] = np.clip(soft + np.float32(factor) * (sharp - soft), 0, 255).astype(np.uint8)
    return result


def shear_x(image: Pixels, factor: float, fill: Sequence[int] = GREY) -> Pixels:
    """Moves the row y to the right by factor · y."""
    return warped(image, ((1.0, factor, 0.0), (0.0, 1.0, 0.0)), fill)


def shear_y(image: Pixels, factor: float, fill: Sequence[int] = GREY) -> Pixels:
    """Moves the column x down by factor · x."""
    return warped(image, ((1.0, 0.0, 0.0), (factor, 1.0, 0.0)), fill)


def translate_x(image: Pixels, offset: float, fill: Sequence[int] = GREY) -> Pixels:
    """Moves the image to the left."""
    return warped(image, ((1.0, 0.0, -offset), (0.0, 1.0, 0.0)), fill)


def translate_y(image: Pixels, offset: float, fill: Sequence[int] = GREY) -> Pixels:
    """Moves the image up."""
    return warped(image, ((1.0, 0.0, 0.0), (0.0, 1.0, -offset)), fill)


def rotate(image: Pixels, degrees: float, fill: Sequence[int] = GREY) -> Pixels:
    """Turns the image counter-clockwise about (W/2, H/2)."""
    x, y = image.shape[1] / 2, image.shape[0] / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return warped(image, ((cos, sin, (1 - cos) * x - sin * y), (-sin, cos, sin * x + (1 - cos) * y)), fill)


_FINE, _COARSE = 10, 5
"""Bits behind the point with which OpenCV reckons places, and with which it interpolates between pixels."""


def warped(image: Pixels, matrix: Sequence[Sequence[float]], fill: Sequence[int]) -> Pixels:
    """Moves the pixel (x, y) to matrix · (x, y, 1), bilinearly, as OpenCV's `warpAffine` does.

    Places are rounded to 1/32 of a pixel. What comes in from outside, between the pixels at the border too, is `fill`.
    """
    (a, b, c), (d, e, f) = _inverse(matrix)
    height, width, _ = image.shape
    columns, rows = np.arange(width), np.arange(height)

    def places(by_x: float, by_y: float, shift: float) -> np.ndarray:
        along, down = np.rint(by_x * columns * 2**_FINE), np.rint((by_y * rows + shift) * 2**_FINE)
        half = 1 << (_FINE - _COARSE - 1)
        return (down[:, None].astype(np.int64) + along[None].astype(np.int64) + half) >> (_FINE - _COARSE)

    x, y = places(a, b, c), places(d, e, f)
    one = 1 << _COARSE
    padded = np.empty((height + 2, width + 2, 3), np.int32)
    padded[:] = fill
    padded[1:-1, 1:-1] = image
    flat = padded.reshape(-1, 3)
    total = np.zeros(image.shape, np.int32)
    for down in (0, 1):
        for along in (0, 1):
            i, j = np.clip((y >> _COARSE) + down, -1, height) + 1, np.clip((x >> _COARSE) + along, -1, width) + 1
            weight = np.abs(one * (1 - down) - y % one) * np.abs(one * (1 - along) - x % one)
            total += weight.astype(np.int32)[..., None] * flat[i * (width + 2) + j]
    return ((total + one * one // 2) // (one * one)).astype(np.uint8)


def _inverse(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Of an affine map, in OpenCV's order of operations, since places may lie half-way."""
    (a, b, c), (d, e, f) = matrix
    share = 1 / (a * e - b * d)
    a, b, d, e = e * share, -b * share, -d * share, a * share
    return (a, b, -a * c - b * f), (d, e, -d * c - e * f)


def _by_channel(image: Pixels, table: Callable[[np.ndarray], np.ndarray]) -> Pixels:
    channels = (image[..., i] for i in range(image.shape[-1]))
    return np.stack([table(channel).astype(np.uint8)[channel] for channel in channels], axis=-1)


OPERATIONS: Mapping[str, Callable[..., Pixels]] = {
    "Identity": identity,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Rotate": rotate,
    "Solarize": solarize,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Posterize": posterize,
    "ShearY": shear_y,
}
"""The original's name of an operation -> the operation."""

WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
"""Those whose argument has a random sign."""

DRAWN = ("Identity", "AutoContrast", "Brightness", "Sharpness", "Equalize", *WARPS[1:], WARPS[0])
"""Those that BLIP draws from."""

MAX_LEVEL = 10


def argument(name: str, level: float) -> float | None:
    """The size of an operation's argument at a level from 0 to 10; None for one without."""
    share = level / MAX_LEVEL
    if name in ("Brightness", "Sharpness", "Color", "Contrast"):
        return share * 1.8 + 0.1
    whole = {"Solarize": 256, "Posterize": 4}
    if name in whole:
        return float(int(share * whole[name]))
    most = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 10.0, "TranslateY": 10.0}
    return share * most[name] if name in most else None


@dataclass(frozen=True)
class RandomAugment:
    """Draws operations of `DRAWN` with replacement, and applies each of them with probability ½.

    Attributes:
      number: how many are drawn.
      level: how strong they are, from 0 to 10.
      sound: AutoContrast with the offset that is meant, and Brightness and Sharpness by 1 ± 0.9 · level / 10, which at level 5
        have no effect in the original.
      image: the image's entry.
    """

    number: int = 2
    level: float = 5.0
    _: KW_ONLY
    sound: bool = False
    image: str = "image"

    def __call__(self, example: Example) -> Example:
        """Changes the image, uint8[H, W, 3]."""
        random = random_of(example, "augment")
        changed = example[self.image]
        for name in random.choice(DRAWN, self.number):
            applied, sign = random.random() < 0.5, 1 if random.random() < 0.5 else -1
            if applied:
                changed = self._apply(str(name), changed, sign)
        return example | {self.image: changed}

    def _apply(self, name: str, image: Any, sign: int) -> Any:
        size = argument(name, self.level)
        if self.sound and name == "AutoContrast":
            return autocontrast(image, sound=True)
        if self.sound and name in ("Brightness", "Sharpness"):
            size = 1 + sign * 0.9 * self.level / MAX_LEVEL
        arguments = () if size is None else (sign * size if name in WARPS else size,)
        return OPERATIONS[name](image, *arguments)
