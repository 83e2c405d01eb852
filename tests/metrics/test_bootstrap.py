"""The bootstrap against what statistics says about it."""

import time

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


@pytest.mark.parametrize(
    ("values", "expected"),
    [  # Clopper and Pearson's tables
        ([1], (0.025, 1.0)),
        ([1, 1, 1], (0.2924, 1.0)),
        ([0, 0, 0], (0.0, 0.7076)),
        ([1] * 9 + [0], (0.5550, 0.9975)),
        ([1] * 100, (0.9638, 1.0)),
        ([0] * 4000, (0.0, 0.00092)),
    ],
)
def test_few_right_or_wrong_answers_have_the_exact_interval(values, expected):
    assert confidence_interval(values) == pytest.approx(expected, abs=5e-5)


def test_no_small_number_gives_an_interval_without_width():
    for count in (1, 2, 3, 7):
        for value in (0.0, 0.25, 1.0):
            low, high = confidence_interval([value] * count)
            assert low <= value <= high
            assert high - low > 0.3
        low, high = confidence_interval([0.0] * count, paired=True)
        assert low < -0.3
        assert high > 0.3


def coverage(draw, truth, times=300, **options):
    """How often the intervals of draws hold the truth."""
    rng = np.random.default_rng(7)
    found = [confidence_interval(*draw(rng), **options) for _ in range(times)]
    return np.mean([low <= truth <= high for low, high in found])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 25, 60, 200])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_intervals_of_shares_hold_the_truth(count, share):
    assert coverage(lambda rng: [rng.random(count) < share], share) >= 0.91


@pytest.mark.parametrize("count", [4, 30, 300])
def test_intervals_of_partly_right_answers_hold_the_truth(count):
    scores, shares = [0.0, 0.3, 0.6, 1.0], [0.3, 0.1, 0.1, 0.5]
    assert coverage(lambda rng: [rng.choice(scores, count, p=shares)], np.dot(scores, shares)) >= 0.91


@pytest.mark.parametrize(("count", "differing"), [(3, 0.5), (40, 0.1), (500, 0.01), (500, 0.2), (60, 1.0)])
def test_intervals_of_differences_hold_the_truth(count, differing):
    shares = [differing / 4, 1 - differing, 3 * differing / 4]
    held = coverage(lambda rng: [rng.choice([-1.0, 0.0, 1.0], count, p=shares)], differing / 2, paired=True)
    assert held >= 0.91


@pytest.mark.parametrize("images", [3, 12, 80])
def test_questions_about_one_image_count_as_one_where_they_are_alike(images):
    """All five answers about an image are right or wrong together: intervals over questions would be half as wide."""
    about = np.repeat(np.arange(images), 5)

    def draw(rng):
        return np.repeat(rng.random(images) < 0.7, 5), about

    assert coverage(draw, 0.7) >= 0.9
    if images == 80:
        assert coverage(lambda rng: draw(rng)[:1], 0.7) < 0.75


def test_images_in_any_order_and_of_any_number():
    rng = np.random.default_rng(0)
    values, images = rng.random(60) < 0.5, rng.integers(0, 40, 60)
    order = rng.permutation(60)
    whole = confidence_interval(values, images)
    assert confidence_interval(values[order], images[order]) == pytest.approx(whole, abs=1e-12)
    assert confidence_interval(values, [10**12 + int(i) for i in images]) == whole
    assert confidence_interval(values, np.arange(60)) == confidence_interval(values)


def test_what_one_loses_the_other_gains():
    """Few differ: gains and losses each have Clopper and Pearson's interval, at 97.5 % so that both hold at 95 %."""
    values = np.repeat([-1.0, 0.0, 0.5], [2, 17, 1])
    low, high = confidence_interval(values, paired=True)
    assert confidence_interval(-values, paired=True) == pytest.approx((-high, -low))
    assert confidence_interval(np.zeros(20), paired=True) == pytest.approx(
        (0.0125 ** (1 / 20) - 1, 1 - 0.0125 ** (1 / 20))
    )


def test_thousands_of_questions_take_no_second():
    rng = np.random.default_rng(0)
    began = time.process_time()
    confidence_interval(rng.random(4000), rng.integers(0, 800, 4000))
    confidence_interval(rng.random(4000) - rng.random(4000), rng.integers(0, 800, 4000), paired=True)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("values", [[], np.zeros(0), [1.0, float("nan")], [0.5, 1.5], [-0.5]])
def test_bad_values(values):
    with pytest.raises(ValueError, match=r"non-empty|not finite|Expected values in"):
        confidence_interval(values)


def test_bad_arguments():
    with pytest.raises(ValueError, match="0 < level < 1"):
        confidence_interval([1.0], level=95.0)
    with pytest.raises(ValueError, match="3 values, and images of 2"):
        confidence_interval([1, 0, 1], [1, 2])
