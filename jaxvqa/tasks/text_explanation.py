"""Where a model that writes looks: from a token of the text back to the image's patches or regions."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxvqa.data import images
from jaxvqa.data.transforms import boxes_of
from jaxvqa.models import towers
from jaxvqa.models.flamingo import Flamingo
from jaxvqa.tasks.predictions import grid_boxes
from jaxvqa.types import Config


def patch_attention(model: Flamingo, out: Mapping[str, Array], place: Int[Array, " B"]) -> Float[Array, "B N"]:
    """What the token at a place reads of the first image's patches: weights float32[B, N] that add up to 1.

    The token's attention to the latents, a mean over heads and cross-attentions, times the last layer's of the latents to what
    they read. If that is one vector an image, the patches weigh as in the vision transformer's last block for its class token.

    Args:
      model: the model.
      out: the intermediates of a call with one image a sample.
      place: int[B], the token's place.
    """
    if model.patches:
        maps = [out[name] for name in out if name.startswith("media_attention_")]
        to_latents = jnp.mean(jnp.stack(maps), axis=(0, 2))
        to_latents = jnp.take_along_axis(to_latents, place[:, None, None], axis=1)[:, 0, : model.latents]
        to_tokens = jnp.mean(out[f"resampler_attention_{model.resampler_depth - 1}"], axis=1)
        weights = jnp.einsum("bl,bln->bn", to_latents, to_tokens[:, :, 1 : to_tokens.shape[-1] - model.latents])
    else:
        last = _vision_size(model, "depth") - 1
        weights = jnp.mean(out[f"vision_attention_{last}"][:, 0, :, 0, 1:], axis=1)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)


def boxes(model: Flamingo, data: Config, example: Mapping[str, Any]) -> Float[np.ndarray, "R 4"]:
    """The patches of the image, row by row, or its regions: x1, y1, x2, y2 in the image's own pixels; none without an image."""
    if data.blind or not data.images:
        return np.zeros((0, 4), np.float32)
    if model.vision == "regions":
        return boxes_of(example, images.region_steps(data))[: data.max_regions]
    return grid_boxes(example, -(-data.image_size // _vision_size(model, "patch")))


def _vision_size(model: Flamingo, field: str) -> int:
    tower, published = towers.IMAGE_ENCODERS[model.vision]
    return {field: getattr(tower, field), **published, **model.vision_sizes}[field]
