"""Contrast and hard negatives against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.losses import contrast
from jaxvqa.losses.contrast import NO_IMAGE, Queue

B, Q, E = 6, 12, 5


def units(rng, *shape):
    x = rng.standard_normal((*shape, E))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    ids = np.asarray([3, 4, 3, 5, 6, 4], np.int32)
    earlier = np.full(Q, NO_IMAGE, np.int32)
    earlier[:4] = [4, 9, 3, 3]
    zero = jnp.zeros((), jnp.int32)
    queue = Queue(jnp.asarray(units(rng, Q)), jnp.asarray(units(rng, Q)), jnp.asarray(earlier), zero, zero)
    mine, keys = (tuple(map(jnp.asarray, units(rng, 2, B))) for _ in range(2))
    return mine, keys, queue, jnp.asarray(ids), jnp.ones(B, bool)


def test_a_queue_is_written_over_in_turn(batch):
    _, (image, text), queue, ids, _ = batch
    once = queue.put(image, text, ids)
    assert (int(once.place), int(once.batches)) == (B, 1)
    np.testing.assert_array_equal(once.image[:B], image)
    np.testing.assert_array_equal(once.text[B:], queue.text[B:])
    np.testing.assert_array_equal(once.id[:B], ids)
    twice = once.put(text, image, ids + 1)
    assert (int(twice.place), int(twice.batches)) == (0, 2)
    np.testing.assert_array_equal(twice.image[:B], image)
    np.testing.assert_array_equal(twice.image[B:], text)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("same_image", [False, True])
def test_the_loss_is_its_definition(batch, groups, same_image):
    """Each group against its own momentum features and the whole queue, row by row in NumPy."""
    mine, keys, queue, ids, real = batch
    temperature, alpha = 0.3, 0.4
    ours = contrast.compared(*mine, keys, queue, jnp.float32(temperature), groups, real)
    soft = contrast.compared(*keys, keys, queue, jnp.float32(temperature), groups, real)
    hard = contrast.positives(ids, queue, groups, same_image=same_image, real=real)
    found = [
        contrast.contrast(x, contrast.soft_targets(hard, y, jnp.float32(alpha)))
        for x, y in zip(ours, soft, strict=True)
    ]
    size = B // groups
    for side, other in ((0, 1), (1, 0)):
        for row in range(B):
            group = slice(row // size * size, (row // size + 1) * size)
            columns = np.concatenate([keys[other][group], (queue.text, queue.image)[side]])
            belongs = np.concatenate([ids[group], queue.id]) == ids[row]
            if not same_image:
                belongs = np.arange(len(columns)) == row % size
            targets = alpha * softmax(columns @ np.asarray(keys[side][row]) / temperature)
            targets += (1 - alpha) * belongs / belongs.sum()
            expected = -np.sum(targets * np.log(softmax(columns @ np.asarray(mine[side][row]) / temperature)))
            np.testing.assert_allclose(found[side][row], expected, rtol=1e-5)


def test_rows_that_are_padding_change_nothing_of_the_others(batch):
    mine, keys, queue, ids, _ = batch
    real = jnp.arange(B) < 4

    def losses(mine, keys, ids, real):
        compared = contrast.compared(*mine, keys, queue, jnp.float32(0.2), 1, real)
        hard = contrast.positives(ids, queue, 1, same_image=True, real=real)
        return contrast.contrast(compared.image_to_text, hard)

    fewer = losses(tuple(x[:4] for x in mine), tuple(x[:4] for x in keys), ids[:4], real[:4])
    np.testing.assert_allclose(losses(mine, keys, ids, real)[:4], fewer, rtol=1e-6)


def test_targets_have_no_gradient(batch):
    mine, keys, queue, ids, real = batch

    def loss(keys):
        soft = contrast.compared(*keys, keys, queue, jnp.float32(0.2), 1, real)
        hard = contrast.positives(ids, queue, 1, same_image=False, real=real)
        return jnp.sum(contrast.soft_targets(hard, soft.image_to_text, jnp.float32(0.4)))

    assert all(not g.any() for g in jax.grad(loss)(keys))
    del mine


# --- hard negatives --------------------------------------------------------------------------------------------------------


def test_negatives_are_drawn_by_their_weights():
    """A sampler that ignores the weights, or takes the positive, is caught."""
    similarity = jnp.asarray([[[5.0, 1.0, 0.0, 2.0]]])
    allowed = jnp.asarray([[[False, True, True, True]]])
    scores = contrast.negative_scores(similarity, allowed, 1e-4)
    weights = softmax(np.asarray(similarity[0, 0])) + 1e-4
    np.testing.assert_allclose(np.exp(scores[0, 0]), weights * [0, 1, 1, 1], rtol=1e-5)
    draws = jax.vmap(lambda key: contrast.choose(scores, "drawn", key, local=True).row[0])(
        jax.random.split(jax.random.key(0), 4000)
    )
    shares = np.bincount(draws, minlength=4) / 4000
    expected = weights * [0, 1, 1, 1] / weights[1:].sum()
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / 4000))
    assert shares[0] == 0


def test_a_weight_too_small_for_float32_is_still_a_weight():
    similarity = jnp.asarray([[[500.0, 0.0, 1.0]]])
    scores = contrast.negative_scores(similarity, jnp.asarray([[[False, True, True]]]), 0.0)
    found = contrast.choose(scores, "hardest", None, local=True)
    assert (int(found.row[0]), bool(found.found[0])) == (2, True)
    draws = {int(contrast.choose(scores, "drawn", jax.random.key(i), local=True).row[0]) for i in range(40)}
    assert draws == {1, 2}


def test_a_row_without_a_candidate_is_known():
    scores = contrast.negative_scores(jnp.zeros((1, 2, 2)), jnp.asarray([[[False, False], [True, False]]]), 0.0)
    for choice, key in (("hardest", None), ("drawn", jax.random.key(0))):
        found = contrast.choose(scores, choice, key, local=True)
        assert found.found.tolist() == [False, True]
        assert int(found.row[1]) == 0


@pytest.mark.parametrize("local", [True, False])
def test_rows_are_places_in_the_batch(local):
    """Two groups of two: candidates are a group's own, or all four."""
    wanted = [1, 0, 1, 0] if local else [3, 2, 1, 0]
    scores = np.full((2, 2, 2 if local else 4), -1.0)
    for row, best in enumerate(wanted):
        scores[row // 2, row % 2, best] = 1.0
    found = contrast.choose(jnp.asarray(scores), "hardest", None, local=local)
    assert found.row.tolist() == ([1, 0, 3, 2] if local else wanted)
