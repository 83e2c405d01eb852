"""Region features without a detector: a fixed random projection of what each box shows and where it lies.

Stands in for bottom-up attention features (Anderson et al. 2018) on data sets that have pictures but no detector: like
those, the features are nonnegative, come from the pixels and the box alone, and know nothing of labels.
"""

import functools

import numpy as np

_LOOK_WIDTH, _PLACE_WIDTH = 255, 64  # features of what a box shows, and of where it lies and how large it is
FEATURE_WIDTH = _LOOK_WIDTH + _PLACE_WIDTH + 1
"""Width F of a region's feature vector."""

_CROP_CELLS = 10  # the box itself, cells a side
_CONTEXT_CELLS = 6  # the box grown to _CONTEXT_SCALE times its size around its centre, cells a side
_CONTEXT_SCALE = 2.0
_RING_EDGES = (1.6, 3.0, 4.3, 5.4)  # radii, in cells from the box's centre, that part its cells into rings
_POSITION_BUMPS = 8  # soft one-hot cells for the centre's x and y, and for width and height
_DIRECTIONS = 8  # of edges
_SEED = 20_220_101


@functools.cache
def _projection(inputs: int, outputs: int) -> np.ndarray:
    """Returns random signs over sqrt(inputs), float32 [inputs, outputs] (Achlioptas 2003).

    Signs are read off the bit generator's raw words, whose stream is fixed, unlike NumPy's distributions, which may
    change between versions.
    """
    count = inputs * outputs
    words = np.random.PCG64(_SEED).random_raw((count + 63) // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count)
    return ((bits.reshape(inputs, -1) * 2.0 - 1.0) / np.sqrt(inputs)).astype(np.float32)


def _cell_means(integral: np.ndarray, boxes: np.ndarray, cells: int) -> np.ndarray:
    """Returns the mean of each cell of a grid over each box, [R, cells, cells, C]; 0 where a cell is off the picture.

    Args:
      integral: Sums of the picture above and left of each pixel corner, [H + 1, W + 1, C].
      boxes: x1, y1, x2, y2 in pixels, [R, 4]; may reach over the border.
      cells: Cells a side.
    """
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    steps = np.linspace(0.0, 1.0, cells + 1)
    xs = np.clip(boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * steps, 0, width)
    ys = np.clip(boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * steps, 0, height)
    # A picture of constant pixels has an integral that is bilinear inside each pixel: interpolating it is exact.
    x0 = np.minimum(xs.astype(np.int64), width - 1)
    y0 = np.minimum(ys.astype(np.int64), height - 1)
    fx, fy = (xs - x0)[:, None, :, None], (ys - y0)[:, :, None, None]
    x0, y0 = x0[:, None, :], y0[:, :, None]
    corner = (integral[y0, x0] * (1 - fx) + integral[y0, x0 + 1] * fx) * (1 - fy)
    corner = corner + (integral[y0 + 1, x0] * (1 - fx) + integral[y0 + 1, x0 + 1] * fx) * fy
    sums = corner[:, 1:, 1:] - corner[:, :-1, 1:] - corner[:, 1:, :-1] + corner[:, :-1, :-1]
    areas = np.diff(ys)[:, :, None] * np.diff(xs)[:, None, :]
    return sums / np.maximum(areas, 1e-9)[..., None]


def _cell_distances(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each cell's offset from the grid's centre, down and to the right, in cells: two arrays [cells, cells]."""
    y, x = np.mgrid[:cells, :cells] - (cells - 1) / 2
    return y, x


_RINGS = [
    np.digitize(np.hypot(*_cell_distances(_CROP_CELLS)), _RING_EDGES) == ring for ring in range(len(_RING_EDGES) + 1)
]
_RIM = np.maximum(*np.abs(_cell_distances(_CONTEXT_CELLS))) > _CONTEXT_CELLS / 2 - 1


def _bumps(values: np.ndarray, low: float = 0.0, high: float = 1.0, count: int = _POSITION_BUMPS) -> np.ndarray:
    """Returns each value as a soft one-hot vector over `count` places from `low` to `high`, [..., count]."""
    step = (high - low) / (count - 1)
    return np.exp(-0.5 * ((values[..., None] - np.linspace(low, high, count)) / step) ** 2)


def _place(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Says where boxes lie and how large they are: corners, extent, soft one-hot codes of centre and size, [R, 39]."""
    size = np.array([width, height], np.float64)
    corners, extent = boxes / np.tile(size, 2), (boxes[:, 2:] - boxes[:, :2]) / size
    codes = [_bumps(values) for values in (*(corners[:, :2] + extent / 2).T, *np.sqrt(extent).T)]
    return np.concatenate([corners, extent, *codes, np.ones((len(boxes), 1))], axis=1)


def _edges(grey: np.ndarray) -> np.ndarray:
    """Returns the share of each direction in the slopes inside each box, whatever their strength, [R, _DIRECTIONS].

    A histogram of oriented gradients (Dalal and Triggs 2005) with soft bins. Boxes without slopes have shares near 0.

    Args:
      grey: cells' light, [R, cells, cells].
    """
    across, down = (np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1])
    centres = 2 * np.pi / _DIRECTIONS * np.arange(_DIRECTIONS)
    along = across[..., None] * np.cos(centres) + down[..., None] * np.sin(centres)
    steep = np.hypot(across, down)[..., None]
    bins = (np.maximum(along, 0) ** 4 / np.maximum(steep, 1e-6) ** 3).mean(axis=(1, 2))
    return bins / (bins.sum(axis=1, keepdims=True) + 0.02)


def _look(crop: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Says what boxes show, [R, 312].

    Args:
      crop: means of the box's cells, [R, _CROP_CELLS, _CROP_CELLS, 3], in [0, 1].
      context: means of the cells of the box and its surroundings, [R, _CONTEXT_CELLS, _CONTEXT_CELLS, 3].
    """
    count = len(crop)
    grey, around = crop.mean(axis=-1), context.mean(axis=-1)[:, _RIM]
    surroundings = around.mean(axis=1)[:, None]
    flat = grey.reshape(count, -1)
    profile = np.stack([grey[:, ring].mean(axis=1) for ring in _RINGS], axis=1)
    spread = [*(grey[:, ring] for ring in _RINGS), flat, around]
    coarse = crop.reshape(count, _CROP_CELLS // 2, 2, _CROP_CELLS // 2, 2, 3).mean(axis=(2, 4))
    # The factors bring all kinds of description to about the same size.
    return np.concatenate(
        [
            # The picture itself, and how it differs from what lies around it.
            (coarse - 0.5).reshape(count, -1),
            2 * (coarse - surroundings[..., None, None]).reshape(count, -1),
            (context - 0.5).reshape(count, -1),
            4 * (crop.mean(axis=(1, 2)) - 0.5),
            # Whatever its direction: light from the centre outwards against the surroundings, and its steps.
            6 * (profile - surroundings),
            6 * np.abs(profile - surroundings),
            6 * np.abs(np.diff(profile, axis=1)),
            # Its shape: which way its edges face.
            8 * _edges(grey),
            # Texture: histograms of light, spread, mean slope across and down.
            3 * _bumps(flat - surroundings, -0.5, 0.5, 11).mean(axis=1),
            3 * _bumps(flat, 0.0, 1.0, 9).mean(axis=1),
            10 * np.stack([part.std(axis=1) for part in spread], axis=1),
            10 * np.stack([np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (2, 1)], axis=1),
        ],
        axis=1,
    )


def region_features(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Describes each box of a picture by a nonnegative vector.

    What it shows: the box averaged down to cells and those against its surroundings (the box at twice its size), light
    from its centre outwards, the directions of its edges, its histogram, its spread and slopes. Where it lies: corners,
    extent, and soft one-hot codes of centre and size. Both together go through a fixed random matrix of signs and a ReLU,
    and the place once more alone, since it would drown in so much else. The last feature is always 1, so that a true
    region is never all zero: models take zero rows for padding.

    Args:
      image: uint8 [H, W] or [H, W, 3].
      boxes: x1, y1, x2, y2 in pixels, float or int [R, 4], inside the picture and not empty.

    Returns:
      float16 [R, FEATURE_WIDTH].

    Raises:
      ValueError: The picture is not uint8 of one of these shapes, or boxes are empty or reach over the border.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"image: expected uint8 [H, W] or [H, W, 3], got {image.dtype} {list(image.shape)}")
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    height, width = image.shape[:2]
    x1, y1, x2, y2 = boxes.T
    wrong = ~((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x2 > x1) & (y2 > y1))
    if wrong.any():
        raise ValueError(f"boxes empty or outside the {width} x {height} picture: {boxes[wrong][:3].tolist()}")

    pixels = image.reshape(height, width, -1) / 255.0
    integral = np.zeros((height + 1, width + 1, pixels.shape[2]))
    np.cumsum(pixels.cumsum(0), axis=1, out=integral[1:, 1:])
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (_CONTEXT_SCALE / 2)
    # One channel stands for three: the same features as the same picture stored in colour.
    crop, context = (
        np.broadcast_to(cells, (*cells.shape[:3], 3))
        for cells in (
            _cell_means(integral, boxes, _CROP_CELLS),
            _cell_means(integral, np.concatenate([centre - half, centre + half], axis=1), _CONTEXT_CELLS),
        )
    )
    place = _place(boxes, width, height)
    look = np.concatenate([_look(crop, context), place], axis=1)
    one = np.ones((len(boxes), 1))
    return np.concatenate([4 * _project(look, _LOOK_WIDTH), 4 * _project(place, _PLACE_WIDTH), one], axis=1).astype(
        np.float16
    )


def _project(inputs: np.ndarray, outputs: int) -> np.ndarray:
    # einsum adds in one order on every machine and keeps to one thread; BLAS does neither.
    projected = np.einsum("ri,if->rf", inputs.astype(np.float32), _projection(inputs.shape[1], outputs))
    return np.maximum(projected, 0)
