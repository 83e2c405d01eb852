"""VQA-RAD's protocols over one split, their parts' own intervals, and what counting reaches."""

import json

import numpy as np
import pytest

from tests.evaluators.stubs import Task, chosen, evaluate

CHOICES = ("yes", "no", "left lobe")


def question(number, image, text, truth, kind, phrase="freeform"):
    return {
        **{"question_id": number, "image_id": image, "question": text, "phrase_type": phrase},
        **{"answers": [truth], "multiple_choice_answer": truth, "answer_type": kind},
        **(
            {"question_type": "PRES", "organ": "HEAD"} if kind == "CLOSED" else {"question_type": "POS", "organ": "ABD"}
        ),
    }


QUESTIONS = [
    question(1, 1, "is it bright?", "Yes", "CLOSED"),
    question(2, 1, "is it black?", "no", "CLOSED", "para"),
    question(3, 2, "where is it?", "Left lobe", "OPEN"),
    question(4, 3, "where?", "in the hilum", "OPEN"),  # not in the answer list
]
TRAIN = [
    question(5, 1, "is it bright?", "yes", "CLOSED"),
    question(6, 9, "is it dark?", "no", "CLOSED"),
    question(7, 9, "is it small?", "no", "CLOSED"),
    question(8, 8, "where is it?", "left lobe", "OPEN"),
]


@pytest.fixture
def values(tmp_path):
    outputs = chosen([0, 1, 0, 0]) | {"organ_right": np.asarray([1, 1, 1, 0], np.float32)}
    task = Task("exact", CHOICES)
    return evaluate(
        "vqa_rad", task, {"val": QUESTIONS, "train": TRAIN}, outputs, tmp_path, train_split="train"
    ), tmp_path


def test_every_protocol_and_its_parts(values):
    values, folder = values
    shares = {name: v for name, v in values.items() if not name.endswith(("low", "high")) and "controls" not in name}
    expected = {"accuracy": 50.0, "organ_accuracy": 75.0}
    for protocol, whole, first_counts in (
        ("original_308", 200 / 3, True),
        ("strict_308", 100 / 3, False),
        ("original_451", 75.0, True),
        ("strict_451", 50.0, False),
    ):
        half = 50.0 * first_counts
        expected |= {protocol: whole, f"{protocol}/closed": 100.0, f"{protocol}/open": half}
        expected |= {f"{protocol}/question_type/PRES": 100.0, f"{protocol}/question_type/POS": half}
        expected |= {f"{protocol}/organ/HEAD": 100.0, f"{protocol}/organ/ABD": half}
    assert shares == pytest.approx(expected)
    rows = [json.loads(line) for line in (folder / "predictions/val_7.jsonl").read_text().splitlines()]
    assert [row["answerable"] for row in rows] == [True, True, True, False]
    assert [row["accuracy"] for row in rows] == [1, 1, 0, 0]


def test_intervals_are_of_their_own_questions_and_count_images(values):
    values, _ = values
    # Both closed questions are about one image, the open ones about one each.
    assert values["strict_451/closed/low"] == values["strict_308/closed/low"] == pytest.approx(2.5)
    assert values["strict_451/closed/high"] == 100
    assert values["strict_451/open/low"] == 0
    assert values["strict_451/open/high"] == pytest.approx(100 * (1 - 0.025 ** (1 / 2)))


def test_controls_by_counting_train_answers(values):
    values, _ = values
    controls = {name.removeprefix("controls/"): v for name, v in values.items() if name.startswith("controls/")}
    assert (
        controls
        == {
            "question_only": 50.0,  # no to what begins with "is it", else left lobe: other words occur once in the train split
            "majority": 25.0,  # no
            "majority_of_type": 50.0,  # no, no, left lobe, left lobe
            "same_question": 75.0,  # yes, no, left lobe, left lobe
            "same_image_and_type": 25.0,  # yes, yes, and twice the majority
            "ceiling": 75.0,
        }
    )
