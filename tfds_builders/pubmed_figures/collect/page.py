"""A page of figures with their boxes, letters and sub-captions, and of what was refused: one HTML file, for looking at."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from jaxvqa.data import pictures
from tfds_builders.pubmed_figures.collect.files import write_whole

COLOURS = ("#d1495b", "#00798c", "#b8860b", "#2e7d32", "#6a4c93", "#c2410c", "#1d4ed8", "#7f5539")
WIDEST = 700
"""Pixels at which pictures are put into the page."""


def write_page(path: Path, folder: Path, figures: Iterable[dict[str, Any]], refused: Iterable[dict[str, Any]]) -> int:
    """Writes the page.

    Args:
      path: The HTML file.
      folder: Where the pictures lie.
      figures: Of `figures.json`: `file`, `boxes`, `subcaptions`, `preamble` and what says where they are from.
      refused: `id` and `why`.

    Returns:
      How many figures are on it.
    """
    shown = [_shown(folder, figure) for figure in figures]
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(text)
    pairs = sum(bool(row["text"] and not row["missing"]) for figure in shown for row in figure["rows"])
    write_whole(path, template.render(figures=shown, refused=list(refused), pairs=pairs))
    return len(shown)


def _shown(folder: Path, figure: dict[str, Any]) -> dict[str, Any]:
    picture = pictures.decode((folder / figure["file"]).read_bytes(), 3)
    width, height = picture.size
    small = picture.copy()
    small.thumbnail((WIDEST, WIDEST))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    texts = figure.get("subcaptions") or {}
    panels = []
    for i, box in enumerate(figure.get("boxes") or []):
        x0, y0, x1, y1 = box["box"]
        panels.append(
            {"x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0, "label": box["label"], "read": box["read"], "missing": False}
            | {"text": texts.get(box["label"], ""), "colour": COLOURS[i % len(COLOURS)]}
        )
    boxed = {panel["label"] for panel in panels}
    without = [
        {"label": label, "text": text, "missing": True, "colour": "#777"}
        for label, text in texts.items()
        if label not in boxed
    ]
    return {
        "id": figure.get("figure_id") or figure["file"],
        "label": figure.get("label", ""),
        "common": figure.get("preamble") or ("" if texts else figure.get("caption") or figure.get("title", "")),
        "attribution": figure.get("attribution", ""),
        "licence": figure.get("license", ""),
        "width": width,
        "height": height,
        "line": max(width, height) / 220,
        "src": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
        "panels": panels,
        "rows": panels + without,
    }
