"""What contrast and matching promise: momentum, queues, groups, padding, and what cannot be done says so."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, sharding
from jaxvqa.errors import ConfigError
from jaxvqa.models.layers.conv_norm import ConvNorm
from jaxvqa.state import TrainState
from jaxvqa.step import make_program
from jaxvqa.tasks import task_without_data

B = 8


def config_with(name="configs/blip_pretrain.py:pixels,small", **changes):
    config = configs.load(name)
    everything = {"compile.vocab_size": 40, "batch_size": B, "data.image_size": 16, "model.vision_sizes.patch": 8}
    everything |= {"loss.queue": 16, "data.max_tokens": 6} | {k.replace("__", "."): v for k, v in changes.items()}
    configs.override(config, [(key, str(value)) for key, value in everything.items()])
    return config


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 7, B)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (B, 16, 16, 3)), jnp.uint8),
        "text": jnp.asarray(rng.integers(5, 30, (B, 6)), jnp.int32),
        "text_mask": jnp.arange(6)[None] < lengths[:, None],
        "image_id": jnp.asarray([0, 1, 2, 0, 3, 4, 5, 6], jnp.int32),
        "mask": jnp.ones(B),
    }


@pytest.fixture(scope="module")
def variables():
    return jax.jit(task_without_data(config_with()).init)(jax.random.key(0))


def parts(config, variables, batch, rngs=None):
    """What the loss is made of, compiled; `rngs` for training."""
    task = task_without_data(config)
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    @jax.jit
    def of(params, rest, batch, rngs):
        return task.parts(params, rest, batch, rngs, train=bool(rngs))

    return of(variables["params"], rest, batch, rngs or {})


def test_momentum_begins_as_the_parameters_and_then_follows(variables):
    task = task_without_data(config_with(loss__momentum=0.75))
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    other = jax.tree.map(lambda x: x + 1, rest["momentum"])  # as an init_from of the parameters alone leaves it
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], rest | {"momentum": other}, None)
    first = task.before(state).collections["momentum"]
    same = variables["params"]["vision_tower"]["block_0"]["feed_forward"]["up"]["kernel"]
    np.testing.assert_allclose(first["vision_tower"]["block_0"]["feed_forward"]["up"]["kernel"], same, rtol=1e-6)
    queue = rest["queue"] | {"batches": jnp.ones((), jnp.int32)}
    state = dataclasses.replace(state, collections={"momentum": other, "queue": queue})
    moved = task.before(state).collections["momentum"]
    np.testing.assert_allclose(moved["vision_tower"]["block_0"]["feed_forward"]["up"]["kernel"], same + 0.75, rtol=1e-5)


def test_decoder_and_heads_have_no_copies(variables):
    copies = variables["momentum"]
    assert set(copies) == {"vision_tower", "text_tower", "image_projection", "text_projection"}
    assert "readout" not in copies["text_tower"]
    assert "cross_attention" in copies["text_tower"]["block_0"]
    assert "decoder_attention" not in copies["text_tower"]["block_0"]


def test_groups_are_batches_of_their_own(variables, batch):
    """Two groups have the mean of the losses of two batches, which see the same queue."""
    whole = parts(config_with(loss__groups=2, loss__negatives__choice="hardest"), variables, batch)
    half = config_with(batch_size=B // 2, loss__negatives__choice="hardest")
    halves = [parts(half, variables, {k: x[s] for k, x in batch.items()}) for s in (slice(0, 4), slice(4, 8))]
    for name in ("contrast", "matching", "writing"):
        np.testing.assert_allclose(
            whole.losses[name], np.mean([h.losses[name] for h in halves]), rtol=2e-5, err_msg=name
        )
    rows = np.concatenate([h.negatives[0].row + 4 * i for i, h in enumerate(halves)])
    np.testing.assert_array_equal(whole.negatives[0].row, rows)


def test_examples_that_are_padding_change_nothing(variables, batch):
    config = config_with(loss__positives="image", loss__negatives__similarity="online", loss__negatives__floor=0)
    real = {"mask": jnp.arange(B) < 5}
    losses = []
    for scramble in (0, 3):
        changed = {name: jnp.roll(x, scramble, axis=0).at[:5].set(x[:5]) for name, x in batch.items()}
        found = parts(config, variables, changed | {"mask": real["mask"].astype(jnp.float32)})
        losses.append(found.losses)
        assert all(n.row[:5].max() < 5 for n in found.negatives)
    for name in losses[0]:
        np.testing.assert_allclose(losses[0][name], losses[1][name], rtol=1e-5, err_msg=name)


def test_texts_of_one_image_are_no_negatives_and_who_has_none_counts_nothing(variables, batch):
    config = config_with(loss__positives="image", loss__negatives__similarity="online", loss__negatives__among="batch")
    rngs = {name: jax.random.key(i) for i, name in enumerate(("dropout", "momentum", "negatives"))}
    found = parts(config, variables, batch, rngs)
    ids = batch["image_id"]
    for negatives in found.negatives:
        assert negatives.found.all()
        assert (ids[negatives.row] != ids).all()
    alone = parts(config, variables, batch | {"image_id": jnp.zeros(B, jnp.int32)}, rngs)
    assert not any(negatives.found.any() for negatives in alone.negatives)
    assert np.isfinite(alone.losses["matching"])
    assert alone.match_weights.sum() == B


def test_a_step_writes_the_queue_once_and_the_temperature_stays_within_its_bounds(batch):
    config = config_with(model__temperature=0.9)
    task = task_without_data(config)
    program = make_program(config, task, sharding.make_mesh(config.mesh, jax.devices()[:1]), data_size=B, total_steps=2)
    state = program.init()
    assert int(state.collections["queue"]["batches"]) == 0
    state, metrics = program.step(state, batch)
    queue = state.collections["queue"]
    assert (int(queue["place"]), int(queue["batches"])) == (B, 1)
    np.testing.assert_array_equal(queue["id"], [*batch["image_id"], *[-100] * 8])
    np.testing.assert_allclose(metrics["temperature"][0], 0.5)
    np.testing.assert_allclose(state.params["temperature"], 0.5, atol=0.01)
    assert metrics["without_negative"][0] == 0


class Network(nn.Module):
    """The smallest network with statistics."""

    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image, *, train):
        return {"map": ConvNorm(6, 8, 8, 0, relu=True, dtype=self.dtype, name="stem")(image, train)}


def test_a_network_in_the_image_encoder_learns_its_statistics_and_is_judged_by_them(batch):
    config = config_with()
    sizes = {"width": 8, "depth": 1, "heads": 2, "network": Network}
    with config.unlocked():
        config.model.vision, config.model.vision_sizes = "efficientnet_lite0-vit", sizes
    task = task_without_data(config)
    program = make_program(config, task, sharding.make_mesh(config.mesh, jax.devices()[:1]), data_size=B, total_steps=2)
    state = program.init()
    assert "network" in state.collections["momentum"]["vision_tower"]
    before = jax.tree.map(np.asarray, state.collections["batch_stats"])
    features = task.predictions["image_features"].jitted
    state, _ = program.step(state, batch)
    after = state.collections["batch_stats"]
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))
    images = {"image": batch["image"]}
    own = features(state.params, state.collections, images)["image_feature"]
    other = features(state.params, {**state.collections, "batch_stats": before}, images)["image_feature"]
    assert np.abs(own - other).max() > 1e-4
    alone = features(state.params, state.collections, {"image": batch["image"][:1]})["image_feature"]
    np.testing.assert_allclose(alone, own[:1], atol=1e-5)  # not the batch's


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"microbatches": 2}, ["microbatches", "queue"]),
        ({"loss__groups": 3}, ["loss.groups", "batch_size"]),
        ({"loss__queue": 20}, ["loss.queue", "24"]),
        ({"loss__positives": "pairs"}, ["loss.positives", "pair"]),
        ({"loss__negatives__choice": "random"}, ["negatives.choice", "drawn"]),
        ({"loss__negatives__among": "batch"}, ["among", "online"]),
        ({"data__max_tokens": 1}, ["data.max_tokens is 1", "at least 2"]),
        ({"model__text_sizes__positions": 5}, ["6 tokens", "positions for 5"]),
    ],
)
def test_what_does_not_go_together_says_so(changes, named):
    config = config_with(**changes)

    def program():
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        return make_program(config, task_without_data(config), mesh, data_size=B, total_steps=2)

    with pytest.raises(ConfigError) as error:
        program()
    assert all(name in str(error.value) for name in named)
