"""CMSA's golden case of images: resizing and normalisation (spec section 7.4)."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxvqa.data.images import normalised, resized
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.runner import Case, Row, beside

IMAGES = "data/vqa_rad/VQA_RAD Image Folder"
"""Below the folder that the environment variable JAXVQA_DATA names: where images are that do not lie beside the case."""


def run(case: Case) -> Iterator[Row]:
    """Prepares the case's images from their files and compares them with the original's."""
    found = {name: beside(case.folder, IMAGES, name) for name in case.manifest["images"]}
    files = [path for path in found.values() if path is not None]
    missing = [name for name, path in found.items() if path is None]
    if missing:
        note = f"needs {', '.join(missing)} beside the case, or in {IMAGES} below JAXVQA_DATA"
        for name in case.expected:
            yield Row(case.name, name, None, note=note)
        return
    options = case.manifest["options"]
    yield from case.unknown_options(options, ("size", "mean", "std", "resize"))
    pixels = []
    for path in files:
        with Image.open(path) as picture:
            pixels.append(resized(picture, options["size"], 3))
    constants = [tuple(options[name]) for name in ("mean", "std") if name in options]
    batch = np.asarray(normalised(jnp.asarray(np.stack(pixels)), *constants)).transpose(0, 3, 1, 2)
    moments = np.stack([batch.mean((2, 3), dtype=np.float64), batch.std((2, 3), dtype=np.float64)], -1)
    yield from compare_all(case, {"": batch, "moments": moments}, {"": np.s_[:, :, ::8, ::8]})
