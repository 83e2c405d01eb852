"""VQA-Med's accuracy and BLEU over several right answers, and the challenge's file."""

import json
import math

import pytest

from tests.evaluators.stubs import Task, chosen, evaluate

GARBLED = "hodgkin’s".encode().decode("gbk")
CHOICES = ("bone cyst", "cyst", "cyst bone", GARBLED)


def question(number, image, answers, name=None):
    asked = {"question_id": number, "image_id": image, "question": "what is abnormal?", "answers": answers}
    return asked | {"multiple_choice_answer": answers[0], "image_name": name or f"synpic{image}"}


QUESTIONS = [
    question(1, 5, ["mass", "bone cyst"]),
    question(2, 5, ["bone cyst"], "synpic5b"),
    question(3, 6, ["mass", "bone cyst"]),
    question(4, 6, ["ulcer"], "synpic6b"),
]


def scored(answers, tmp_path, questions=QUESTIONS, rule="exact", **row):
    return evaluate("vqa_med", Task(rule, CHOICES), {"val": questions}, chosen(answers), tmp_path, **row)


def test_the_best_over_a_questions_answers(tmp_path):
    values = scored([0, 1, 2, 0], tmp_path, rule="soft")  # whose share of annotators plays no part
    assert "accuracy_since_2021" not in values
    assert values["accuracy"] == 25  # the order of words counts
    assert values["bleu"] == pytest.approx(100 * (1 + math.exp(-1) + 1 + 0) / 4)  # and for BLEU it does not
    rows = [json.loads(line) for line in (tmp_path / "predictions/val_7.jsonl").read_text().splitlines()]
    assert [row["bleu"] for row in rows] == pytest.approx([1, math.exp(-1), 1, 0])
    assert (tmp_path / "predictions/val_7_imageclef.txt").read_text() == (
        "synpic5|bone cyst\nsynpic5b|cyst\nsynpic6|cyst bone\nsynpic6b|bone cyst\n"
    )


def test_intervals_count_images(tmp_path):
    values = scored([0] * 3, tmp_path, [question(n, image, ["bone cyst"]) for n, image in ((1, 5), (2, 5), (3, 5))])
    for name in ("accuracy", "bleu"):
        assert (values[name], values[f"{name}/low"], values[f"{name}/high"]) == (100, pytest.approx(2.5), 100)


def test_the_challenge_gets_no_file_that_it_would_not_take(tmp_path):
    scored([0, -1, 0, 0], tmp_path / "unanswered")
    scored([0, 0], tmp_path / "twice", [question(1, 5, ["mass"]), question(2, 5, ["mass"])])
    assert not list(tmp_path.rglob("*imageclef*"))
    assert scored([0, -1, 0, 0], tmp_path)["unanswered"] == 25


@pytest.mark.parametrize(("repair", "written"), [(False, GARBLED), (True, "hodgkin’s")])
def test_names_are_repaired_where_asked(tmp_path, repair, written):
    asked = [question(1, 5, ["hodgkin’s"])]
    values = scored([3], tmp_path, asked, repair_names=repair)
    assert json.loads((tmp_path / "predictions/val_7.jsonl").read_text())["answer"] == written
    assert values["accuracy"] == 100 * repair
