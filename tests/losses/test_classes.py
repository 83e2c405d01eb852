"""Losses: limits, gradients, mixing, which flags count, and which words."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import losses
from jaxvqa.errors import ConfigError

TAU = float(np.log(330))
BRANCH = TAU - 0.5 / np.e  # below it, sigma is e


def test_lambert_w_inverts_its_equation():
    y = np.concatenate([-np.geomspace(1e-8, 0.367, 500), np.geomspace(1e-20, 1e20, 500)]).astype(np.float32)
    w = np.asarray(jax.jit(losses.lambert_w)(y)).astype(np.float64)
    np.testing.assert_allclose(w * np.exp(w), y.astype(np.float64), rtol=2e-5, atol=1e-7)  # at 1e20, W is 43
    assert (np.diff(w[y > 1e-3]) > 0).all()


def test_lambert_w_next_to_its_branch_point():
    # The float32 numbers on either side of -1/e: its slope is infinite there, so a rounded 1/e would give -0.9996.
    y = np.float32([-0.37, -0.36787945, -0.36787942])
    expected = [-1.0, -1.0, -0.9996649568]  # SciPy's, in float64, of the last
    np.testing.assert_allclose(np.asarray(jax.jit(losses.lambert_w)(y)), expected, atol=1e-7)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
def test_superloss_at_the_clamp_and_beyond(jit):
    each = jnp.asarray([0.0, 3.0, BRANCH - 1e-3, BRANCH, TAU, 40.0, 5000.0], jnp.float32)
    value, gradient = jit(jax.vmap(jax.value_and_grad(lambda x: losses.superloss(x[None], 330)[0])))(each)
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value[:3], np.e * (np.asarray(each[:3]) - TAU) + 0.25, rtol=1e-5)
    np.testing.assert_allclose(gradient[:4], np.e, rtol=1e-3)
    np.testing.assert_allclose([value[4], gradient[4]], [0, 1], atol=1e-5)
    assert (np.diff(np.asarray(gradient[3:])) < 0).all()


def test_label_smoothing_is_cross_entropy_with_soft_targets():
    logits, targets = jax.random.normal(jax.random.key(0), (5, 7)), jnp.arange(5)
    soft = 0.9 * jax.nn.one_hot(targets, 7) + 0.1 / 7
    expected = -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1)
    np.testing.assert_allclose(losses.label_smoothing(logits, targets), expected, rtol=1e-5)


def test_losses_are_float32_whatever_the_logits():
    logits, targets = jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.int32)
    for each in losses.LOSSES.values():
        assert each(logits, targets).dtype == jnp.float32


def test_mixup_draws_one_share_and_a_permutation_by_the_key():
    @jax.jit
    @jax.vmap
    def draw(seed):
        mixup = losses.Mixup.draw(jax.random.key(seed), 32)
        return mixup.share, mixup.partner

    shares, partners = map(np.asarray, draw(jnp.arange(500)))
    assert shares.dtype == np.float32
    np.testing.assert_array_equal(np.sort(partners, axis=-1), np.tile(np.arange(32), (500, 1)))
    assert not np.array_equal(partners[0], partners[1])
    for first, again in zip((shares, partners), draw(jnp.arange(500)), strict=True):
        np.testing.assert_array_equal(first, again)
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 · 1.4); most of it near 0 and 1.
    assert abs(shares.mean() - 0.5) < 0.07
    assert abs(shares.var() - 1 / 5.6) < 0.03


def test_mixup_mixes_images_and_losses_alike():
    images = jnp.arange(3.0).reshape(3, 1, 1, 1) + jnp.zeros((3, 2, 2, 1))
    mixup = losses.Mixup(jnp.float32(0.75), jnp.asarray([1, 2, 0]))
    np.testing.assert_allclose(mixup.images(images)[:, 0, 0, 0], [0.25, 1.25, 1.5])
    logits, targets = jax.random.normal(jax.random.key(0), (3, 4)), jnp.asarray([3, 1, 0])
    own, other = (losses.cross_entropy(logits, t) for t in (targets, targets[mixup.partner]))
    np.testing.assert_allclose(mixup.loss(losses.cross_entropy, logits, targets), 0.75 * own + 0.25 * other, rtol=1e-6)
    # Nothing is mixed where the share is 1.
    alone = losses.Mixup(jnp.float32(1), mixup.partner)
    np.testing.assert_array_equal(alone.images(images), images)
    np.testing.assert_array_equal(alone.loss(losses.cross_entropy, logits, targets), own)


PLAIN, SMOOTH, BOTH, SUPER = (
    *(losses.cross_entropy, losses.label_smoothing, losses.label_smoothing_superloss, losses.superloss_of_nll),
)


@pytest.mark.parametrize(
    ("mixup", "smooth", "super_", "original", "each", "ignored"),
    [
        (False, False, False, PLAIN, PLAIN, []),
        (False, True, False, PLAIN, SMOOTH, ["label_smooth"]),
        (False, False, True, PLAIN, SUPER, ["superloss"]),
        (False, True, True, PLAIN, BOTH, ["label_smooth", "superloss"]),
        (True, False, False, PLAIN, PLAIN, []),
        (True, True, False, SMOOTH, SMOOTH, []),
        (True, False, True, PLAIN, SUPER, ["superloss"]),
        (True, True, True, BOTH, BOTH, []),
    ],
)
def test_flags(mixup, smooth, super_, original, each, ignored, caplog):
    given = {"mixup": mixup, "label_smooth": smooth, "superloss": super_}
    with caplog.at_level(logging.WARNING, logger="jaxvqa"):
        assert _without_amount(losses.choose_loss(**given, flags="each")) is each
        assert not caplog.records
        assert _without_amount(losses.choose_loss(**given, flags="original")) is original
    assert [record.args[0] for record in caplog.records] == ([" and ".join(ignored)] if ignored else [])
    assert all("IGNORED" in record.getMessage() for record in caplog.records)


def _without_amount(loss):
    """The loss itself, without the amount of smoothing that it was given: the default's."""
    if not isinstance(loss, functools.partial):
        return loss
    assert loss.keywords == {"amount": 0.1}
    return loss.func


def test_an_unknown_reading_of_the_flags():
    with pytest.raises(ConfigError, match="original or each"):
        losses.choose_loss(mixup=True, label_smooth=True, superloss=True, flags="faithful")


def test_the_loss_of_text_counts_its_own_words_or_those_of_all():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 4, 5), dtype=np.float32))
    targets = jnp.asarray(rng.integers(0, 5, (2, 4)), jnp.int32)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    logs = np.asarray(jax.nn.log_softmax(logits))
    nll = -np.take_along_axis(logs, np.asarray(targets)[..., None], -1)[..., 0]
    each = 0.8 * nll - 0.2 * logs.mean(-1)
    own = losses.text_loss(logits, targets, jnp.asarray(mask), smoothing=0.2)
    np.testing.assert_allclose(own, (each * mask).sum(1), rtol=1e-5)
    # The original's: losses [B, T] times masks [B, 1, T] are [B, B, T], divided by B and by the words.
    shared = losses.text_loss(logits, targets, jnp.asarray(mask), smoothing=0.2, shared_mask=True)
    np.testing.assert_allclose(shared.sum(), (each[None] * mask[:, None]).sum() / 2, rtol=1e-5)
