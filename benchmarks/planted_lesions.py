"""How often a model's attention peaks in a lesion of the phantom that it was asked about.

    python -m benchmarks.planted_lesions --workdir=RUN [--split=test] [--count=400] [--predict=explain] [--json=FILE]

An image is asked about once, and counts where it holds a lesion; questions are those about lesions, captions all. The peak is
that of the map as `python -m jaxvqa.explain` draws it; where there is a map for each word, of their sum, each by the word's
weight. It is a hit in the box of any lesion of the image.

Maps have habits of place, and so have lesions. So the control lays the same peaks on the other images of the same view (body
part and plane) with lesions: what remains is what the map owes to this image. Intervals resample images.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvqa.errors import ConfigError, run_command
from jaxvqa.explain import gradcam, overlay
from jaxvqa.explain.attention import default_split, explain
from jaxvqa.explain.explanation import Explanation
from jaxvqa.inputs import user_path
from jaxvqa.logs import log
from jaxvqa.metrics.bootstrap import confidence_interval
from jaxvqa.runs import Run

ABOUT_LESIONS = ("presence", "position", "size", "count", "abnormality")
"""Question types of the phantoms."""

AT_ONCE = 50


def peak(explanation: Explanation, side: int = 256) -> tuple[float, float] | None:
    """Where the attention is strongest: x and y as shares of the image's width and height; None for a map of zeros."""
    words = explanation.word_attention
    weights = words if len(words) == len(explanation.maps) and np.any(words) else np.ones(len(explanation.maps))
    if not explanation.maps:
        return None
    one = np.sum([w * m.weights for w, m in zip(weights, explanation.maps, strict=True)], axis=0)
    if not np.any(one):
        return None
    if explanation.maps[0].smooth:
        cells = round(len(one) ** 0.5)
        heat = gradcam.blurred(gradcam.resized(gradcam.stretched(np.reshape(one, (cells, cells))), side, side))
    else:
        scale = np.asarray([side / explanation.size[0], side / explanation.size[1]] * 2, np.float32)
        heat = overlay.heat_map(explanation.boxes * scale, np.asarray(one, np.float32), side, side)
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    return (float(x) + 0.5) / side, (float(y) + 0.5) / side


def inside(point: tuple[float, float], boxes: np.ndarray) -> bool:
    """Whether a point lies in one of the boxes, x1, y1, x2, y2 in the same units."""
    x, y = point
    return bool(np.any((boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])))


def hits(
    peaks: Sequence[tuple[float, float] | None], lesions: Sequence[np.ndarray], views: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """For each image whether its peak hits, and the share of the other images of its view in which it would.

    Images that are alone in their view are left out of both.

    Args:
      peaks: of each image; None never hits.
      lesions: float[L, 4] boxes of each image, as shares of its sides.
      views: of each image.
    """
    of_view = defaultdict(list)
    for i, view in enumerate(views):
        of_view[view].append(i)
    found, control = [], []
    for i, (point, view) in enumerate(zip(peaks, views, strict=True)):
        if others := [j for j in of_view[view] if j != i]:
            found.append(float(point is not None and inside(point, lesions[i])))
            control.append(np.mean([point is not None and inside(point, lesions[j]) for j in others]))
    return np.asarray(found), np.asarray(control)


def measured(run: Run, split: str, count: int, predict: str) -> dict[str, Any]:
    """The table of one run."""
    source = run.data.split(split)
    records, seen, positions = list(source.all_records()), set(), []
    for i in np.random.default_rng(0).permutation(len(records)):
        record = records[int(i)]
        if record["image_id"] not in seen and record.get("question_type", ABOUT_LESIONS[0]) in ABOUT_LESIONS:
            seen.add(record["image_id"])
            positions.append(int(i))
    part = f"{run.final.data.examples.partition('/')[0]}/images"
    images = run.data.changed(images=part, image_splits="").split(split)
    peaks: list[tuple[float, float] | None] = []
    lesions: list[np.ndarray] = []
    views: list[tuple[str, str]] = []
    kept: list[int] = []
    for position in positions:
        image = images.read_images([int(records[position]["image_id"])])[0]
        if "lesion_boxes" not in image:
            raise ConfigError(f"{part} has no lesion_boxes: only the phantoms say where their lesions are.")
        if len(image["lesion_boxes"]) and len(kept) < count:
            kept.append(position)
            sides = np.asarray([image["image_w"], image["image_h"]] * 2, float)
            lesions.append(np.asarray(image["lesion_boxes"], float) / sides)
            views.append((str(image["organ"]), str(image["plane"])))
    for start in range(0, len(kept), AT_ONCE):
        log.info("%d of %d images", start, len(kept))
        peaks += [peak(e) for e in explain(run, split=split, positions=kept[start : start + AT_ONCE], predict=predict)]
    found, control = hits(peaks, lesions, views)
    area = [float(np.sum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))) for boxes in lesions]
    table: dict[str, Any] = {"images": len(found), "area": float(np.mean(area))}
    for name, values in {"hit": found, "control": control}.items():
        low, high = confidence_interval(values.tolist())
        table[name] = {"value": float(np.mean(values)), "low": low, "high": high}
    return table | {"without_map": sum(point is None for point in peaks)}


def _run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workdir", required=True, type=user_path, help="the folder of the run")
    parser.add_argument("--split", default="", help="default: that of the main evaluation")
    parser.add_argument("--count", default=400, type=int, help="the most images")
    parser.add_argument("--predict", default="explain", help="which of the task's predict functions that explain")
    parser.add_argument("--json", default="", help="a file to write the table to")
    args = parser.parse_args()
    run = Run.open(args.workdir)
    table = measured(run, args.split or default_split(run.final), args.count, args.predict)
    print(f"{args.workdir.name}, {table['images']} images, {table['without_map']} without a map")
    for name in ("hit", "control"):
        row = table[name]
        print(f"{name:8s} {100 * row['value']:5.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})")
    print(f"hit / control {table['hit']['value'] / max(table['control']['value'], 1e-9):.2f}")
    print(f"area of the lesions' boxes {100 * table['area']:.1f} % of the image")
    if args.json:
        Path(args.json).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.planted_lesions", _run))
