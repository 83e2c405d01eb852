"""The bootstrap against what statistics says about it."""

import numpy as np
import pytest

from jaxvqa.metrics import bootstrap
from jaxvqa.metrics.bootstrap import confidence_interval


def test_agrees_with_the_normal_approximation():
    values = np.random.default_rng(1).choice([0.0, 0.3, 0.6, 0.9, 1.0], size=5000)
    low, high = confidence_interval(values, resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        low, high = confidence_interval(rng.random(80), seed=seed, resamples=400, level=0.8)
        hits += low <= 0.5 <= high
    assert 0.72 < hits / 200 < 0.88


def test_is_deterministic_and_follows_the_seed():
    values = np.random.default_rng(3).random(200)
    assert confidence_interval(values, seed=4) == confidence_interval(list(values), seed=4)
    assert confidence_interval(values, seed=4) != confidence_interval(values, seed=5)


def test_chunks_change_nothing(monkeypatch):
    values = np.random.default_rng(3).random(50)
    whole = confidence_interval(values)
    monkeypatch.setattr(bootstrap, "_MAX_CELLS", 120)
    assert confidence_interval(values) == pytest.approx(whole, rel=1e-12)


def test_wider_level_gives_wider_interval():
    values = np.arange(100) % 2
    low, high = confidence_interval(values, level=0.5)
    wide_low, wide_high = confidence_interval(values, level=0.99)
    assert wide_low < low < 0.5 < high < wide_high


def test_takes_right_and_wrong():
    right = np.arange(100) % 3 == 0
    assert confidence_interval(right) == confidence_interval(right.astype(float))
    assert confidence_interval([1, 0, 1]) == confidence_interval([1.0, 0.0, 1.0])


def test_constant_values():
    assert confidence_interval([0.25] * 7) == (0.25, 0.25)
    assert confidence_interval([1.0]) == (1.0, 1.0)


@pytest.mark.parametrize("values", [[], np.zeros(0), [1.0, float("nan")]])
def test_bad_values(values):
    with pytest.raises(ValueError, match=r"non-empty|not finite"):
        confidence_interval(values)


def test_bad_arguments():
    with pytest.raises(ValueError, match="0 < level < 1"):
        confidence_interval([1.0], level=95.0)
