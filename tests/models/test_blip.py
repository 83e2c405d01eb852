"""What BLIP promises: padding changes nothing, no look-ahead, an image is read alike by one text or several."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.models.towers.vit import GridViT

TEXT = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "positions": 16, "dropout": 0.0}
VISION = {"width": 16, "depth": 2, "heads": 2}


def make(vision="vit-base", **fields):
    sizes = VISION | ({"patch": 4} if vision == "vit-base" else {})
    config = {"name": "blip", "vision": vision, "vision_sizes": sizes, "text_sizes": TEXT, "features": 8}
    return models.build(config | fields, vocab_size=20)


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((3, 8, 8, 3), dtype=np.float32))
    text = jnp.asarray(rng.integers(1, 20, (3, 7)), jnp.int32)
    mask = jnp.arange(7)[None] < jnp.asarray([7, 5, 3])[:, None]
    model = make()
    variables = jax.jit(model.init)(jax.random.key(0), image=image, text=text)
    return model, variables, image, text, mask


def call(model, variables, **inputs):
    return jax.jit(model.apply)(variables, **inputs)


def test_padding_of_texts_changes_nothing(seen):
    model, variables, image, text, mask = seen
    logits, out = call(model, variables, image=image, text=text, text_mask=mask)
    other = jnp.where(mask, text, 19)
    changed, found = call(model, variables, image=image, text=other, text_mask=mask)
    np.testing.assert_allclose(changed, logits, atol=1e-6)
    np.testing.assert_allclose(found["text_feature"], out["text_feature"], atol=1e-6)
    np.testing.assert_allclose(found["logits"][mask], out["logits"][mask], atol=1e-5)


def test_fresh_kernels_are_as_wide_as_the_config_says():
    for std in (0.02, 0.3):
        model = make(text_sizes=TEXT | ({} if std == 0.02 else {"init_std": std}))
        shapes = {"image": jnp.ones((1, 8, 8, 3)), "text": jnp.ones((1, 2), jnp.int32)}
        params = jax.jit(model.init)(jax.random.key(0), **shapes)["params"]["text_tower"]
        kernels = [params["embed"]["embedding"], *(x for x in jax.tree.leaves(params["block_0"]) if x.ndim == 2)]
        assert len(kernels) > 10
        for kernel in kernels:
            assert abs(float(jnp.std(kernel)) / std - 1) < 0.2


def test_features_are_of_length_1(seen):
    model, variables, image, text, mask = seen
    _, out = call(model, variables, image=image, text=text, text_mask=mask)
    for name in ("image_feature", "text_feature"):
        np.testing.assert_allclose(jnp.linalg.norm(out[name], axis=-1), 1, rtol=1e-5)


def test_the_decoder_does_not_look_ahead_and_the_encoder_does(seen):
    model, variables, image, text, mask = seen
    mask = jnp.ones_like(mask)
    _, out = call(model, variables, image=image, text=text, text_mask=mask)
    _, changed = call(model, variables, image=image, text=text.at[:, 4].add(1), text_mask=mask)
    np.testing.assert_allclose(changed["logits"][:, :4], out["logits"][:, :4], atol=1e-6)
    assert np.abs(changed["logits"][:, 4] - out["logits"][:, 4]).max() > 1e-3
    assert np.abs(changed["text_states"][:, 0] - out["text_states"][:, 0]).max() > 1e-3


def test_regions_that_are_padding_change_nothing():
    rng = np.random.default_rng(0)
    regions = rng.standard_normal((2, 5, 1, 6), dtype=np.float32)
    text = jnp.asarray(rng.integers(1, 20, (2, 4)), jnp.int32)
    model = make("region-vit")
    variables = jax.jit(model.init)(jax.random.key(0), image=jnp.asarray(regions), text=text)
    found = call(model, variables, image=jnp.asarray(regions), text=text)
    padded = jnp.asarray(np.pad(regions, ((0, 0), (0, 3), (0, 0), (0, 0))))
    more = call(model, variables, image=padded, text=text)
    np.testing.assert_allclose(more[0], found[0], atol=1e-6)
    np.testing.assert_allclose(more[1]["image_feature"], found[1]["image_feature"], atol=1e-6)
    np.testing.assert_allclose(more[1]["logits"], found[1]["logits"], atol=1e-5)


def test_texts_side_by_side_are_read_as_each_alone(seen):
    """Two texts beside each image: the image's keys and values are there once, and the maps are each text's."""
    model, variables, image, text, mask = seen

    @jax.jit
    def matched(rows):
        tokens, real, _ = model.apply(variables, image=image, method="see")
        there = model.apply(variables, tokens, real, method="remember")
        order = jnp.stack([jnp.arange(3), rows], axis=1).reshape(-1)
        both = model.apply(variables, text[order], mask[order], there, method="match")
        alone = model.apply(variables, text[rows], mask[rows], there, method="match")
        return both, alone

    rows = jnp.asarray([2, 0, 1])
    (both, out), (alone, own) = matched(rows)
    np.testing.assert_allclose(both[1::2], alone, atol=1e-6)
    np.testing.assert_allclose(out["cross_attention_1"][1::2], own["cross_attention_1"], atol=1e-6)
    np.testing.assert_allclose(out["cross_attention_1"].sum(-1), 1, rtol=1e-5)


def test_blocks_that_are_computed_again_give_the_same_gradients(seen):
    """In training too, where what a block drops has to be the same the second time."""
    _, variables, image, text, mask = seen

    def gradients(params, image, **sizes):
        model = make(vision_sizes=VISION | {"patch": 4, "drop_path": 0.4, **sizes}).copy(dtype=jnp.float64)

        def loss(params):
            rngs = {"dropout": jax.random.key(1)}
            logits, out = model.apply({"params": params}, image=image, text=text, text_mask=mask, train=True, rngs=rngs)
            return logits[:, 1].sum() + out["image_feature"].sum()

        return jax.jit(jax.grad(loss))(params)

    # In float64, so that the order in which sums are computed, which is the compiler's, does not count.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (variables["params"], image))
        kept, again = gradients(*wide), gradients(*wide, remat=2)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(kept)) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), kept, again)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("float64")}


def test_drop_path_drops_whole_images_in_training_alone():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((64, 4, 4, 3), dtype=np.float32))
    model = make(vision_sizes=VISION | {"patch": 4, "drop_path": 0.5})
    text = jnp.ones((64, 2), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), image=image, text=text)

    @jax.jit
    def see(key):
        return model.apply(variables, image=image, train=True, rngs={"dropout": key}, method="see")[2]

    out, calm = see(jax.random.key(1)), model.apply(variables, image=image, method="see")[2]
    first = np.abs(out["block_0"] - calm["block_0"]).max()
    assert first < 1e-5  # the rate grows from 0 at the first block
    unchanged = np.abs(out["block_1"] - out["block_0"]).max((1, 2)) < 1e-6
    assert 4 <= unchanged.sum() <= 32  # both parts of a quarter of the images


class Rectified(nn.Module):
    """A network in stages whose last map is never negative, and nearly the same everywhere."""

    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image, *, train):
        return {"last": 10 + nn.relu(nn.Conv(6, (4, 4), (4, 4), dtype=self.dtype)(image))}


@pytest.mark.parametrize("map_norm", [False, True])
def test_a_map_is_normalised_over_the_batch_where_the_config_says_so(map_norm):
    tower = GridViT(width=16, depth=1, heads=2, network=Rectified, map_norm=map_norm)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3), dtype=np.float32))
    variables = jax.jit(tower.init)(jax.random.key(0), image)
    (_, out), _ = jax.jit(functools.partial(tower.apply, train=True, mutable=["batch_stats"]))(variables, image)
    patches = np.asarray(out["patches"]).reshape(-1, 16)
    common = np.linalg.norm(patches.mean(0)) / np.linalg.norm(patches, axis=1).mean()
    assert common < 1e-5 if map_norm else common > 0.9
    assert ("map_norm" in variables["params"]) == map_norm
