"""Pictures to arrays: decoding, resizing, and small random changes in training."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image, ImageEnhance

from jaxvqa.data import pictures
from jaxvqa.data.transforms import Example
from jaxvqa.errors import DataError
from jaxvqa.precision import widened

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what the published towers expect to be subtracted and divided by."""


def resized(picture: Image.Image, size: int, channels: int) -> UInt8[np.ndarray, "S S C"]:
    """Resizes to a square, whatever the aspect ratio, bilinearly with antialiasing, in 8 bits (CMSA spec, section 7.4).

    Pictures of other kinds than 8-bit grey and RGB become those by the rule of `jaxvqa.data.pictures`.
    """
    picture = pictures.eight_bit(picture).convert(pictures.MODES[channels])
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(size, size, channels)


def normalised(
    picture: Num[Array, "B S Q C"], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Float[Array, "B S Q C"]:
    """What networks read, of pixels from 0 to 255: colour by the statistics of red, green and blue, grey in [0, 1]; float32."""
    values = widened(picture) / 255
    if picture.shape[-1] == 1:
        return values
    centre, spread = (jnp.asarray(numbers, jnp.float32)[None, None, None] for numbers in (mean, std))
    return (values - centre) / spread


class DecodeImage:
    """Encoded pictures -> uint8[S, S, C]. Decoded ones are kept in memory up to a bound, since many questions share one.

    Only for data sets whose examples carry `image_id`, which says that two pictures are the same.
    """

    def __init__(
        self,
        sizes: Mapping[str, tuple[int, int]],
        *,
        source: str = "image",
        cache_mib: float = 256,
        nearest: bool = False,
    ):
        """Says what to make.

        Args:
          sizes: name of the entry to make -> (S, C), C being 1 for grey and 3 for colour.
          source: the entry with the encoded picture (PNG, JPEG).
          cache_mib: MiB of decoded pictures to keep.
          nearest: take the nearest pixel, as label maps need it, in place of interpolating.
        """
        self._sizes, self._source, self._nearest = dict(sizes), source, nearest
        each = sum(size * size * channels for size, channels in self._sizes.values())
        self._room = int(cache_mib * 2**20 // max(each, 1))
        self._kept: dict[int, dict[str, np.ndarray]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process fills a cache of its own; a lock cannot travel.
        return {key: value for key, value in self.__dict__.items() if key != "_lock"} | {"_kept": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __call__(self, example: Example) -> Example:
        """Adds the decoded pictures.

        Raises:
          DataError: names the picture that cannot be decoded.
        """
        image_id = int(example["image_id"])
        arrays = self._kept.get(image_id)
        if arrays is None:
            arrays = self._decode(example[self._source], image_id)
            with self._lock:
                if len(self._kept) < self._room:
                    self._kept[image_id] = arrays
        return example | arrays

    def _decode(self, encoded: bytes, image_id: int) -> dict[str, np.ndarray]:
        try:
            if self._nearest:
                labels = Image.fromarray(pictures.decode_labels(encoded))
                same = {name: labels.resize((s, s), Image.Resampling.NEAREST) for name, (s, _) in self._sizes.items()}
                return {name: np.asarray(p).reshape(*p.size, 1) for name, p in same.items()}
            picture = pictures.decode(encoded)
            return {name: resized(picture, *shape) for name, shape in self._sizes.items()}
        except DataError as error:
            raise DataError(
                f"The picture {self._source!r} of image {image_id} {error}. "
                "Build the data set anew from a whole PNG or JPEG file."
            ) from error


class CropAndRotate:
    """A random crop of S×S, turned by a random angle; what comes in from outside is black (0), the label 0 in a map.

    CMSA's pre-training crops 224 from 232 pixels and turns by up to 15 degrees (spec, section 10).
    """

    def __init__(self, size: int, degrees: float, *, image: str = "image", label_map: str = "", nearest: bool = False):
        """Says how.

        Args:
          size: the size to crop.
          degrees: the largest angle either way.
          image: the picture's entry.
          label_map: the label map's; "" for none.
          nearest: turn the picture as a label map is turned, by its nearest pixels, which is torchvision's way.
        """
        self._size, self._degrees, self._image, self._label_map = size, degrees, image, label_map
        self._way = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR

    def __call__(self, example: Example) -> Example:
        """Changes picture and label map alike."""
        random = np.random.default_rng([*example["draw"], 1])
        room = example[self._image].shape[0] - self._size
        top, left = random.integers(0, room + 1, 2)
        angle = random.uniform(-self._degrees, self._degrees)
        ways = {self._image: self._way}
        if self._label_map:
            ways[self._label_map] = Image.Resampling.NEAREST
        changed = {}
        for name, how in ways.items():
            array = example[name][top : top + self._size, left : left + self._size]
            turned = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).rotate(angle, how)
            changed[name] = np.asarray(turned).reshape(array.shape)
        return example | changed


def cropped_and_flipped(
    picture: UInt8[np.ndarray, "H W C"], size: int, left: int, top: int, flip: bool
) -> UInt8[np.ndarray, "S S C"]:
    """The S×S pixels from (`left`, `top`) on, mirrored left to right if `flip`."""
    cut = picture[top : top + size, left : left + size]
    return np.ascontiguousarray(cut[:, ::-1] if flip else cut)


class CropAndFlip:
    """A random crop of S×S, mirrored left to right half of the time: SYSU-HCP's training pictures (spec, section 8).

    The original crops S from S + 8 pixels, all nine places either way equally likely.
    """

    def __init__(self, size: int, *, image: str = "image"):
        """Args: the size to crop, and the picture's entry."""
        self._size, self._image = size, image

    def __call__(self, example: Example) -> Example:
        """Changes the picture."""
        random = np.random.default_rng([*example["draw"], 4])
        picture = example[self._image]
        room = picture.shape[0] - self._size
        left, top = map(int, random.integers(0, room + 1, 2))
        return example | {self._image: cropped_and_flipped(picture, self._size, left, top, random.random() < 0.5)}


class Brightness:
    """Random contrast and brightness: x -> 255 · clip(c · (x / 255 − ½) + ½ + b), c in 1 ± amount, b in ± amount / 2."""

    def __init__(self, amount: float, *, image: str = "image"):
        """Args: how much, in [0, 1), and the picture's entry."""
        self._amount, self._image = amount, image

    def __call__(self, example: Example) -> Example:
        """Changes the picture."""
        random = np.random.default_rng([*example["draw"], 2])
        contrast = 1 + random.uniform(-self._amount, self._amount)
        shift = random.uniform(-self._amount, self._amount) / 2
        levels = np.clip(contrast * (np.arange(256) / 255 - 0.5) + 0.5 + shift, 0, 1)
        return example | {self._image: np.round(255 * levels).astype(np.uint8)[example[self._image]]}


class ColourJitter:
    """Random brightness, contrast, saturation and hue, in a random order, as torchvision's ColorJitter draws them.

    Factors are in 1 ± amount, hue is turned by up to ± amount of the circle, of which half is the most.
    """

    def __init__(self, amount: float, *, image: str = "image"):
        """Args: how much, in (0, 0.5], and the picture's entry."""
        self._amount, self._image = amount, image

    def __call__(self, example: Example) -> Example:
        """Changes the picture."""
        random = np.random.default_rng([*example["draw"], 5])
        picture = Image.fromarray(example[self._image])
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None)
        factors = random.uniform(-self._amount, self._amount, len(kinds))
        for i in random.permutation(len(kinds)):
            kind, change = kinds[i], float(factors[i])
            picture = kind(picture).enhance(1 + change) if kind else _hue_turned(picture, change)
        return example | {self._image: np.asarray(picture)}


def _hue_turned(picture: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(round(turn * 255) % 256)  # wraps around, as the circle does
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


class NoiseImage:
    """A picture of noise, drawn anew each time: what a question-only baseline sees.

    A constant picture will not do: its batches have no variance, and batch norm's running statistics are then of no use.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]]):
        """Args: name of the entry to make -> (S, C)."""
        self._sizes = dict(sizes)

    def __call__(self, example: Example) -> Example:
        """Adds the pictures."""
        random = np.random.default_rng([*example["draw"], 3])
        sizes = self._sizes.items()
        return example | {name: random.integers(0, 256, (s, s, c), np.uint8) for name, (s, c) in sizes}
