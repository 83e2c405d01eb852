"""Measures how well figures are split into panels, letters and sub-captions.

    python -m benchmarks.pubmed_figures [--figures=300] [--first=0] [--data=DIR] [--json=FILE]

`--data` (or the variable JAXVQA_DATA) is a folder with `data/vqa_rad` and `data/vqa_med_2019`, whose single pictures
are composed into figures, and with `data/pmc_figures`, published figures with boxes and sub-captions; without it phantoms
are composed. A box is found when its intersection over union with a panel is at least 0.7; a letter when the found box
carries it; a pair when the found box carries the panel's sub-caption, word for word. `read` counts the letters that were read
in the picture; the others follow from the order. Intervals (95 %) are over figures.
"""

import argparse
import collections
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.pubmed_compose import compose, single_pictures
from jaxvqa.metrics.bootstrap import confidence_interval
from tfds_builders.phantom_vqa.render import render
from tfds_builders.phantom_vqa.scenes import make_scene
from tfds_builders.pubmed_figures.collect.letters import Reader, Tesseract
from tfds_builders.pubmed_figures.collect.pair import Panel, split_figure
from tfds_builders.pubmed_figures.collect.panels import Box
from tfds_builders.pubmed_figures.collect.subcaptions import split_caption

FOUND = 0.7
"""Intersection over union from which a box is found."""

Counts = dict[str, list[tuple[int, int]]]
"""Quantity -> for each figure, how many were right of how many."""


def overlap(a: Box, b: Box) -> float:
    """Returns the intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, width) * max(0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def matched(panels: Sequence[Panel], boxes: Mapping[str, Box]) -> dict[str, Panel]:
    """Returns the panel found for each label."""
    return {
        label: max(panels, key=lambda panel: overlap(panel.box, box))
        for label, box in boxes.items()
        if any(overlap(panel.box, box) >= FOUND for panel in panels)
    }


def add_composed(counts: Counts, seeds: Iterable[int], pictures: Sequence[Path], reader: Reader) -> list[int]:
    """Measures composed figures; returns the seeds of which something was missed."""
    missed = []
    for seed in seeds:
        figure = compose(seed, pictures)
        with tempfile.SpooledTemporaryFile() as file:
            file.write(figure.jpeg)
            rgb = np.asarray(Image.open(file).convert("RGB"))
        panels = split_figure(rgb, split_caption(figure.caption), reader)
        boxes = dict(zip(figure.labels, figure.boxes, strict=True))
        hits = matched(panels, boxes)
        right = {
            "boxes": len(hits),
            "letters": sum(panel.label == label for label, panel in hits.items()),
            "pairs": sum(panel.text == figure.texts[label] for label, panel in hits.items()),
            "read": sum(panel.read is not None and panel.read.text == label.lower() for label, panel in hits.items()),
        }
        for name, number in right.items():
            if name in ("boxes", "pairs") or figure.printed:
                counts[name].append((number, len(boxes)))
        # Without the caption: the picture alone.
        alone = matched(split_figure(rgb, split_caption(""), reader), boxes)
        counts["boxes without caption"].append((len(alone), len(boxes)))
        if figure.printed:
            number = sum(panel.label == label.lower() for label, panel in alone.items())
            counts["letters without caption"].append((number, len(boxes)))
        if min(right[name] for name in ("boxes", "pairs")) < len(boxes):
            missed.append(seed)
    return missed


def add_published(counts: Counts, folder: Path, reader: Reader) -> list[str]:
    """Measures published figures; returns what was missed."""
    missed = []
    for figure in json.loads((folder / "figures.json").read_text(encoding="utf-8")):
        split = split_caption(figure.get("caption") or figure.get("title", ""))
        texts = figure.get("subcaptions", {})
        if texts:
            counts["sub-captions"].append((sum(split.texts.get(k) == text for k, text in texts.items()), len(texts)))
        if not figure["panels"]:
            continue
        rgb = np.asarray(Image.open(folder / figure["file"]).convert("RGB"))
        panels = split_figure(rgb, split, reader)
        hits = matched(panels, {label: tuple(box) for label, box in figure["panels"].items()})
        named = [label for label, panel in hits.items() if panel.label.lower() == label.lower()]
        number = len(figure["panels"])
        counts["boxes"].append((len(hits), number))
        counts["letters"].append((len(named), number))
        if texts:
            counts["pairs"].append((sum(panel.text == texts.get(k) for k, panel in hits.items()), number))
        missed += [f"{figure['file']} {label}" for label in figure["panels"] if label not in named]
    return missed


def summary(counts: Counts) -> dict[str, dict[str, Any]]:
    """Returns share and interval of each quantity."""
    rows = {}
    for name, pairs in counts.items():
        right, of = (sum(pair[i] for pair in pairs) for i in (0, 1))
        values = np.concatenate([np.arange(n) < r for r, n in pairs])
        low, high = confidence_interval(values, np.repeat(np.arange(len(pairs)), [n for _, n in pairs]))
        rows[name] = {"right": right, "of": of, "share": right / of, "low": low, "high": high}
    return rows


def phantom_pictures(folder: Path, count: int = 60) -> list[Path]:
    """Draws phantoms into a folder."""
    for i in range(count):
        Image.fromarray(render(make_scene(i)).image).resize((320, 320)).save(folder / f"{i:03d}.png")
    return single_pictures(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pubmed_figures", description=__doc__.split("\n")[0])
    parser.add_argument("--figures", type=int, default=300, help="composed figures (default 300)")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed (default 0)")
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXVQA_DATA") or None, help="folder of real data")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)
    reader = Tesseract()
    start = time.monotonic()
    composed: Counts = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        if args.data:
            folders = [Path(args.data) / "data" / name for name in ("vqa_rad", "vqa_med_2019")]
            pictures = [path for folder in folders for path in single_pictures(folder)]
        else:
            pictures = phantom_pictures(Path(temporary))
        missed = add_composed(composed, range(args.first, args.first + args.figures), pictures, reader)
    result: dict[str, Any] = {"composed": summary(composed), "missed": {"composed": missed}}
    if args.data:
        published: Counts = collections.defaultdict(list)
        result["missed"]["published"] = add_published(published, Path(args.data) / "data/pmc_figures", reader)
        result["published"] = summary(published)
    for part in ("composed", "published"):
        for name, row in result.get(part, {}).items():
            print(
                f"{part:10} {name:24} {row['right']:5} of {row['of']:5}  {100 * row['share']:5.1f} % "
                f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"
            )
    print(f"missed: {result['missed']}\n{time.monotonic() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
