"""Joins the panels of a picture with the sub-captions of its caption: by letter, by side, and by order."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from tfds_builders.pubmed_figures.collect import letters as reading
from tfds_builders.pubmed_figures.collect.letters import Letter, Reader
from tfds_builders.pubmed_figures.collect.panels import Box, panel_boxes
from tfds_builders.pubmed_figures.collect.subcaptions import Split

SIDES = {"left": (0, 0), "right": (0, -1), "top": (1, 0), "upper": (1, 0), "bottom": (1, -1), "lower": (1, -1)}
"""Side -> the axis along which panels stand, and which of them is meant."""

BY_ROW, BY_COLUMN = 0.3, 0.2
"""What the order of panels is worth beside a letter that was read, whose confidence is up to 1."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of a figure.

    Attributes:
      box: Left, top, right and bottom in pixels.
      label: As the caption prints it, or as read; "" if there is none.
      read: The letter that was read in the picture, or None: the label then follows from the order.
      text: The panel's sub-caption; "" if there is none.
    """

    box: Box
    label: str = ""
    read: Letter | None = None
    text: str = ""


def split_figure(rgb: np.ndarray, split: Split, reader: Reader) -> list[Panel]:
    """Splits a figure into panels with their sub-captions.

    Args:
      rgb: uint8 [H, W, 3].
      split: The caption in its parts.
      reader: A recogniser of letters.

    Returns:
      The panels, row by row. One, of the whole figure, where no cut was found.
    """
    grey = _grey(rgb)
    labels = list(split.parts)
    sided = bool(labels) and all(label in SIDES for label in labels)
    expected = len(labels) if len(labels) > 1 and labels[0][0].lower() in ("a", *(side[0] for side in SIDES)) else None
    boxes = panel_boxes(grey, expected)
    if sided:
        return _by_side(boxes, split.texts)
    names = [label for label in labels if len(label) == 1]
    found = reading.read_letters(rgb, boxes, reader)
    chosen = reading.labels_of_panels(found, boxes, names)
    again = _another_cut(grey, boxes, chosen, expected)
    if again is not None:
        found_again = reading.read_letters(rgb, again, reader)
        chosen_again = reading.labels_of_panels(found_again, again, names)
        if _trust(chosen_again) >= _trust(chosen) - 0.01:
            boxes, chosen = again, chosen_again
    return _by_letter(boxes, chosen, split.texts)


def _grey(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ np.asarray([0.299, 0.587, 0.114], np.float32) + 0.5).astype(np.uint8)


def _trust(chosen: Mapping[int, Letter]) -> float:
    return sum(letter.sure for letter in chosen.values())


def _another_cut(
    grey: np.ndarray, boxes: Sequence[Box], chosen: Mapping[int, Letter], expected: int | None
) -> list[Box] | None:
    """Cuts again by the letters that were read, if they contradict the first cut."""
    if expected is None:
        # Without a caption the letters say how many panels there are: a, b, c and no gap.
        texts = sorted(letter.text for letter in chosen.values())
        if len(texts) < 2 or texts != [chr(97 + i) for i in range(len(texts))] or len(texts) == len(boxes):
            return None
        expected = len(texts)
    elif len(chosen) >= len(boxes) or len(chosen) < 2:
        return None
    again = panel_boxes(grey, expected, [letter.box for letter in chosen.values()])
    return again if again != list(boxes) else None


def _by_side(boxes: Sequence[Box], texts: Mapping[str, str]) -> list[Panel]:
    """Joins panels with "left", "right", "top" and "bottom"."""
    labels: dict[int, str] = {}
    for label in texts:
        axis, which = SIDES[label]
        ordered = sorted(range(len(boxes)), key=lambda i: boxes[i][axis] + boxes[i][axis + 2])
        labels.setdefault(ordered[which], label)
    return [Panel(box, labels.get(i, ""), None, texts.get(labels.get(i, ""), "")) for i, box in enumerate(boxes)]


def _by_letter(boxes: Sequence[Box], chosen: Mapping[int, Letter], texts: Mapping[str, str]) -> list[Panel]:
    """Joins panels with letters: what was read weighs most, then the order by rows, then that by columns."""
    from scipy.optimize import linear_sum_assignment

    names = list(texts)
    columns = sorted(range(len(boxes)), key=lambda i: (boxes[i][0], boxes[i][1]))
    if not names:
        # No caption: the letters that were read, and those between them if they follow an order.
        alphabet = [chr(97 + i) for i in range(len(boxes))]
        in_order = [dict(zip(order, alphabet, strict=True)) for order in (range(len(boxes)), columns)]
        ordered = any(all(of[i] == letter.text for i, letter in chosen.items()) for of in in_order)
        names = alphabet if chosen and (ordered or len(chosen) > 2) else [letter.text for letter in chosen.values()]
    worth = np.zeros((len(boxes), max(len(names), 1)))
    for order, value in ((range(len(boxes)), BY_ROW), (columns, BY_COLUMN)):
        for i, j in zip(order, range(len(names)), strict=False):
            worth[i, j] += value
    for i, j in itertools.product(range(len(boxes)), range(len(names))):
        if i in chosen and chosen[i].text == names[j].lower():
            worth[i, j] += 0.3 + chosen[i].sure
    labels = {}
    for i, j in zip(*linear_sum_assignment(-worth), strict=True):
        # Where panels were missed, their order says nothing of the others.
        read = int(i) in chosen and j < len(names) and chosen[int(i)].text == names[j].lower()
        if read or (j < len(names) and len(boxes) >= len(names) and worth[i, j] > 0):
            labels[int(i)] = names[int(j)]
    return [
        Panel(box, labels.get(i, ""), chosen.get(i), texts.get(labels.get(i, ""), "")) for i, box in enumerate(boxes)
    ]
