"""How many of the phantoms' lesions meet a region that is proposed from the image alone.

    python -m benchmarks.proposals [--images=150] [--regions 40 80 160]

A lesion is met where a proposed box and the lesion's own share at least half of their union. Of the validation images.
"""

import argparse
import sys
import time

import numpy as np
from jaxtyping import Float

from jaxvqa import configs
from jaxvqa.data import pictures
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.proposals import propose
from jaxvqa.errors import run_command

CONFIG = "configs/rwsan.py:proposed"
LEAST = 0.5
"""Intersection over union from which a region counts as the lesion's."""


def best_overlaps(lesions: Float[np.ndarray, "L 4"], boxes: Float[np.ndarray, "R 4"]) -> Float[np.ndarray, " L"]:
    """The largest intersection over union that each lesion has with any box; x1, y1, x2, y2."""
    of, by = lesions[:, None].astype(np.float64), boxes[None].astype(np.float64)
    low, high = np.maximum(of[..., :2], by[..., :2]), np.minimum(of[..., 2:], by[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (of, by)]
    return (shared / (areas[0] + areas[1] - shared)).max(axis=1)


def _run() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", default=150, type=int, help="how many")
    parser.add_argument("--regions", default=[40, 80, 160], type=int, nargs="+", help="the most regions of an image")
    args = parser.parse_args()
    source = DataSet(configs.load(CONFIG).data).split("val")
    ids = list(dict.fromkeys(int(record["image_id"]) for record in source.all_records()))[: args.images]
    images = source.read_images(ids)
    pixels = [np.asarray(pictures.decode(image["image"])) for image in images]
    for count in args.regions:
        begun = time.perf_counter()
        proposed = [propose(image, count) for image in pixels]
        seconds = (time.perf_counter() - begun) / len(images)
        pairs = [(image["lesion_boxes"], boxes) for image, boxes in zip(images, proposed, strict=True)]
        found = np.concatenate([best_overlaps(np.asarray(lesions), boxes) for lesions, boxes in pairs if len(lesions)])
        share = 100 * np.mean(found >= LEAST)
        print(f"{count:4d} regions: {share:5.1f} % of {len(found)} lesions, {1000 * seconds:.0f} ms an image")


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.proposals", _run))
