"""Splits every figure at hand into panels with their sub-captions, and enters them into the journal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxvqa.data import pictures
from jaxvqa.errors import DataError
from tfds_builders.pubmed_figures.collect import original
from tfds_builders.pubmed_figures.collect.journal import Journal
from tfds_builders.pubmed_figures.collect.letters import Reader, Tesseract
from tfds_builders.pubmed_figures.collect.pair import Panel, split_figure
from tfds_builders.pubmed_figures.collect.subcaptions import Split, split_caption

LONGEST_SIDE = 2_000
"""Pixels; larger pictures are split at this size, and the boxes scaled."""


def split_figures(
    folder: Path,
    journal: Journal,
    reader: Reader,
    *,
    original_rules: bool = False,
    again: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Splits what was fetched.

    Args:
      folder: Where the pictures lie.
      journal: Figures go from fetched to split.
      reader: A recogniser of letters.
      original_rules: A sub-caption is given the first box of which a recognised word equals its letter, in lower case,
        else the whole figure.
      again: Figures that were split before are split again.
      progress: Called with each figure's name.
    """
    for figure in journal.items("fetched", *(["split"] if again else []), figures=True):
        progress(figure["id"])
        try:
            found = split_one((folder / figure["file"]).read_bytes(), figure, reader, original_rules=original_rules)
        except (DataError, OSError) as error:
            journal.put(figure["id"], "refused", f"its picture {error}")
            continue
        journal.put(figure["id"], "split", **found)


def split_one(
    picture: bytes, figure: dict[str, Any], reader: Reader, *, original_rules: bool = False
) -> dict[str, Any]:
    """Returns a figure's panels, as the journal keeps them.

    Args:
      picture: The file.
      figure: `caption`, or `title` where marks stand in it; `bold`, spans of the caption.
      reader: A recogniser.
      original_rules: As in `split_figures`.

    Raises:
      DataError: The picture cannot be decoded.
    """
    decoded = pictures.decode(picture, 3)
    size = decoded.size
    scale = min(1.0, LONGEST_SIDE / max(size))
    small = decoded if scale == 1.0 else decoded.resize((round(size[0] * scale), round(size[1] * scale)))
    split = split_caption(figure.get("caption", ""), [tuple(span) for span in figure.get("bold", ())])
    if not split.parts and figure.get("title"):
        split = split_caption(figure["title"])
    panels = split_figure(np.asarray(small), split, reader)
    boxes = [[round(value / scale) for value in panel.box] for panel in panels]
    words = (
        [reader.words(decoded.crop((box[0], box[1], box[2], box[3]))) for box in boxes]
        if original_rules and isinstance(reader, Tesseract)
        else None
    )
    crops = _crops(panels, boxes, split, size) if words is None else _original_crops(boxes, words, split, size)
    return {
        "preamble": split.preamble,
        "subcaptions": split.texts,
        "panels": crops,
        "boxes": [
            {"box": box, "label": panel.label, "read": panel.read.text if panel.read else ""}
            | ({"words": words[i]} if words is not None else {})
            for i, (box, panel) in enumerate(zip(boxes, panels, strict=True))
        ],
    }


def _crops(panels: list[Panel], boxes: list[list[int]], split: Split, size: tuple[int, int]) -> dict[str, list[int]]:
    """Returns label -> box; the whole figure for a sub-caption without a box, as in the original."""
    found = {panel.label: box for panel, box in zip(panels, boxes, strict=True) if panel.label}
    return found | {label: [0, 0, *size] for label in split.parts if label not in found}


def _original_crops(
    boxes: list[list[int]], words: list[list[str]], split: Split, size: tuple[int, int]
) -> dict[str, list[int]]:
    given = [
        {"x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0, "OCR": ocr}
        for (x0, y0, x1, y1), ocr in zip(boxes, words, strict=True)
    ]
    crops = {label: original.subfigure_choice(given, label.lower(), size) for label in split.parts}
    return {label: [x, y, x + w, y + h] for label, (x, y, w, h) in crops.items()}
