"""Where a matching network looked for each token: attention to the image times its gradient.

docs/originals/blip.md, section 16.5. The gradients that count are those of the loss of a match, where they are positive, as the
original has it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
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


def attention_and_gradient(
    model: Any,
    params: Any,
    image: Float[Array, "B H W C"],
    text: Int[Array, "B T"],
    text_mask: Bool[Array, "B T"],
    *,
    layer: int,
) -> tuple[Float[Array, "B 2"], Float[Array, "B K T N"], Float[Array, "B K T N"]]:
    """The matching logits, what block `layer` of the text model read of the images, and the loss's gradient with respect to it.

    The loss is the sum over the pairs of -log softmax(logits)₁. Zeros are added to the weights of that block, and the gradient
    is theirs.

    Args:
      model: a `jaxvqa.models.blip.BLIP` with a matching head.
      params: its parameters.
      image: what it sees.
      text: token ids, whose first says how they are read.
      text_mask: which of them are there.
      layer: from 0.
    """

    def matched(zeros: Array | None) -> tuple[Array, tuple[Array, Array]]:
        def forward(model: Any) -> Any:
            tokens, mask, _ = model.see(image)
            changes = None if zeros is None else {layer: lambda weights: weights + zeros}
            return model.match(text, text_mask, model.remember(tokens, mask), changes=changes)

        logits, out = model.apply({"params": params}, method=forward)
        return -jnp.sum(jax.nn.log_softmax(logits)[:, 1]), (logits, out[f"cross_attention_{layer}"])

    _, (_, shape) = jax.eval_shape(matched, None)
    gradient, (logits, attention) = jax.grad(matched, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return logits, attention, gradient


def token_maps(
    attention: Float[np.ndarray, "K T N"], gradient: Float[np.ndarray, "K T N"], text_mask: Bool[np.ndarray, " T"]
) -> Float[np.ndarray, "T g g"]:
    """For each token the mean over the heads of attention · max(gradient, 0) on the grid of patches; zeros for padding.

    The first image token, which is of no patch, is left out.
    """
    maps = np.mean(attention * np.maximum(gradient, 0), axis=0)[:, 1:]
    side = round(maps.shape[1] ** 0.5)
    return np.where(text_mask[:, None], maps, 0).reshape(len(maps), side, side)


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
