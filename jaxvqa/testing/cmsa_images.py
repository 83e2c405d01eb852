"""CMSA's golden case of images: resizing and normalisation (spec section 7.4)."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvqa.data.images import normalised, resized
from jaxvqa.testing.golden import Case, Row

LIMIT = 1e-6
"""Largest relative difference: both resize to 8 bit, so that only float32 rounding is left."""

IMAGES = "data/vqa_rad/VQA_RAD Image Folder"
"""Below the folder that the environment variable JAXVQA_DATA names."""


def run(case: Case) -> list[Row]:
    """Prepares the case's images from their files and compares them with the original's."""
    folder = Path(os.environ.get("JAXVQA_DATA", "")) / IMAGES
    if "JAXVQA_DATA" not in os.environ or not folder.is_dir():
        note = f"needs {IMAGES} under the folder that JAXVQA_DATA names"
        return [Row(case.name, name, None, note=note) for name in case.expected]
    size = case.manifest["options"]["size"]
    pixels = []
    for name in case.manifest["images"]:
        with Image.open(folder / name) as picture:
            pixels.append(resized(picture, size, 3))
    batch = np.asarray(normalised(jnp.asarray(np.stack(pixels)))).transpose(0, 3, 1, 2)
    moments = np.stack([batch.mean((2, 3), dtype=np.float64), batch.std((2, 3), dtype=np.float64)], -1)
    ours = {"slice": batch[:, :, ::8, ::8], "moments": moments}
    return [case.compare(name, value, LIMIT) for name, value in ours.items()]
