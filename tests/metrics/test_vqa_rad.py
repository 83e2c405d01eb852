"""Scores on VQA-RAD: the protocols, groups and baselines; the published counts in the golden cases."""

import json
import math
from pathlib import Path

import pytest

from jaxvqa.data.rad_text import RadAnswerList
from jaxvqa.errors import DataError
from jaxvqa.golden import metrics as golden_metrics
from jaxvqa.metrics import vqa_rad

ANSWERS = ("yes", "no", "xray", "left lobe")


def row(
    number, answer, truth, answer_type="CLOSED", question_type="PRES", phrase_type="freeform", organ="HEAD", image=1
):
    return {
        "question_id": number,
        "image_id": image,
        "answer": answer,
        "multiple_choice_answer": truth,
        "answer_type": answer_type,
        "question_type": question_type,
        "phrase_type": phrase_type,
        "organ": organ,
    }


ROWS = [
    row(1, "yes", "Yes"),
    row(2, "yes", "no", question_type="POS, PRES", organ="CHEST"),
    row(3, "xray", "An X-ray", "OPEN", "MODALITY"),
    row(4, "yes", "right lobe", "OPEN", "POS", organ="ABD"),
    row(5, "no", "right lobe", "OPEN", "POS, ATRIB", organ="ABD"),
    row(6, "left lobe", "Left lobe", "OPEN", "POS", "para", organ="ABD"),
]


def test_protocols():
    expected = {
        "original_308": (5, 3, {1, 3, 4}),  # "yes" for an answer outside of the list counts as right
        "strict_308": (5, 2, {1, 3}),
        "original_451": (6, 4, {1, 3, 4, 6}),
        "strict_451": (6, 3, {1, 3, 6}),
    }
    report = vqa_rad.report(ROWS, ANSWERS)
    assert list(report) == list(expected) == list(vqa_rad.PROTOCOLS)
    for name, (count, right, ids) in expected.items():
        summary = report[name]
        assert (summary.overall.count, summary.overall.right) == (count, right)
        assert summary.overall.accuracy == pytest.approx(100 * right / count)
        assert {i for i, is_right in summary.per_question.items() if is_right} == ids
    assert report["strict_451"].overall.answerable == 4
    assert report["strict_451"].overall.ceiling == pytest.approx(400 / 6)


def test_groups():
    summary = vqa_rad.summarise(ROWS, ANSWERS, "strict_451")
    Counts = vqa_rad.Counts
    assert summary.by_answer_type == {"CLOSED": Counts(2, 1, 2), "OPEN": Counts(4, 2, 2)}
    # A question of two types counts once for each; the types come in the original's order, misspelt ones mended.
    assert list(summary.by_question_type) == ["PRES", "MODALITY", "POS", "ATTRIB"]
    assert summary.by_question_type["PRES"] == Counts(2, 1, 2)
    assert summary.by_question_type["POS"] == Counts(4, 1, 2)
    assert summary.by_question_type["ATTRIB"] == Counts(1, 0, 0)
    assert summary.by_both["CLOSED"] == {"PRES": Counts(2, 1, 2), "POS": Counts(1, 0, 1)}
    assert summary.by_organ == {"ABD": Counts(3, 1, 1), "CHEST": Counts(1, 0, 1), "HEAD": Counts(2, 2, 2)}
    table = summary.table()
    assert table["accuracy"] == 50
    assert (table["closed"], table["open"]) == (50, 50)
    assert (table["question_type/POS"], table["organ/HEAD"]) == (25, 100)


def test_any_text_without_an_answer_list():
    rows = [row(1, "The right lobe.", "right lobe"), row(2, "yes", "right lobe")]
    for name in vqa_rad.PROTOCOLS:
        summary = vqa_rad.summarise(rows, None, name)
        assert summary.overall == vqa_rad.Counts(2, 1, 2)


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("PRES", ("PRES",)),
        ("POS, ABN", ("POS", "ABN")),
        ("Other", ("OTHER",)),
        ("ATRIB, PRSE", ("ATTRIB", "PRES")),
        ("PRES, PRSE", ("PRES",)),
        ("NEW", ("NEW",)),
    ],
)
def test_question_types(text, types):
    assert vqa_rad.question_types(text) == types


def test_what_cannot_be_scored():
    with pytest.raises(DataError, match="protocol is 'freeform': choose original_308"):
        vqa_rad.summarise(ROWS, ANSWERS, "freeform")
    with pytest.raises(DataError, match="phrase type is freeform"):
        vqa_rad.summarise(ROWS[-1:], ANSWERS)
    with pytest.raises(DataError, match="1 question id"):
        vqa_rad.summarise([*ROWS, ROWS[0]], ANSWERS)
    assert list(vqa_rad.report(ROWS[-1:], ANSWERS)) == ["original_451", "strict_451"]
    assert math.isnan(vqa_rad.summarise(ROWS[:1], ANSWERS).by_answer_type["OPEN"].accuracy)


def test_majority_answers():
    train = [
        row(1, "", "No", image=1),
        row(2, "", "axial", "OPEN", "PLANE", image=1),
        row(3, "", "yes", image=2),
        row(4, "", "Yes", image=2),
        row(5, "", "no", image=3),
    ]
    rows = [
        row(6, "", "", image=1),
        row(7, "", "", "OPEN", "PLANE", image=2),
        row(8, "", "", image=2),
        row(9, "", "", "OPEN", "SIZE", image=9),
    ]
    assert vqa_rad.majority_answers(train, rows) == ["no"] * 4  # as often as yes, but first
    assert vqa_rad.majority_answers(train, rows, vqa_rad.TYPE) == ["no", "axial", "no", "no"]
    assert vqa_rad.majority_answers(train, rows, vqa_rad.IMAGE_AND_TYPE) == ["no", "no", "yes", "no"]
    keys = (*vqa_rad.IMAGE_AND_TYPE, ("question_type",))
    assert vqa_rad.majority_answers(train, rows, keys) == ["no", "axial", "yes", "no"]
    with pytest.raises(DataError, match="at least one train question"):
        vqa_rad.majority_answers([], rows)
    assert [r["answer"] for r in vqa_rad.with_answers(rows, "abcd")] == list("abcd")


# The real splits.


@pytest.fixture(scope="module")
def splits(jaxvqa_data):
    folder = jaxvqa_data / golden_metrics.RAD_SPLITS
    return {
        split: [
            entry
            | {"question_id": entry["qid"], "multiple_choice_answer": entry["answer"], "organ": entry["image_organ"]}
            for entry in entries
        ]
        for split, entries in json.loads(Path(folder).read_text(encoding="utf-8")).items()
    }


def test_counts_of_the_real_splits(splits):
    answers = RadAnswerList.build(r["multiple_choice_answer"] for r in splits["train"]).answers
    oracle = vqa_rad.with_answers(splits["test"], [str(r["multiple_choice_answer"]) for r in splits["test"]])
    report = vqa_rad.report(oracle, answers)
    freeform, both = report["strict_308"].by_answer_type, report["strict_451"].by_answer_type
    assert freeform == {"CLOSED": vqa_rad.Counts(185, 180, 180), "OPEN": vqa_rad.Counts(123, 90, 90)}
    assert both == {"CLOSED": vqa_rad.Counts(272, 266, 266), "OPEN": vqa_rad.Counts(179, 142, 142)}
    assert report["strict_451"].overall.ceiling == pytest.approx(90.5, abs=0.05)
    assert sum(score.count for score in report["strict_451"].by_organ.values()) == 451


@pytest.mark.parametrize(
    ("keys", "accuracy"), [(((),), 29.5), (vqa_rad.TYPE, 35.5), ((("image_name", "question_type"),), 55.2)]
)
def test_baselines_of_the_real_splits(splits, keys, accuracy):
    answers = RadAnswerList.build(r["multiple_choice_answer"] for r in splits["train"]).answers
    majority = vqa_rad.majority_answers(splits["train"], splits["test"], keys)
    summary = vqa_rad.summarise(vqa_rad.with_answers(splits["test"], majority), answers, "strict_451")
    assert summary.overall.accuracy == pytest.approx(accuracy, abs=0.05)
