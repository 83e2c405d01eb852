"""Images to arrays: decoding, resizing, and small random changes in training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image, ImageEnhance

from jaxvqa.data import pictures, proposals
from jaxvqa.data.transforms import Example, random_of
from jaxvqa.errors import ConfigError, DataError, choose
from jaxvqa.precision import widened

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what the published towers expect to be subtracted and divided by."""


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""The same of CLIP's images, which BLIP takes too (docs/originals/blip.md, section 13)."""


def resized(picture: Image.Image, size: int, channels: int, *, bicubic: bool = False) -> UInt8[np.ndarray, "S S C"]:
    """Resizes to a square, whatever the aspect ratio, bilinearly or bicubically with antialiasing, in 8 bits.

    docs/originals/cmsa.md, section 7.4; docs/originals/blip.md, section 13.

    Images of other kinds than 8-bit grey and RGB become those by the rule of `jaxvqa.data.pictures`.
    """
    picture = pictures.eight_bit(picture).convert(pictures.MODES[channels])
    picture = picture.resize((size, size), Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
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


class _Kept(dict[int, dict[str, np.ndarray]]):
    """Decoded images by id, up to a bound; a worker process fills one of its own."""

    nbytes = 0

    def add(self, image_id: int, arrays: dict[str, np.ndarray], mib: float) -> dict[str, np.ndarray]:
        """Keeps an image where there is room for it; returns it."""
        size = sum(array.nbytes for array in arrays.values())
        if image_id not in self and self.nbytes + size <= mib * 2**20:
            self[image_id] = arrays
            self.nbytes += size
        return arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Kept, ())


@dataclass(frozen=True)
class DecodeImage:
    """Encoded images -> uint8[S, S, C]. Decoded ones are kept in memory up to a bound, since many questions share one.

    Only for data sets whose examples carry `image_id`, which says that two images are the same.

    Attributes:
      sizes: name of the entry to make -> (S, C), C being 1 for grey and 3 for colour.
      source: the entry with the encoded image (PNG, JPEG).
      nearest: take the nearest pixel, as label maps need it, instead of interpolating.
      bicubic: interpolate bicubically instead of bilinearly.
      cache_mib: MiB of decoded images to keep.
    """

    sizes: Mapping[str, tuple[int, int]]
    _: KW_ONLY
    source: str = "image"
    nearest: bool = False
    bicubic: bool = False
    cache_mib: float = 256.0
    _kept: _Kept = field(init=False, repr=False, compare=False, default_factory=_Kept)

    def __call__(self, example: Example) -> Example:
        """Adds the decoded images.

        Raises:
          DataError: names the image that cannot be decoded.
        """
        image_id = int(example["image_id"])
        arrays = self._kept.get(image_id)
        if arrays is None:
            arrays = self._kept.add(image_id, self._decode(example[self.source], image_id), self.cache_mib)
        return example | arrays

    def _decode(self, encoded: bytes, image_id: int) -> dict[str, np.ndarray]:
        try:
            if self.nearest:
                labels = Image.fromarray(pictures.decode_labels(encoded))
                same = {name: labels.resize((s, s), Image.Resampling.NEAREST) for name, (s, _) in self.sizes.items()}
                return {name: np.asarray(p).reshape(*p.size, 1) for name, p in same.items()}
            picture = pictures.decode(encoded)
            return {name: resized(picture, *shape, bicubic=self.bicubic) for name, shape in self.sizes.items()}
        except DataError as error:
            raise _named(error, self.source, image_id) from error


def _named(error: DataError, source: str, image_id: int) -> DataError:
    return DataError(
        f"The entry {source!r} of image {image_id} {error}. Build the data set anew from a whole PNG or JPEG file."
    )


REGION_SOURCES = ("", "shapes")
"""`config.data.regions`: whether images have the regions of the data set, or those of `jaxvqa.data.proposals`."""


@dataclass(frozen=True)
class ProposeRegions:
    """An encoded image -> `features` float16[n, F] and `boxes` float32[n, 4], by `jaxvqa.data.proposals`.

    Boxes are in the pixels of `image_w` and `image_h`, which the stored image may be a smaller copy of. What an image gets is
    kept in memory up to a bound, as `DecodeImage` keeps images.

    Attributes:
      max_regions: the most regions.
      cache_mib: MiB of regions to keep.
    """

    max_regions: int
    cache_mib: float = 256.0
    _kept: _Kept = field(init=False, repr=False, compare=False, default_factory=_Kept)

    def __call__(self, example: Example) -> Example:
        """Adds the regions.

        Raises:
          DataError: names the image that is not there, or cannot be decoded.
        """
        image_id = int(example["image_id"])
        regions = self._kept.get(image_id)
        if regions is None:
            if "image" not in example:
                raise DataError(
                    f"Image {image_id} has features of regions alone, and no pixels to propose regions from: set "
                    "config.data.regions to an empty text, or take a part with images (config.data.images)."
                )
            try:
                pixels = np.asarray(pictures.decode(example["image"]))
            except DataError as error:
                raise _named(error, "image", image_id) from error
            regions = proposals.regions_of(pixels, self.max_regions)
            stated, stored = (example["image_w"], example["image_h"]), pixels.shape[1::-1]
            regions["boxes"] = regions["boxes"] * (np.tile(stated, 2) / np.tile(stored, 2)).astype(np.float32)
            self._kept.add(image_id, regions, self.cache_mib)
        return example | regions


def region_steps(data: ml_collections.ConfigDict) -> tuple[ProposeRegions, ...]:
    """What gives an example its regions where `config.data.regions` says that they are proposed; else nothing.

    Raises:
      ConfigError: the field is not one of `REGION_SOURCES`.
    """
    source = data.get("regions", "")
    if source not in REGION_SOURCES:
        raise ConfigError(f"config.data.regions is {source!r}{choose(source, REGION_SOURCES)}")
    return (ProposeRegions(data.max_regions, data.cache_mib),) if source else ()


def random_box(
    random: np.random.Generator, width: int, height: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws a part of an image as torchvision's RandomResizedCrop does: left, top, width, height.

    Its area is a share of the image's, drawn evenly from `scale`; its aspect ratio, width to height, is drawn from `aspect`,
    evenly in its logarithm. After ten draws that do not fit it is the largest part in the middle of an allowed aspect ratio.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(random.integers(0, room + 1)) for room in (height - h, width - w))
            return left, top, w, h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def part_resized(
    picture: Image.Image, box: tuple[int, int, int, int], size: int, *, flip: bool = False
) -> UInt8[np.ndarray, "S S 3"]:
    """A part of an image (left, top, width, height), resized bicubically to a square, and mirrored left to right if `flip`.

    Of a grey image (mode L) the one channel is resized, and repeated.
    """
    left, top, width, height = box
    channels = 1 if picture.mode == "L" else 3
    part = resized(picture.crop((left, top, left + width, top + height)), size, channels, bicubic=True)
    part = np.repeat(part, 3 // channels, axis=-1)
    return np.ascontiguousarray(part[:, ::-1]) if flip else part


@dataclass(frozen=True)
class ResizedCrop:
    """A random part of an encoded image -> uint8[S, S, 3], mirrored left to right half of the time: BLIP's training images.

    docs/originals/blip.md, section 13. Decoded images are kept in memory up to a bound, as `DecodeImage` keeps them.

    Attributes:
      size: S.
      scale: the least and the largest share of the image's area; (0.2, 1) in pre-training, (0.5, 1) afterwards.
      aspect: the least and the largest width to height, before the part becomes a square.
      flip: whether it may be mirrored.
      source: the entry with the encoded image (PNG, JPEG).
      image: the entry to make.
      cache_mib: MiB of decoded images to keep.
    """

    size: int
    scale: tuple[float, float]
    _: KW_ONLY
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    source: str = "image"
    image: str = "image"
    cache_mib: float = 0.0
    _kept: _Kept = field(init=False, repr=False, compare=False, default_factory=_Kept)

    def __call__(self, example: Example) -> Example:
        """Makes the image.

        Raises:
          DataError: names the image that cannot be decoded.
        """
        image_id = int(example["image_id"]) if self.cache_mib else -1
        kept = self._kept.get(image_id)
        if kept is None:
            try:
                pixels = np.asarray(pictures.decode(example[self.source], 3))
            except DataError as error:
                raise _named(error, self.source, int(example["image_id"])) from error
            if self.cache_mib and (pixels[..., :1] == pixels).all():
                pixels = np.ascontiguousarray(pixels[..., 0])  # radiographs are grey, often in files of three channels
            kept = self._kept.add(image_id, {"pixels": pixels}, self.cache_mib)
        picture = Image.fromarray(kept["pixels"])
        random = random_of(example, "resized crop")
        box = random_box(random, *picture.size, self.scale, self.aspect)
        flip = self.flip and bool(random.random() < 0.5)
        return example | {self.image: part_resized(picture, box, self.size, flip=flip)}


@dataclass(frozen=True)
class CropAndRotate:
    """A random crop of S×S, turned by a random angle; what comes in from outside is black (0), the label 0 in a map.

    CMSA's pre-training crops 224 from 232 pixels and turns by up to 15 degrees (docs/originals/cmsa.md, section 10).

    Attributes:
      size: the size to crop.
      degrees: the largest angle either way.
      image: the image's entry.
      label_map: the label map's; "" for none.
      nearest: turn the image as a label map is turned, by its nearest pixels, which is torchvision's way.
    """

    size: int
    degrees: float
    _: KW_ONLY
    image: str = "image"
    label_map: str = ""
    nearest: bool = False

    def __call__(self, example: Example) -> Example:
        """Changes image and label map alike."""
        random = random_of(example, "crop and rotate")
        room = example[self.image].shape[0] - self.size
        top, left = random.integers(0, room + 1, 2)
        angle = random.uniform(-self.degrees, self.degrees)
        ways = {self.image: Image.Resampling.NEAREST if self.nearest else Image.Resampling.BILINEAR}
        if self.label_map:
            ways[self.label_map] = Image.Resampling.NEAREST
        changed = {}
        for name, how in ways.items():
            array = example[name][top : top + self.size, left : left + self.size]
            turned = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).rotate(angle, how)
            changed[name] = np.asarray(turned).reshape(array.shape)
        return example | changed


def cropped_and_flipped(
    picture: UInt8[np.ndarray, "H W C"], size: int, left: int, top: int, flip: bool
) -> UInt8[np.ndarray, "S S C"]:
    """The S×S pixels from (`left`, `top`) on, mirrored left to right if `flip`."""
    cut = picture[top : top + size, left : left + size]
    return np.ascontiguousarray(cut[:, ::-1] if flip else cut)


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop of S×S, mirrored left to right half of the time: SYSU-HCP's training images.

    docs/originals/sysu_hcp.md, section 8.

    The original crops S from S + 8 pixels, all nine places either way equally likely.
    """

    size: int
    image: str = "image"

    def __call__(self, example: Example) -> Example:
        """Changes the image."""
        random = random_of(example, "crop and flip")
        array = example[self.image]
        room = array.shape[0] - self.size
        left, top = map(int, random.integers(0, room + 1, 2))
        return example | {self.image: cropped_and_flipped(array, self.size, left, top, random.random() < 0.5)}


@dataclass(frozen=True)
class Brightness:
    """Random contrast and brightness: x -> 255 · clip(c · (x / 255 − ½) + ½ + b), c in 1 ± amount, b in ± amount / 2."""

    amount: float
    image: str = "image"

    def __call__(self, example: Example) -> Example:
        """Changes the image."""
        random = random_of(example, "brightness")
        contrast = 1 + random.uniform(-self.amount, self.amount)
        shift = random.uniform(-self.amount, self.amount) / 2
        levels = np.clip(contrast * (np.arange(256) / 255 - 0.5) + 0.5 + shift, 0, 1)
        return example | {self.image: np.round(255 * levels).astype(np.uint8)[example[self.image]]}


@dataclass(frozen=True)
class ColourJitter:
    """Random brightness, contrast, saturation and hue, in a random order, as torchvision's ColorJitter draws them.

    Factors are in 1 ± amount, hue is turned by up to ± amount of the circle, of which half is the most.
    """

    amount: float
    image: str = "image"

    def __call__(self, example: Example) -> Example:
        """Changes the image."""
        random = random_of(example, "colour")
        image = Image.fromarray(example[self.image])
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None)
        factors = random.uniform(-self.amount, self.amount, len(kinds))
        for i in random.permutation(len(kinds)):
            kind, change = kinds[i], float(factors[i])
            image = kind(image).enhance(1 + change) if kind else _hue_turned(image, change)
        return example | {self.image: np.asarray(image)}


def _hue_turned(picture: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(round(turn * 255) % 256)  # wraps around, as the circle does
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


@dataclass(frozen=True)
class NoiseImage:
    """An image of noise, drawn anew each time: what a question-only baseline sees.

    A constant image will not do: its batches have no variance, and batch norm's running statistics are then of no use.

    Attributes:
      sizes: name of the entry to make -> (S, C).
    """

    sizes: Mapping[str, tuple[int, int]]

    def __call__(self, example: Example) -> Example:
        """Adds the images."""
        random = random_of(example, "noise")
        return example | {name: random.integers(0, 256, (s, s, c), np.uint8) for name, (s, c) in self.sizes.items()}
