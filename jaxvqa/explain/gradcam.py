"""Maps over a grid of patches, drawn smooth over the image (docs/originals/blip.md, section 16.5).

What the maps are made of is `jaxvqa.tasks.attention_gradient`.
"""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

BLUR = 0.02
"""Standard deviation of the blur, as a share of the image's longer side."""

TRUNCATE = 4.0
"""So many standard deviations the blur reaches."""

POWER = 0.7
"""Of a map where it is laid over the image."""

JET = {
    0: ((0, 0), (0.35, 0), (0.66, 1), (0.89, 1), (1, 0.5)),
    1: ((0, 0), (0.125, 0), (0.375, 1), (0.64, 1), (0.91, 0), (1, 0)),
    2: ((0, 0.5), (0.11, 1), (0.34, 1), (0.65, 0), (1, 0)),
}
"""Red, green and blue of the colours: (place, value), linear between."""


def stretched(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """From 0 to 1: the least value taken away, and divided by the largest; zeros for a constant."""
    values = values - values.min()
    largest = values.max()
    return values / largest if largest > 0 else np.zeros_like(values)


def resized(values: Float[np.ndarray, "g h"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """A map on the image's pixels, by cubic B-splines between pixel areas, zero outside, within the map's own range."""
    zoom = (height / values.shape[0], width / values.shape[1])
    found = ndimage.zoom(values.astype(np.float64), zoom, order=3, mode="grid-constant", cval=0.0, grid_mode=True)
    return np.clip(found, values.min(), values.max())


def blurred(values: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """A map blurred by a Gaussian, mirrored at the borders, from 0 to 1."""
    return stretched(ndimage.gaussian_filter(values, BLUR * max(values.shape), mode="reflect", truncate=TRUNCATE))


def colours() -> Float[np.ndarray, "256 3"]:
    """The table of colours from blue to red."""
    places = np.linspace(0, 1, 256)
    channels = (zip(*JET[i], strict=True) for i in range(3))
    return np.stack([np.interp(places, x, y) for x, y in channels], axis=-1)


def overlaid(image: Float[np.ndarray, "H W 3"], values: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W 3"]:
    """An image in [0, 1] with a map from 0 to 1 laid over it: the stronger, the more of its colour."""
    share = values[..., None] ** POWER
    colour = colours()[np.minimum((256 * values).astype(int), 255)]
    return (1 - share) * image + share * colour
