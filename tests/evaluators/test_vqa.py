"""Accuracy by the official rules, its interval, its groups and its controls, each worked out by hand."""

import json

import pytest

from tests.evaluators.stubs import Task, chosen, evaluate


def question(number, image, answers, kind="other", text="what is it?"):
    return {
        "question_id": number,
        "image_id": image,
        "question": text,
        "answers": answers,
        "multiple_choice_answer": answers[0] if answers else "",
        "answer_type": kind,
    }


QUESTIONS = [
    question(11, 5, ["yes"] * 10, "yes/no"),
    question(12, 5, ["dog"] * 2 + ["cat"] * 8),
    question(13, 6, ["Yes"] * 9 + ["no"], "yes/no"),  # only the rule since 2021 knows no capitals
    question(14, 6, ["red"] * 10),
]
CHOICES = ("yes", "the dog", "blue", "red")


def scored(answers, tmp_path, questions=QUESTIONS, rule="soft", splits=(), **row):
    return evaluate("vqa", Task(rule, CHOICES), {"val": questions, **dict(splits)}, chosen(answers), tmp_path, **row)


def test_both_rules_and_the_groups(tmp_path):
    values = scored([0, 1, 0, 3], tmp_path)
    shares = {name: value for name, value in values.items() if not name.endswith(("low", "high"))}
    assert shares == pytest.approx(
        {
            "accuracy": 100 * (1 + 0.6 + 0 + 1) / 4,
            "accuracy_since_2021": 100 * (1 + 0.6 + 1 + 1) / 4,
            "answer_type/yes/no": 50.0,
            "answer_type/other": 80.0,
        }
    )
    rows = [json.loads(line) for line in (tmp_path / "predictions/val_7.jsonl").read_text().splitlines()]
    assert [row["accuracy"] for row in rows] == pytest.approx([1, 0.6, 0, 1])
    assert rows[1] == {
        **{"id": 12, "image_id": 5, "question": "what is it?", "answer": "the dog", "probability": 0.5},
        **{"answer_type": "other", "annotators": ["dog"] * 2 + ["cat"] * 8, "accuracy": rows[1]["accuracy"]},
    }
    taken = json.loads((tmp_path / "predictions/val_7_evalai.json").read_text())
    assert taken == [{"answer": CHOICES[i], "question_id": 11 + n} for n, i in enumerate([0, 1, 0, 3])]


@pytest.mark.parametrize(("images", "count"), [((5, 5, 6, 6), 2), ((1, 2, 3, 4), 4), ((7, 7, 7, 7), 1)])
def test_intervals_count_images(tmp_path, images, count):
    """Of as many alike images with all of their answers right, Clopper and Pearson's lower end is 0.025^(1 / images)."""
    asked = [question(n, image, ["red"] * 10) for n, image in enumerate(images)]
    values = scored([3] * 4, tmp_path, asked)
    for name in ("accuracy", "accuracy_since_2021"):
        assert values[name] == 100
        assert values[f"{name}/low"] == pytest.approx(100 * 0.025 ** (1 / count))
        assert values[f"{name}/high"] == 100


def test_without_an_answer_a_question_is_wrong(tmp_path, caplog):
    """Whichever answer the list begins or ends with: those would be right here."""
    values = scored([-1, 1, 0, -1], tmp_path)
    assert values["accuracy"] == pytest.approx(100 * (0 + 0.6 + 0 + 0) / 4)
    assert values["accuracy_since_2021"] == pytest.approx(100 * (0 + 0.6 + 1 + 0) / 4)
    assert values["unanswered"] == 50
    assert "2 of 4 questions have no answer: [11, 14]" in caplog.text
    row = json.loads((tmp_path / "predictions/val_7.jsonl").read_text().splitlines()[0])
    assert (row["answer"], row["probability"], row["unanswered"], row["accuracy"]) == ("", 0, True, 0)


def test_a_split_without_answers_is_only_written_down(tmp_path):
    assert scored([0], tmp_path, [question(1, 1, [])], train_split="train", splits={"train": QUESTIONS}) == {}
    assert "accuracy" not in (tmp_path / "predictions/val_7.jsonl").read_text()


def test_controls_are_fitted_on_the_train_split_alone(tmp_path):
    """The evaluated questions tell their own answers, and the train questions others."""
    colour, size = "what colour is it?", "is it large?"
    asked = [question(n, n, ["red"], text=colour) for n in (1, 2)]
    asked += [question(n, n, ["yes"], text=size) for n in (3, 4)]
    train = [question(n, n, ["red"], text=colour) for n in (5, 6, 7)]
    train += [question(n, n, ["no"], text=size) for n in (8, 9, 10, 11)]
    values = scored([0] * 4, tmp_path, asked, "exact", {"train": train}, train_split="train")
    controls = {name: value for name, value in values.items() if name.startswith("controls/")}
    assert controls == {"controls/majority": 0.0, "controls/question_only": 50.0, "controls/ceiling": 100.0}
    assert not any(name.startswith("controls/") for name in scored([0] * 4, tmp_path, asked, "exact"))


def test_the_ceiling_is_that_of_the_answer_list(tmp_path):
    asked = [question(1, 1, ["The dog!"]), question(2, 2, ["cat"]), question(3, 3, ["blue", "blue", "grey", "grey"])]
    values = scored([0] * 3, tmp_path, asked, splits={"train": asked}, train_split="train")
    assert values["controls/ceiling"] == pytest.approx(100 * (1 + 0 + 0.5) / 3)
