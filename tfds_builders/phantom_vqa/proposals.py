"""Region boxes as a detector would give them: the whole picture, organs, lesions, and false alarms."""

import numpy as np

from tfds_builders.phantom_vqa.render import ORGANS, SIZE, Picture
from tfds_builders.phantom_vqa.scenes import random_stream

_ORGAN_LABELS = range(ORGANS.index("brain"), len(ORGANS))
_LEAST_PIXELS = 12  # an organ that other organs hide almost wholly is not found


def propose(picture: Picture, image_id: int) -> np.ndarray:
    """Returns the boxes of an image's regions in random order.

    The whole picture, each visible organ, each lesion (with some air around it), and one to three false alarms of a
    lesion's size elsewhere in the body. Organ and lesion boxes are off by a few per cent, as found
    boxes are; neither their order nor their size gives the lesions away.

    Args:
      picture: A rendered scene.
      image_id: Its id, which seeds the boxes.

    Returns:
      float32 [R, 4], x1, y1, x2, y2 in pixels, inside the picture, R from 4 up.
    """
    random = random_stream(image_id, 3)
    found = []
    pixels = np.bincount(picture.organ_map.ravel(), minlength=len(ORGANS))
    for label in _ORGAN_LABELS:
        if pixels[label] >= _LEAST_PIXELS:
            organ = picture.organ_map == label
            xs, ys = np.flatnonzero(organ.any(axis=0)), np.flatnonzero(organ.any(axis=1))
            found.append((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
    for x1, y1, x2, y2 in picture.lesion_boxes:
        found.append((x1 - 1.5, y1 - 1.5, x2 + 1.5, y2 + 1.5))

    wanted = random.randint(1, 4)
    body = np.flatnonzero((picture.organ_map > 0) & (picture.lesion_map == 0))
    alarms: list[tuple[float, float, float, float]] = []
    for _ in range(200):
        if len(alarms) == wanted:
            break
        y, x = divmod(int(body[random.randint(len(body))]), SIZE)
        half = random.uniform(4, 7) if random.random_sample() < 0.6 else random.uniform(8, 12)
        x1, y1, x2, y2 = x - half, y - half * random.uniform(0.8, 1.2), x + half, y + half
        meets = picture.lesion_map[max(int(y1), 0) : int(y2) + 2, max(int(x1), 0) : int(x2) + 2].any()
        if not meets:
            alarms.append((x1, y1, x2, y2))

    boxes = np.array(found + alarms, np.float64).reshape(-1, 4)
    size = boxes[:, 2:] - boxes[:, :2]
    boxes += random.uniform(-0.05, 0.05, boxes.shape) * np.tile(size, 2)
    boxes = np.clip(np.concatenate([[[0, 0, SIZE, SIZE]], boxes]), 0, SIZE)
    return boxes[random.permutation(len(boxes))].astype(np.float32)
