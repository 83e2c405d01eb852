"""One image's record, apart from the builder so that worker processes do not import TFDS."""

import io
from typing import Any

import numpy as np
from PIL import Image

from jaxvqa.data.region_features import region_features
from tfds_builders.phantom_vqa.proposals import propose
from tfds_builders.phantom_vqa.render import render
from tfds_builders.phantom_vqa.scenes import caption, make_scene


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def image_record(image_id: int) -> dict[str, Any]:
    """Renders an image and returns its record as the builder's `images` configs store it."""
    scene = make_scene(image_id)
    picture = render(scene)
    boxes = propose(picture, image_id)
    return {
        "image_id": image_id,
        "image": _png(picture.image),
        "image_w": picture.image.shape[1],
        "image_h": picture.image.shape[0],
        "boxes": boxes,
        "features": region_features(picture.image, boxes),
        "organ_map": _png(picture.organ_map),
        "lesion_map": _png(picture.lesion_map),
        "lesion_boxes": picture.lesion_boxes,
        "lesion_kinds": [lesion.kind for lesion in scene.lesions],
        "lesion_sizes": [lesion.size for lesion in scene.lesions],
        "lesion_organs": [lesion.organ for lesion in scene.lesions],
        "lesion_places": [scene.place(lesion) for lesion in scene.lesions],
        "modality": scene.modality,
        "plane": scene.view.plane,
        "organ": scene.view.body_part,
        "abnormality": scene.abnormality,
        "caption": caption(scene),
    }
