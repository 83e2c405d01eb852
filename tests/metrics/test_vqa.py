"""VQA accuracy against the golden cases of the official script."""

import json
import os
from pathlib import Path

import pytest

from jaxvqa.data.answers import AnswerList, normalise_answer
from jaxvqa.errors import DataError
from jaxvqa.metrics import vqa

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT_CASES = json.loads((GOLDEN / "rwsan/text_cases.json").read_text())
CASES = json.loads((GOLDEN / "metrics/vqa_v2_cases.json").read_text())["vqa_v2"]


@pytest.mark.parametrize("case", TEXT_CASES["answers"], ids=lambda case: repr(case["raw"][:20]))
def test_normalisation(case):
    assert vqa.normalise_prediction(case["raw"]) == case["prediction"]
    assert vqa.normalise_human(case["raw"]) == case["human"]


@pytest.mark.parametrize("case", TEXT_CASES["vqa_accuracy"])
def test_summarise(case):
    predictions = {row["question_id"]: row["answer"] for row in case["predictions"]}
    summary = vqa.summarise(predictions, case["annotations"]).rounded()
    assert {str(key): value for key, value in summary.per_question.items()} == case["per_question"]
    assert summary.overall == case["overall"]
    assert summary.by_answer_type == case["per_answer_type"]
    assert summary.by_question_type == case["per_question_type"]
    assert len(summary.per_question) == len(predictions)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: str(case["question_id"]))
def test_question_accuracy(case):
    accuracy = vqa.question_accuracy(case["prediction"], case["answers"])
    assert 100 * accuracy == pytest.approx(case["accuracy"], abs=0.005)
    # The cases name the answers of the original's list that score; any list that holds them gives the same scores.
    answers = AnswerList(tuple(case["rwsan_target"]))
    scores = dict(zip(answers.answers, answers.soft_scores(case["answers"]).tolist(), strict=True))
    assert scores == pytest.approx(case["rwsan_target"])


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_ten_annotators(matches, expected):
    texts = ["yes"] * matches + ["no"] * (10 - matches)
    records = [{"answer": text, "answer_id": i} for i, text in enumerate(texts)]
    for annotators in (texts, records):
        assert 100 * vqa.question_accuracy("Yes.", annotators) == pytest.approx(expected)


def test_equal_records_without_id_exclude_one_another():
    records = [{"answer": "tree"}] * 3 + [{"answer": "bush"}] * 4
    assert vqa.question_accuracy("tree", records) == pytest.approx(4 / 7)
    assert vqa.question_accuracy("tree", [record["answer"] for record in records]) == pytest.approx((3 * 2 / 3 + 4) / 7)


def test_no_annotator():
    with pytest.raises(DataError, match="at least one annotated answer"):
        vqa.question_accuracy("yes", [])


def test_summarise_wants_exactly_the_annotated_questions():
    annotations = [
        {"question_id": i, "answers": ["yes"] * 10, "answer_type": "yes/no", "question_type": "is"} for i in range(3)
    ]
    with pytest.raises(
        DataError, match=r"1 annotated question\(s\) without a prediction \(first: 2\); 1 predicted .* \(first: 9\)"
    ):
        vqa.summarise({0: "yes", 1: "yes", 9: "yes"}, annotations)
    with pytest.raises(DataError, match="1 question"):
        vqa.summarise({0: "yes", 1: "no", 2: "no"}, [*annotations, annotations[0]])
    with pytest.raises(DataError, match="no annotations at all"):
        vqa.summarise({}, [])


def test_eval_ai_results():
    rows = vqa.eval_ai_results({7: "yes", 3: "2"})
    assert rows == [{"answer": "yes", "question_id": 7}, {"answer": "2", "question_id": 3}]
    assert json.loads(json.dumps(rows)) == rows


PREDICTORS = {
    "human_k": lambda row: row["answers"][row["question_id"] % 10]["answer"],
    "most_common": lambda row: row["multiple_choice_answer"],
    "all_yes": lambda row: "yes",
    "all_2": lambda row: "two",
    "most_common_shouted": lambda row: "The " + row["multiple_choice_answer"].upper() + ".",
}


@pytest.mark.skipif("JAXVQA_DATA" not in os.environ, reason="JAXVQA_DATA is not set")
@pytest.mark.parametrize("name", CASES["files"])
def test_whole_result_files(name):
    folder = Path(os.environ["JAXVQA_DATA"]) / "data/vqa_v2_mini"
    minival = set(json.loads((folder / "splits.json").read_text())["minival"])
    rows = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    rows = [row for row in rows if row["question_id"] in minival]
    summary = vqa.summarise({row["question_id"]: PREDICTORS[name](row) for row in rows}, rows).rounded()
    assert summary.overall == CASES["files"][name]["overall"]
    assert summary.by_answer_type == CASES["files"][name]["perAnswerType"]


@pytest.mark.skipif("JAXVQA_DATA" not in os.environ, reason="JAXVQA_DATA is not set")
def test_real_answers_are_fixed_points():
    folder = Path(os.environ["JAXVQA_DATA"]) / "data/vqa_v2_mini"
    rows = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    answers = AnswerList.build((row["multiple_choice_answer"] for row in rows), min_count=9)
    assert len(answers) == 45
    assert all(normalise_answer(answer) == answer for answer in answers.answers)


@pytest.mark.parametrize(
    ("prediction", "annotators", "old", "new"),
    [
        ("yes", ["yes"] * 10, 1, 1),
        ("Yes.", ["yes"] * 10, 1, 0),  # nothing is normalised where all agree
        ("yes", ["Yes"] * 10, 0, 0),
        ("Yes", ["Yes"] * 10, 0, 1),
        (" Yes\n", ["Yes\t"] * 10, 0, 1),
        ("yes", ["Yes"] * 9 + ["no"], 0, 1),  # both sides are, in full, where they differ
        ("2", ["two"] * 6 + ["a few"] * 4, 0, 1),
        ("the dog", ["dog"] * 2 + ["cat"] * 8, 0.6, 0.6),
        ("dog", ["the dog!"] * 3 + ["cat"] * 7, 0, 0.9),
    ],
)
def test_the_two_official_rules(prediction, annotators, old, new):
    assert vqa.question_accuracy(prediction, annotators) == pytest.approx(old)
    assert vqa.question_accuracy_since_2021(prediction, annotators) == pytest.approx(new)
    records = [{"answer": text, "answer_id": i} for i, text in enumerate(annotators)]
    assert vqa.question_accuracy_since_2021(prediction, records) == pytest.approx(new)


@pytest.mark.skipif("JAXVQA_DATA" not in os.environ, reason="JAXVQA_DATA is not set")
def test_the_rules_on_real_answers():
    """What the newest script changed on 6,000 questions of VQA v2, as users of it found."""
    folder = Path(os.environ["JAXVQA_DATA"]) / "data/vqa_v2_mini"
    rows = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]

    def both(prediction, row):
        return [rule(prediction, row["answers"]) for rule in (vqa.question_accuracy, vqa.question_accuracy_since_2021)]

    def gain(form):
        old, new = zip(*(both(form(row["multiple_choice_answer"]), row) for row in rows), strict=True)
        return 100 * (sum(new) - sum(old)) / len(rows)

    given = [{a["answer"] for a in row["answers"]} for row in rows]
    changed = sum(any(len(set(both(answer, row))) > 1 for answer in of) for row, of in zip(rows, given, strict=True))
    assert changed == 102
    assert gain(str) == pytest.approx(0.265, abs=0.01)
    assert gain(str.capitalize) == pytest.approx(-23.28, abs=0.01)


@pytest.mark.parametrize("rule", [vqa.question_accuracy, vqa.question_accuracy_since_2021])
@pytest.mark.parametrize(
    ("annotators", "expected"),
    [
        (["Yes"], 1),
        (["no"], 0),
        (["yes", "no"], 1 / 2),
        (["yes", "yes."], 1),
        (["yes", "no", "Yes"], 2 / 3),
        (["yes"] * 3, 1),
        (["yes", "yes", "no", "no"], 1 / 2),  # the official rules themselves from here on
        (["yes"] * 4, 1),
        (["yes"] + ["no"] * 9, 0.3),
    ],
)
def test_few_annotators_are_scored_by_the_share_who_agree(rule, annotators, expected):
    assert vqa.fair_to_few(rule)("yes", annotators) == pytest.approx(expected)
