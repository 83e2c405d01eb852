"""CMSA's golden case of images: resizing and normalisation (docs/originals/cmsa.md, section 7.4)."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvqa.data.images import normalised, resized
from jaxvqa.golden.cases import Case, Row
from jaxvqa.golden.parts import compare_all

IMAGES = "data/vqa_rad/VQA_RAD Image Folder"
"""Below the folder that the environment variable JAXVQA_DATA names: where images are that do not lie beside the case."""


def run(case: Case) -> Iterator[Row]:
    """Prepares the case's images from their files and compares them with the original's."""
    files = case.beside(IMAGES, *case.manifest["images"])
    options = case.manifest["options"]
    yield from case.unknown(options, ("size", "mean", "std", "resize"))
    pixels = []
    for path in files:
        with Image.open(path) as picture:
            pixels.append(resized(picture, options["size"], 3))
    constants = [tuple(options[name]) for name in ("mean", "std") if name in options]
    batch = np.asarray(normalised(jnp.asarray(np.stack(pixels)), *constants)).transpose(0, 3, 1, 2)
    moments = np.stack([batch.mean((2, 3), dtype=np.float64), batch.std((2, 3), dtype=np.float64)], -1)
    yield from compare_all(case, {"": batch, "moments": moments}, {"": np.s_[:, :, ::8, ::8]})
