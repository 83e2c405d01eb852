"""VQA-Med's scores: the evaluator's own numbers, and what its files may look like."""

import json
import math

import pytest

from jaxvqa.errors import DataError
from jaxvqa.golden import runner
from jaxvqa.metrics import vqa_med
from jaxvqa.metrics.snowball import stem


def test_the_evaluators_numbers(jaxvqa_data):
    rows = [r for r in runner.run(jaxvqa_data / "reference/metrics/cases.json") if r.output == "vqa_med_2021"]
    assert [row.passed for row in rows] == [True, True, True]
    assert [row.note.partition(";")[0] for row in rows] == ["115/115", "9/9", "6/6"]


def test_the_stop_words_are_nltks(jaxvqa_data):
    path = jaxvqa_data / "reference/metrics/stopwords_en_179.json"
    assert set(json.loads(path.read_text())) == vqa_med.STOP_WORDS


@pytest.mark.parametrize(
    ("words", "stems"),
    [
        # Examples of the algorithm's own page.
        ("consign consigned consigning consignment", "consign consign consign consign"),
        ("consist consisted consistency consistent consistently", "consist consist consist consist consist"),
        ("knack knackeries knight knightly knots", "knack knackeri knight knight knot"),
        # One for each step and each exception.
        ("caresses ties cries gas gaps kiwis", "caress tie cri gas gap kiwi"),
        ("agreed luxuriated hopping hoped", "agre luxuri hop hope"),
        ("cry by say enjoyment", "cri by say enjoy"),
        ("generate general communism arsenal", "generat general communism arsenal"),
        ("skies dying early atlas innings succeeding", "sky die earli atlas inning succeed"),
        ("calcification rational hopefulness analogous analogy", "calcif ration hope analog analog"),
        ("duplicate electrical adoption controlled native", "duplic electr adopt control nativ"),
        # The revisions of 2024 and later, and NLTK apart from the description.
        ("internal lateral emergency adding", "intern later emerg ad"),
        ("quantization normalization", "quantize normal"),
        ("hodgkin\u2019s", "hodgkin"),
    ],
)
def test_stems(words, stems):
    assert [stem(word) for word in words.split()] == stems.split()


def test_bleu_by_hand():
    # Three of four words and one of three pairs; no triple: two orders are left, each to the power of a quarter.
    ours = vqa_med.bleu("large right kidney mass", ["large right liver mass"])
    assert ours == pytest.approx((3 / 4 * 1 / 3) ** 0.25)
    assert vqa_med.bleu("mass", ["large mass"]) == pytest.approx(math.exp(1 - 2))
    assert vqa_med.bleu("mass mass", ["mass"]) == pytest.approx(0.5**0.25)  # counted once
    assert vqa_med.bleu("of", ["the"]) == 1.0  # both empty
    assert vqa_med.bleu("of", ["mass"]) == vqa_med.bleu("mass", ["of"]) == 0.0


def test_what_a_submission_must_be():
    with pytest.raises(DataError) as caught:
        vqa_med.summarise({"a": "x", "c": " ", "d": "1"}, {"a": ["x"], "b": ["x"], "c": ["x"]})
    for part in ("without an answer, such as b", "blank", "such as d"):
        assert part in str(caught.value)
    assert vqa_med.submission_lines({"a": "x|y", "b": "z"}) == ["a|x y", "b|z"]
    with pytest.raises(DataError, match="no references"):
        vqa_med.summarise({}, {})


def test_accuracy_may_have_references_of_its_own():
    summary = vqa_med.summarise({"a": 'say "x"'}, {"a": ["say x"]}, {"a": ["other"]})
    assert (summary.accuracy, summary.bleu) == (0.0, 1.0)
    assert summary.per_image == {"a": (0.0, 1.0)}
