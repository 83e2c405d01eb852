"""Region boxes of an image by its pixels alone: the whole image, cells of grids, blobs and contours at several scales.

For models that read regions, where nobody ran a detector (`config.data.regions = "shapes"`): nothing is learned, and nothing
but the image is read, so a new image gets its regions as the training images got theirs. What each region shows is described
by `jaxvqa.data.region_features`.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from jaxvqa.data.region_features import FEATURE_WIDTH, region_features

GRIDS = (2, 3)
"""Cells a side of the grids; with the image itself, they make the first 14 regions."""

BLOB_SCALES = (0.02, 0.028, 0.04, 0.057, 0.08, 0.113)
"""Radii of blobs, as shares of the image's shorter side, a factor of the square root of 2 apart."""

REACH = 4 / 3
"""Half a blob's box, in its radii."""

LEAST_CURVED = 1e-3
"""The least response of a blob; light is from 0 to 1."""

LEVELS = 8
"""Levels of light between an image's dark and bright ends at which contours are drawn."""

SMOOTHING = 0.008
"""Standard deviation of the Gaussian that takes the grain out first, as a share of the image's shorter side."""

LEAST_AREA, LARGEST_AREA = 0.003, 0.6
"""The areas that a contour may enclose, as shares of the image."""

SAME = 0.55
"""Two boxes whose intersection is more than this share of their union are one region: the one that was found first."""

WORKING_SIDE = 256
"""Larger images are looked at as if their longer side had this many pixels; what is found is as large as it was."""


def propose(image: UInt8[np.ndarray, "H W *C"], count: int) -> Float[np.ndarray, "R 4"]:
    """Boxes of what an image may show, those of the grids first, then blobs and contours in turn, the clearest first.

    Args:
      image: uint8 [H, W], or [H, W, 3], whose grey is looked at.
      count: the most regions.

    Returns:
      float32 [R, 4]: x1, y1, x2, y2 in pixels, inside the image and not empty; R is at least 1.
    """
    grey = image.astype(np.float32) / 255
    grey = grey if grey.ndim == 2 else grey.mean(axis=-1)
    height, width = grey.shape
    step = max(1, -(-max(height, width) // WORKING_SIDE))
    small = ndimage.uniform_filter(grey, step)[step // 2 :: step, step // 2 :: step] if step > 1 else grey
    found: list[np.ndarray] = []
    others = _in_turn(_blobs(small), _contours(small))
    for boxes in (_grid_boxes(height, width), (box * step for box in others)):
        for box in boxes:
            if len(found) >= count:
                break
            box = np.clip(box, 0, [width, height, width, height])
            if min(box[2] - box[0], box[3] - box[1]) >= 1 and not _is_known(box, found):
                found.append(box)
    return np.asarray(found, np.float32).reshape(-1, 4)


def regions_of(image: UInt8[np.ndarray, "H W *C"], count: int) -> dict[str, np.ndarray]:
    """The entries of an image's record that region models read: `boxes` float32[R, 4] and `features` float16[R, F]."""
    boxes = propose(image, count)
    features = region_features(image, boxes) if len(boxes) else np.zeros((0, FEATURE_WIDTH), np.float16)
    return {"boxes": boxes, "features": features}


def _is_known(box: Float[np.ndarray, "4"], found: list[np.ndarray]) -> bool:
    if not found:
        return False
    others = np.asarray(found)
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return bool((shared > SAME * (areas + np.prod(box[2:] - box[:2]) - shared)).any())


def _in_turn(first: list[np.ndarray], second: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Two of the first, one of the second, and so on; then what is left."""
    places = [(i / 2, 0, box) for i, box in enumerate(first)] + [(float(i), 1, box) for i, box in enumerate(second)]
    return (box for *_, box in sorted(places, key=lambda place: place[:2]))


def _grid_boxes(height: int, width: int) -> Iterator[np.ndarray]:
    """The image, and the cells of `GRIDS`, row by row."""
    size = np.asarray([width, height, width, height], np.float64)
    for cells in (1, *GRIDS):
        for row in range(cells):
            for column in range(cells):
                yield np.asarray([column, row, column + 1, row + 1]) / cells * size


def _blobs(grey: Float[np.ndarray, "H W"]) -> list[np.ndarray]:
    """Boxes of spots that are brighter or darker than what is around them, the clearest first.

    They are the extremes over place and scale of the scale-normalised determinant of the Hessian (T. Lindeberg, "Feature
    Detection with Automatic Scale Selection", IJCV 1998), which edges, such as the skull's, do not raise.
    """
    radii = [max(share * min(grey.shape), 1.0) for share in BLOB_SCALES]
    response = np.stack([_curved(grey, radius / 2**0.5) for radius in radii])
    peaks = (response == ndimage.maximum_filter(response, 3, mode="nearest")) & (response > LEAST_CURVED)
    found = []
    for scale, y, x in np.argwhere(peaks):
        reach = REACH * radii[scale]
        box = np.asarray([x + 0.5 - reach, y + 0.5 - reach, x + 0.5 + reach, y + 0.5 + reach])
        found.append((-float(response[scale, y, x]), box))
    return [box for _, box in sorted(found, key=lambda pair: pair[0])]


def _curved(grey: Float[np.ndarray, "H W"], sigma: float) -> Float[np.ndarray, "H W"]:
    """How much the light is curved either way alike at a scale: 0 along edges and on saddles."""
    across, down, both = (
        ndimage.gaussian_filter(grey, sigma, order=order, mode="nearest") for order in ((0, 2), (2, 0), (1, 1))
    )
    return sigma**2 * np.sqrt(np.maximum(across * down - both**2, 0))


def _contours(grey: Float[np.ndarray, "H W"]) -> list[np.ndarray]:
    """Boxes of connected parts that are brighter, or darker, than a level, by how much they differ from what is around them."""
    smooth = ndimage.gaussian_filter(grey, SMOOTHING * min(grey.shape))
    low, high = np.quantile(smooth, (0.01, 0.99))
    integral = np.pad(smooth.cumsum(axis=0, dtype=np.float64).cumsum(axis=1), ((1, 0), (1, 0)))
    found = []
    for level in np.linspace(low, high, LEVELS + 2)[1:-1]:
        for inside in (smooth > level, smooth <= level):
            labels, _ = ndimage.label(inside)
            areas = np.bincount(labels.ravel())
            sums = np.bincount(labels.ravel(), weights=smooth.ravel())
            fitting = (areas >= LEAST_AREA * grey.size) & (areas <= LARGEST_AREA * grey.size)
            places = ndimage.find_objects(labels)
            for label in np.flatnonzero(fitting[1:]) + 1:
                rows, columns = places[label - 1]
                box = np.asarray([columns.start, rows.start, columns.stop, rows.stop], np.float64)
                x1, y1, x2, y2 = _grown(box, grey.shape)
                total = integral[y2, x2] - integral[y1, x2] - integral[y2, x1] + integral[y1, x1]
                around = (total - sums[label]) / max((y2 - y1) * (x2 - x1) - areas[label], 1)
                found.append((-abs(float(sums[label] / areas[label] - around)), box))
    return [box for _, box in sorted(found, key=lambda pair: pair[0])]


def _grown(box: Float[np.ndarray, "4"], shape: tuple[int, ...]) -> list[int]:
    """A box with a quarter of its size more on each side, inside the image, in whole pixels."""
    more = np.tile((box[2:] - box[:2]) / 4, 2) * [-1, -1, 1, 1]
    return np.clip(np.rint(box + more), 0, [shape[1], shape[0]] * 2).astype(int).tolist()
