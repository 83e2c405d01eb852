"""Writes what was split: the folder that the builder reads, and the original's own training files."""

import json
import shutil
from pathlib import Path
from typing import Any

from jaxvqa.errors import DataError
from tfds_builders.pubmed_figures.collect.files import write_whole
from tfds_builders.pubmed_figures.collect.journal import Journal


def figures_json(journal: Journal) -> list[dict[str, Any]]:
    """Returns the records of `figures.json`, figures in the order in which they were found."""
    return [
        {
            "file": figure["file"],
            "figure_id": figure["id"],
            "article": figure["id"].partition("/")[0],
            "width": figure["width"],
            "height": figure["height"],
            "format": figure["format"],
            "source": figure.get("source", ""),
            "doi": figure.get("doi", ""),
            "license": figure["licence"],
            "license_url": figure.get("licence_url", ""),
            "attribution": figure.get("attribution", ""),
            "label": figure.get("label", ""),
            "title": figure.get("title", ""),
            "caption": figure.get("caption", ""),
            "preamble": figure["preamble"],
            "subcaptions": figure["subcaptions"],
            "panels": figure["panels"] or None,
            "boxes": figure["boxes"],
        }
        for figure in journal.items("split", figures=True)
    ]


def whole_caption(figure: dict[str, Any]) -> str:
    """Returns title and caption of a figure as one text."""
    return " ".join(part for part in (figure.get("title", ""), figure.get("caption", "")) if part)


def write(folder: Path, journal: Journal) -> dict[str, int]:
    """Writes `figures.json`, and the original's files into `original/`.

    `medical.json` has whole figures (`image`, `caption`, `image_id`), `med_captions_processed.json` sub-captions (`Img_id`,
    `Sub_ID` in lower case, `text`), `boxes/NAME.json` each figure's boxes (`x`, `y`, `w`, `h`, `OCR`).

    Args:
      folder: Where the pictures lie.
      journal: What was split.

    Returns:
      How many figures and sub-captions there are.

    Raises:
      DataError: Nothing was split.
    """
    figures = figures_json(journal)
    if not figures:
        raise DataError(f"No figure in {folder} has been split: run find, fetch and split first.")
    whole, parts = [], []
    shutil.rmtree(folder / "original", ignore_errors=True)
    for number, figure in enumerate(figures):
        name = Path(figure["file"]).name
        whole.append({"image": figure["file"], "caption": whole_caption(figure), "image_id": str(number)})
        texts = figure["subcaptions"] or {"": whole_caption(figure)}
        parts += [{"Img_id": name, "Sub_ID": label.lower(), "text": text} for label, text in texts.items()]
        boxes = [
            {
                "x": x0,
                "y": y0,
                "w": x1 - x0,
                "h": y1 - y0,
                "OCR": box.get("words") or [box["read"] or box["label"].lower()],
            }
            for box in figure["boxes"]
            for x0, y0, x1, y1 in [box["box"]]
        ]
        write_whole(folder / "original/boxes" / f"{name}.json", _json(boxes))
    write_whole(folder / "original/medical.json", _json(whole))
    write_whole(folder / "original/med_captions_processed.json", _json(parts))
    write_whole(folder / "figures.json", _json(figures))
    return {"figures": len(figures), "sub-captions": sum(len(figure["subcaptions"]) for figure in figures)}


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1)
