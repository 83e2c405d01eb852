"""Scores of generated text, with numbers worked out by hand; once compared with NLTK's and pycocoevalcap's own."""

import math

import numpy as np
import pytest

from jaxvqa.errors import DataError
from jaxvqa.metrics import text


def test_exact_match_and_containment():
    assert text.exact_match(" left lung\n", "left lung") == 1.0
    assert text.exact_match("Left lung", "left lung") == 0.0
    assert text.contains("The LEFT lung ", "left lung") == text.contains("left lung", "in the left lung") == 1.0
    assert text.contains("left lung", "lung, left") == 0.0


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("left lung", ["left lung"], 1.0),
        ("lung", ["lung"], 1.0),  # one word is enough
        ("the mass the mass", ["the mass is large"], 2 / 4),  # "the" and "mass" count once each
        ("mass", ["large mass"], math.exp(1 - 2)),  # all words right, half as long
        ("a large mass", ["mass"], 1 / 3),  # no penalty for a long text
        # Words from two references; three words lie between two and four, and the shorter one sets the penalty.
        ("left large mass", ["left mass", "a very large cyst"], 1.0),
        ("mass", ["large mass", "no mass is seen"], math.exp(1 - 2)),  # 2 words are nearer than 4
        ("", ["mass"], 0.0),
        ("  ", [""], 0.0),
        ("mass", [""], 0.0),
        ("cyst", ["mass"], 0.0),
        ("Mass", ["mass"], 0.0),
    ],
)
def test_bleu1(answer, references, score):
    assert text.bleu1(answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Axial T1-weighted MR image. All are small!", "axial t1 weighted mr image all are small"),
        ("axial t1 - weighted mr image all are small", "axial t1 weighted mr image all are small"),
        ("Größe_1,5 cm", "größe 1 5 cm"),
        (" . ", ""),
    ],
)
def test_plain_words(written, plain):
    assert text.plain_words(written) == plain


def test_corpus_bleu():
    # Together 7 words of 8; of the pairs "a b", "b c" and "x y" with 6; "a b c" of 4; none of 2. As long as the references.
    ours, theirs = ["a b c d", "x y z w"], [["a b c e"], ["x y w z"]]
    first, second, third, fourth = text.corpus_bleu(ours, theirs)
    assert first == pytest.approx(7 / 8)
    assert second == pytest.approx((7 / 8 * 3 / 6) ** (1 / 2))
    assert third == pytest.approx((7 / 8 * 3 / 6 * 1 / 4) ** (1 / 3))
    assert 0 < fourth < 1e-3
    # One penalty for all: 5 words beside 4 + 3.
    assert text.corpus_bleu(["a b c d", "x"], [["a b c d"], ["x y z"]])[0] == pytest.approx(math.exp(1 - 7 / 5))
    assert text.corpus_bleu(["a b c d", "x y z"], [["a b c d"], ["x y z", "x"]]) == pytest.approx((1, 1, 1, 1))
    assert text.corpus_bleu(["", ""], [["a"], ["b"]]) == pytest.approx((0, 0, 0, 0))


@pytest.mark.parametrize(
    ("answer", "references", "precision", "recall"),
    [
        ("a b c d", ["a c d e f"], 3 / 4, 3 / 5),  # a c d
        ("a c b", ["a b c"], 2 / 3, 2 / 3),  # order counts
        ("a b", ["a b c d", "b"], 2 / 2, 1 / 1),  # precision by the first reference, recall by the second
        ("a", ["b"], 0, 0),
        ("", ["b"], 0, 0),
        ("", [""], 1, 1),
    ],
)
def test_rouge_l(answer, references, precision, recall):
    score = 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0
    assert text.rouge_l(answer, references) == pytest.approx(score)


def test_cider():
    # Two examples: "a" is in both (weight 0), "b" and "a b" in one (weight ln 2 each).
    # The first text is its reference: cosine 1 for orders 1 and 2; orders 3 and 4 have nothing. 10 * 2 / 4.
    # The second has no weighted word in common.
    assert text.cider(["a b", "a d"], [["a b"], ["a c"]]) == pytest.approx([5, 0])
    # "b b" beside "b", both of weight ln 2: 2 ln 2 is clipped at ln 2, and (1 * 1) / (2 * 1) = 1/2 for order 1. The pair
    # "b b" occurs in no reference. One pair more: Gaussian of 1 with sigma 6. The second text misses its word.
    assert text.cider(["b b", "x"], [["b"], ["c"]]) == pytest.approx([10 * 0.5 * math.exp(-1 / 72) / 4, 0])
    # Two references are averaged: 1 and 0, order 1 only.
    assert text.cider(["b", "x"], [["b", "d"], ["c"]]) == pytest.approx([10 * (1 + 0) / 2 / 4, 0])
    assert text.cider(["a b"], [["a b"]]) == [0]  # one example: every word is in all of them


@pytest.mark.parametrize("score", [text.corpus_bleu, text.cider])
def test_sets_of_texts_have_references(score):
    for answers, references in (([], []), (["a"], [["a"], ["b"]]), (["a", "b"], [["a"], []])):
        with pytest.raises(DataError, match=f"got {len(answers)} texts and {len(references)} lists"):
            score(answers, references)


def test_perplexity():
    assert text.perplexity(3 * math.log(8) + math.log(16), 4) == pytest.approx((8**3 * 16) ** 0.25)
    assert text.perplexity(1e6, 1) == math.inf
    with pytest.raises(DataError, match="mean over tokens"):
        text.perplexity(1.0, 0)


def test_nearest_answers():
    answers, table = text.embeddings_by_answer(
        np.array([[1.0, 0], [0, 1], [3, 0], [0, -5]]), ["yes", "no", "yes", "unclear"]
    )
    assert answers == ("yes", "no", "unclear")
    np.testing.assert_array_equal(table, [[2, 0], [0, 1], [0, -5]])
    # By direction, not by length: [5, 4] is nearer to [2, 0]'s direction. Equal cosines, and zeros, go to the first.
    found = text.nearest_answers(np.array([[5.0, 4], [4, 5], [0.1, -1], [2, 2], [0, 0]]), table)
    assert [answers[i] for i in found] == ["yes", "no", "unclear", "yes", "yes"]
