"""From a token back to the image: what it reads of the patches, and where these are."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.tasks.text_explanation import boxes, patch_attention

SMALL = {
    "name": "flamingo",
    "vocab_size": 12,
    "image_token": 10,
    "language_sizes": {"width": 16, "depth": 3, "heads": 2, "positions": 16},
    "vision_sizes": {"patch": 4, "width": 8, "depth": 1, "heads": 2, "features": 6},
    "every": 2,
    "latents": 3,
    "resampler_depth": 1,
    "cross_heads": 2,
    "cross_head_width": 4,
}


@pytest.mark.parametrize("patches", [True, False])
def test_what_a_token_reads_of_the_patches_adds_up_to_one(patches):
    model, place = models.build(SMALL | {"patches": patches}), jnp.asarray([4, 3])
    given = {"text": jnp.full((2, 6), 10), "image": jnp.zeros((2, 8, 8, 3))}

    def of_a_call(key):
        out = model.apply(model.init(key, **given), **given)[1]
        return out, patch_attention(model, out, place)

    shapes, weights = jax.eval_shape(of_a_call, jax.random.key(0))
    assert (weights.shape, weights.dtype) == ((2, 4), jnp.float32)
    random = np.random.default_rng(0)
    maps = {name: random.random(s.shape, np.float32) for name, s in shapes.items() if "attention_" in name}
    out = {name: jnp.asarray(array / array.sum(-1, keepdims=True)) for name, array in maps.items()}
    found = np.asarray(patch_attention(model, out, place))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    if patches:
        latents = np.mean([out["media_attention_0"], out["media_attention_2"]], axis=(0, 2))[np.arange(2), place]
        expected = np.einsum("bl,bln->bn", latents, np.mean(out["resampler_attention_0"], axis=1)[:, :, 1:5])
    else:
        expected = np.mean(out["vision_attention_0"][:, 0, :, 0, 1:], axis=1)
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), rtol=1e-5)


def test_boxes_are_the_images_patches_or_its_regions():
    data = ml_collections.ConfigDict({"blind": False, "images": "x", "image_size": 64, "max_regions": 1})
    resnet = models.build(SMALL | {"vision": "resnet", "vision_sizes": {}, "patches": True})
    halves = [[0, 0, 50, 10], [50, 0, 100, 10], [0, 10, 50, 20], [50, 10, 100, 20]]
    np.testing.assert_allclose(boxes(resnet, data, {"image_w": 100, "image_h": 20}), halves)
    assert boxes(models.build(SMALL), data, {"image_w": 1, "image_h": 1}).shape == (256, 4)
    regions = models.build(SMALL | {"vision": "regions", "vision_sizes": {}, "patches": True})
    np.testing.assert_array_equal(boxes(regions, data, {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}), [[1, 2, 3, 4]])
    data.blind = True
    assert boxes(regions, data, {}).shape == (0, 4)
