"""Retrieval's ranks and recalls by hand, and beside sorting as the original does."""

import numpy as np
import pytest

from jaxvqa.metrics import retrieval


def test_ranks_count_what_stands_before_the_best_of_a_rows_own():
    scores = np.float32([[3, 1, 2, 0], [0, 1, 2, 3], [5, 4, 3, 2]])
    own = np.asarray([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
    assert retrieval.ranks(scores, own).tolist() == [1, 3, 0]


def test_of_equal_scores_the_higher_index_comes_first():
    scores = np.full((4, 4), retrieval.FILL, np.float32)
    assert retrieval.ranks(scores, np.eye(4, dtype=bool)).tolist() == [3, 2, 1, 0]
    scores[:, 1] = -99.0  # looked at, if badly
    assert retrieval.ranks(scores, np.eye(4, dtype=bool)).tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize(("images", "texts"), [(1, 1), (7, 7), (12, 60), (60, 12)])
def test_ranks_are_those_of_an_ascending_sort_read_backwards(images, texts):
    rng = np.random.default_rng(images + texts)
    scores = rng.integers(0, 8, (images, texts)).astype(np.float32)
    own = rng.random((images, texts)) < 0.2
    own[np.arange(images), rng.integers(0, texts, images)] = True
    expected = []
    for row, mine in zip(scores, own, strict=True):
        order = np.argsort(row, kind="stable")[::-1]
        expected.append(min(np.flatnonzero(order == place)[0] for place in np.flatnonzero(mine)))
    assert retrieval.ranks(scores, own).tolist() == expected


def test_long_rows_are_compared_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    scores, own = rng.random((9, 6)), np.eye(9, 6, dtype=bool)
    own[6:, 0] = True
    whole = retrieval.ranks(scores, own), retrieval.candidates(scores, 2)
    monkeypatch.setattr(retrieval, "_BLOCK", 13)
    np.testing.assert_array_equal(retrieval.ranks(scores, own), whole[0])
    np.testing.assert_array_equal(retrieval.candidates(scores, 2), whole[1])


def test_what_cannot_be_ranked_is_an_error():
    scores = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"1 rows have no right column, such as \[1\]"):
        retrieval.ranks(scores, np.asarray([[True, False, False], [False, False, False]]))
    with pytest.raises(ValueError, match=r"not numbers, such as \[0\]"):
        retrieval.ranks(np.asarray([[np.nan, 1], [0, 0]]), np.eye(2, dtype=bool))


def test_candidates_are_the_best_and_at_the_cut_the_last_of_equal_ones():
    scores = np.asarray([[1.0, 3.0, 2.0, 3.0], [2.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert retrieval.candidates(scores, 2).tolist() == [
        [False, True, False, True],
        [False, True, True, False],
        [False, False, True, True],
    ]
    assert retrieval.candidates(scores, 4).all()
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"from 1 to 4 candidates, got {count}"):
            retrieval.candidates(scores, count)


def test_recalls_both_ways_with_several_texts_an_image_and_several_images_a_text():
    # 2 images, 13 texts: the first image has the texts 0 and 1, the second all others, and text 1 as well.
    pairs = np.asarray([[0, 0], [0, 1], *([1, t] for t in range(1, 13))])
    own = retrieval.relation((2, 13), pairs)
    scores = np.zeros((2, 13))
    scores[0] = [8.5, 7.5, *range(20, 9, -1)]  # its best text stands behind eleven others
    scores[1] = [30, 4, *range(4, -7, -1)]
    found = retrieval.summarise(scores, own)
    assert found.of_images.tolist() == [11, 1]
    assert found.of_texts.tolist() == [1, 0, *[1] * 11]
    recalls = found.recalls()
    assert list(recalls) == [
        *("txt_r1", "txt_r5", "txt_r10", "txt_r_mean"),
        *("img_r1", "img_r5", "img_r10", "img_r_mean", "r_mean"),
    ]
    assert [recalls[f"txt_r{k}"] for k in retrieval.CUTS] == [0, 50, 50]
    assert recalls["img_r1"] == pytest.approx(100 / 13)
    assert recalls["img_r5"] == 100
    assert recalls["r_mean"] == pytest.approx((100 / 3 + (100 / 13 + 200) / 3) / 2)


def test_after_re_ranking_texts_have_scores_of_their_own():
    own = np.eye(2, dtype=bool)
    found = retrieval.summarise(np.asarray([[2.0, 1.0], [1.0, 2.0]]), own, np.asarray([[1.0, 2.0], [2.0, 1.0]]))
    assert found.of_images.tolist() == [0, 0]
    assert found.of_texts.tolist() == [1, 1]


def test_intervals_resample_images_with_all_their_texts():
    # 40 images of 5 texts each, of which all or none find their image: as uncertain as 40 values, not as 200.
    own = np.repeat(np.eye(40, dtype=bool), 5, axis=1)
    scores = own * np.where(np.arange(40) < 20, 1.0, -1.0)[:, None]
    found = retrieval.summarise(scores, own).scores()
    assert found["img_r1"].value == found["txt_r1"].value == 50
    assert found["img_r1"].n == 200
    assert found["img_r1"].low == found["txt_r1"].low
    assert 25 < found["img_r1"].low < 45
    alike = retrieval.summarise(scores, own, images=np.arange(40) // 10).scores()["img_r1"]
    assert alike.low < found["img_r1"].low  # four independent groups of images
    assert found["r_mean"].low <= found["r_mean"].value <= found["r_mean"].high
    assert found["img_median"].value == pytest.approx((1 + 40) / 2)


def test_chance_is_what_drawn_scores_have_in_the_mean():
    own = retrieval.relation((6, 12), np.asarray([[t // 2, t] for t in range(12)]))
    found = retrieval.chance(own)
    assert found["img_r1"] == pytest.approx(100 / 6)
    assert found["img_r5"] == pytest.approx(500 / 6)
    assert found["img_r10"] == 100
    assert found["txt_r1"] == pytest.approx(200 / 12)
    rng = np.random.default_rng(0)
    drawn = [retrieval.summarise(rng.random((6, 12)), own).recalls() for _ in range(1000)]
    for name, expected in found.items():
        assert np.mean([each[name] for each in drawn]) == pytest.approx(expected, abs=2)


def test_the_ceiling_is_what_who_knows_all_that_is_said_has_in_the_mean():
    own = np.eye(4, dtype=bool)
    found = retrieval.ceiling(own, ["a mass", "a cyst", "a mass", "a mass"])
    assert found["txt_r1"] == found["img_r1"] == pytest.approx(100 * (1 + 3 / 3) / 4)
    assert found["txt_r5"] == 100
    # Two texts an image; images 0 and 1 share what one of their texts says.
    own = np.repeat(np.eye(3, dtype=bool), 2, axis=1)
    keys = ["large", "left", "large", "right", "small", "none"]
    found = retrieval.ceiling(own, keys)
    says = np.asarray([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], bool)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(1500):
        noise = rng.random((3, 6))
        drawn.append(retrieval.summarise(says + noise, own).recalls())
    for name in ("txt_r1", "img_r1", "r_mean"):
        assert np.mean([each[name] for each in drawn]) == pytest.approx(found[name], abs=2)


def test_the_ceiling_of_texts_that_all_differ_is_everything():
    found = retrieval.ceiling(np.eye(5, dtype=bool), list("abcde"))
    assert set(found.values()) == {100.0}
