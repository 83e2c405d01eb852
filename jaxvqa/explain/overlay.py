"""Attention drawn on images: arrays in, arrays or a figure out; no files, no state."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from jaxvqa.data import pictures
from jaxvqa.errors import DataError
from jaxvqa.explain import gradcam
from jaxvqa.explain.explanation import Explanation

SIDE = 320
"""Longer side to which small images are enlarged, in pixels."""

BLANK = 224
"""Grey of the canvas where a data set holds boxes but no image."""

_HEAT = matplotlib.colormaps["inferno"]
_HEAT_OPACITY = 0.6
_OUTLINE = (64, 224, 255)  # not a colour of the heat, and bright on dark scans


def decode(image: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an image to RGB, just as training does (`jaxvqa.data.pictures`).

    Raises:
      DataError: the bytes are not an image.
    """
    try:
        return np.array(pictures.decode(image, 3))
    except DataError as error:
        raise DataError(f"An image of {len(image)} bytes cannot be decoded: it {error}.") from error


def encode(image: UInt8[np.ndarray, "H W 3"], kind: str = "PNG") -> bytes:
    """Encodes RGB as "PNG" or "JPEG"."""
    file = io.BytesIO()
    options = {"quality": 88, "subsampling": 0} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def canvas(
    explanation: Explanation, largest: int | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "R 4"]] | None:
    """The image to draw on and its boxes, both at a legible size, whose longer side is at most `largest` where that is given.

    Without an image, a plain canvas of the image's size; None when not even the size is known.
    """
    width, height = explanation.size
    if explanation.image:
        image = decode(explanation.image)
    elif width > 0 and height > 0:
        image = np.full((height, width, 3), BLANK, np.uint8)
    else:
        return None
    boxes = explanation.boxes
    if width > 0 and height > 0:  # the stored image may be a smaller copy of the one that the boxes were found on
        sx, sy = image.shape[1] / width, image.shape[0] / height
        boxes = boxes * np.array([sx, sy, sx, sy], np.float32)
    image, boxes = enlarge(image, boxes)
    return _scaled(image, boxes, min(1.0, (largest or math.inf) / max(image.shape[:2])))


def enlarge(
    image: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "R 4"], side: int = SIDE
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "R 4"]]:
    """Enlarges an image and its boxes so that the longer side has at least `side` pixels; larger ones stay."""
    return _scaled(image, boxes, max(1.0, side / max(image.shape[:2])))


def _scaled(
    image: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "R 4"], factor: float
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "R 4"]]:
    if factor == 1.0:
        return image, boxes
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return scaled, boxes * np.array([size[0] / width, size[1] / height] * 2, np.float32)


def clip_boxes(boxes: Float[np.ndarray, "R 4"], height: int, width: int) -> Float[np.ndarray, "R 4"]:
    """Moves the corners of boxes into an image of that size; x1 <= x2 and y1 <= y2 afterwards."""
    x1, y1, x2, y2 = np.clip(boxes.T, 0, np.array([width, height, width, height], np.float32)[:, None])
    return np.stack([np.minimum(x1, x2), np.minimum(y1, y2), np.maximum(x1, x2), np.maximum(y1, y2)], 1).astype(
        np.float32
    )


def heat_map(
    boxes: Float[np.ndarray, "R 4"], weights: Float[np.ndarray, " R"], height: int, width: int
) -> Float[np.ndarray, "{height} {width}"]:
    """Spreads each box's weight over the image as a smooth bump of the box's size, and scales the sum to at most 1.

    A bump is a Gaussian with half the box's sides as standard deviations. Its height is the weight over the square root of
    its area: between height = weight, which drowns a lesion in the box of the whole image, and volume = weight, which
    makes a tiny box glow whatever its weight. All zero when all weights are.
    """
    x1, y1, x2, y2 = clip_boxes(boxes, height, width).T

    def bumps(low: np.ndarray, high: np.ndarray, length: int) -> np.ndarray:
        spread = np.maximum((high - low) / 2, 1.0)[:, None]
        away = (np.arange(length) + 0.5 - ((low + high) / 2)[:, None]) / spread
        return np.exp(-0.5 * away**2) / np.sqrt(spread)

    heat = np.einsum("r,rh,rw->hw", np.maximum(weights, 0), bumps(y1, y2, height), bumps(x1, x2, width))
    top = heat.max(initial=0.0)
    return (heat / top if top > 0 else heat).astype(np.float32)


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "R 4"],
    weights: Float[np.ndarray, " R"],
    outlined: int = 3,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws region attention on an image: heat, every box by its weight, and the strongest boxes with their share.

    Args:
      image: what to draw on.
      boxes: x1, y1, x2, y2 in its pixels; what lies outside is cut off.
      weights: a weight for each box, not negative.
      outlined: how many of the strongest boxes get a full outline and a number.

    Returns:
      A new image; the same as `image` when all weights are zero.
    """
    height, width = image.shape[:2]
    top = float(np.max(weights, initial=0.0))
    if top <= 0:
        return image.copy()
    # Attention that prefers nothing is drawn faintly: scaled to its own maximum it would look like a choice.
    strength = float(np.clip(top / weights.mean() / 4, 0.35, 1.0))
    heat = heat_map(boxes, weights, height, width)[..., None]
    colour = 255 * _HEAT(0.25 + 0.7 * heat[..., 0])[..., :3]
    opacity = _HEAT_OPACITY * strength * heat
    picture = Image.fromarray((image * (1 - opacity) + colour * opacity).round().astype(np.uint8)).convert("RGBA")
    boxes = clip_boxes(boxes, height, width)
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    line = max(1, round(max(height, width) / 160))
    strongest = [int(i) for i in np.argsort(-weights, kind="stable")[:outlined] if weights[i] > 0.02 * top]
    for i in np.argsort(weights, kind="stable"):
        share = float(np.clip(weights[i] / top, 0, 1))
        if i not in strongest and share > 0.02:
            draw.rectangle(_corners(boxes[i]), outline=(*_OUTLINE, round(150 * strength * share)), width=1)
    for i in reversed(strongest):
        _outline(draw, _corners(boxes[i]), line)
    taken = [_corners(boxes[i]) for i in strongest]
    for i in reversed(strongest):
        taken.append(_label(draw, _corners(boxes[i]), f"{100 * weights[i]:.0f} %", layer.size, taken))
    return np.array(Image.alpha_composite(picture, layer).convert("RGB"))


def drawn_maps(
    explanation: Explanation, largest: int | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"] | None, list[tuple[str, UInt8[np.ndarray, "H W 3"]]]]:
    """The image at a legible size, and each attention map drawn on it with its label; `largest` as of `canvas`.

    Raises:
      DataError: the image cannot be decoded.
    """
    drawn = canvas(explanation, largest)
    if drawn is None:
        return None, []
    image, boxes = drawn
    draw = {True: lambda weights: smooth_overlay(image, weights), False: lambda weights: overlay(image, boxes, weights)}
    return image, [(one.label, draw[one.smooth](one.weights)) for one in explanation.maps]


def smooth_overlay(image: UInt8[np.ndarray, "H W 3"], weights: Float[np.ndarray, " R"]) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a map over the square grid of an image's cells as `jaxvqa.explain.gradcam` does; all zeros change nothing."""
    if not np.any(weights):
        return image.copy()
    side = math.isqrt(len(weights))
    values = gradcam.resized(gradcam.stretched(weights.reshape(side, side)), *image.shape[:2])
    return (255 * gradcam.overlaid(image / 255, gradcam.blurred(values))).round().astype(np.uint8)


STRIP = 6
"""Panels in a row, where there is a map for each word."""


def figure(explanation: Explanation) -> Figure:
    """One question on one page: the image, the attention on it, on the words, and the best answers.

    Where there is a map for each word, they stand below in a strip of panels.
    """
    image, maps = drawn_maps(explanation)
    rows = math.ceil(len(maps) / STRIP) if len(maps) > 1 else 0
    page = Figure(figsize=(11, 4.4 + 2.2 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(page)
    above: Any = page
    if rows:
        halves: Any = page.subfigures(2, 1, height_ratios=(4.4, 2.2 * rows))
        above, strip = halves
        for i, (label, drawn) in enumerate(maps):
            _show(strip.add_subplot(rows, STRIP, i + 1), drawn, plain(label))
        maps = []
    parts: Any = above.subfigures(1, 2 if rows else 3, width_ratios=(1, 1.6) if rows else (1, 1, 1.15))
    left, right, middle = parts[0], parts[-1], None if rows else parts[1]
    if image is None:
        for part in parts[:-1]:
            _say(part.add_subplot(), "no image in the data")
    else:
        _show(left.add_subplot(), image, "image")
    if image is not None and middle is not None:
        without = "the model reads no image" if explanation.blind else "the model gives no attention over regions"
        if maps:
            _show(middle.add_subplot(), maps[0][1], maps[0][0] or "attention over regions")
        else:
            _say(middle.add_subplot(), without)
    words, answers = right.subplots(2, 1, height_ratios=(max(len(explanation.words), 3), len(explanation.answers)))
    _bars(words, "attention over words", explanation.words, explanation.word_attention, "#d97706")
    names = [name for name, _ in explanation.answers]
    _bars(answers, "answers, by probability", names, [p for _, p in explanation.answers], "#2563a8")
    given = f"      annotators: {most_common(explanation.annotators)}" if explanation.annotators else ""
    page.suptitle(plain(f"{explanation.question}\nanswer: {explanation.answers[0][0]}{given}"), fontsize=12, wrap=True)
    return page


def _say(axes: matplotlib.axes.Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.4")


def _show(axes: matplotlib.axes.Axes, image: UInt8[np.ndarray, "H W 3"], title: str) -> None:
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, color="0.3")
    axes.imshow(image)


def most_common(answers: Sequence[str]) -> str:
    """Annotators' answers in one line, most frequent first: "left × 8, right × 2"."""
    counts = {answer: list(answers).count(answer) for answer in dict.fromkeys(answers)}
    ordered = sorted(counts, key=lambda answer: -counts[answer])
    return ", ".join(answer if counts[answer] == 1 else f"{answer} × {counts[answer]}" for answer in ordered)


def _bars(
    axes: matplotlib.axes.Axes,
    title: str,
    names: Sequence[str],
    values: Sequence[float] | Float[np.ndarray, " N"],
    colour: str,
) -> None:
    places = np.arange(len(names))
    axes.barh(places, values, color=colour, height=0.7)
    axes.set_yticks(places, [plain(name) for name in names], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xticks([])
    axes.set_title(title, fontsize=10, color="0.3", loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.01, float(place), f"{100 * value:.1f} %", va="center", fontsize=8, color="0.3")


def plain(text: str) -> str:
    """A text that matplotlib draws as it is, where dollars would begin a formula."""
    return text.replace("$", r"\$")


Corners = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""


def _corners(box: np.ndarray) -> Corners:
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _outline(draw: ImageDraw.ImageDraw, corners: Corners, line: int) -> None:
    draw.rectangle(corners, outline=(0, 0, 0, 200), width=line + 2)
    x1, y1, x2, y2 = corners
    if x2 - x1 > 2 and y2 - y1 > 2:
        draw.rectangle((x1 + 1, y1 + 1, x2 - 1, y2 - 1), outline=(*_OUTLINE, 255), width=line)


def _label(
    draw: ImageDraw.ImageDraw, corners: Corners, text: str, size: tuple[int, int], taken: Sequence[Corners]
) -> Corners:
    """Writes above a box, or below or beside it where that hides less of what is `taken`; returns what is covered."""
    font = ImageFont.load_default(max(12, max(size) // 18))
    x1, y1, x2, y2 = map(int, draw.textbbox((0, 0), text, font=font))  # whole numbers, which Pillow's types call floats
    w, h = x2 - x1 + 6, y2 - y1 + 6
    left, top, right, bottom = corners
    wanted = [(left, top - h - 1), (left, bottom + 1), (right + 1, top), (left - w - 1, top)]
    inside = [(min(max(x, 0), max(0, size[0] - w)), min(max(y, 0), max(0, size[1] - h))) for x, y in wanted]
    places = [(x, y, x + w, y + h) for x, y in inside]
    place = min(places, key=lambda one: sum(_shared(one, other) for other in taken))
    draw.rectangle(place, fill=(0, 0, 0, 190))
    draw.text((place[0] + 3 - x1, place[1] + 3 - y1), text, font=font, fill=(255, 255, 255, 255))
    return place


def _shared(one: Corners, other: Corners) -> int:
    """The pixels that two boxes share."""
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1 for i in (0, 1))
    return max(width, 0) * max(height, 0)
