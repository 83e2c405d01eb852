"""Dropout: shares, means, and masks that are independent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.models.layers.dropout import Dropout, keep_mask


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_given_share_and_keeps_the_mean(rate):
    x = jnp.ones((301, 1001))
    y = Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = float(jnp.mean(y != 0))
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept - (1 - rate)) < 4 * deviation
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_without_rate_or_training_is_the_identity():
    x = jnp.arange(6.0)
    assert Dropout(0.0).apply({}, x, train=True) is x
    assert Dropout(0.5).apply({}, x, train=False) is x


def test_masks_of_neighbours_and_of_other_keys_are_independent():
    shape, keep = (512, 512), 0.9
    mask = np.asarray(keep_mask(jax.random.key(0), keep, shape), np.float64) - keep
    other = np.asarray(keep_mask(jax.random.key(1), keep, shape), np.float64) - keep
    limit = 4 * keep * (1 - keep) / np.sqrt(mask.size)
    for shift in (1, 2, 3, 4, 7, 8, 16, 64, 128, 256):
        for axis in (0, 1):
            assert abs(np.mean(mask * np.roll(mask, shift, axis))) < limit, (shift, axis)
    assert abs(np.mean(mask * other)) < limit
    rows, columns = mask.mean(axis=1), mask.mean(axis=0)
    expected = np.sqrt(keep * (1 - keep) / 512)
    assert 0.85 < rows.std() / expected < 1.15
    assert 0.85 < columns.std() / expected < 1.15


def test_masks_are_a_function_of_key_and_position():
    key = jax.random.key(5)
    whole = keep_mask(key, 0.7, (6, 4, 8))
    np.testing.assert_array_equal(jax.jit(keep_mask, static_argnums=(1, 2))(key, 0.7, (6, 4, 8)), whole)
    np.testing.assert_array_equal(keep_mask(key, 0.7, (24, 8)).reshape(6, 4, 8), whole)
    assert keep_mask(key, 0.7, ()).shape == ()
