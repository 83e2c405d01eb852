"""An ensemble beside its members, on given answers: votes for the answer, each one's own accuracy, and the gain's interval."""

import math

import pytest

from jaxvqa.ensembles.evaluation import beside_members
from jaxvqa.evaluators import evaluator
from jaxvqa.metrics.score import as_row
from jaxvqa.tasks.predictions import Prediction
from tests.evaluators.stubs import Task, context

QUESTIONS = [
    {
        **{"question_id": i, "image_id": image, "question": "?", "answers": ["yes"]},
        "multiple_choice_answer": "yes",
    }
    for i, image in enumerate((1, 1, 2, 2))
]


def predictions(answers):
    return [Prediction(((answer, 0.5),)) for answer in answers]


def test_the_gain_is_over_the_best_member_and_its_interval_over_images(tmp_path):
    made = evaluator("vqa")(context(Task(choices=("yes", "no")), {"val": QUESTIONS}, tmp_path))
    members = {"good": ["yes", "yes", "no", "no"], "bad": ["no", "no", "no", "yes"]}
    votes = zip(*members.values(), strict=True)
    together = [Prediction((("yes", 0.5),), vote) for vote in votes]
    found = as_row(beside_members(made, together, {name: predictions(own) for name, own in members.items()}))
    # Two images' worth of questions, of which one is gained and none lost; each bound holds at 97.5 %.
    assert found == pytest.approx(
        {
            "agreement": 100 * 3 / 8,
            "members/good/accuracy": 50.0,
            "members/bad/accuracy": 25.0,
            "over_best_member": 50.0,
            "over_best_member/low": 100 * ((1 - math.sqrt(1 - 0.0125)) - (1 - math.sqrt(0.0125))),
            "over_best_member/high": 100 * math.sqrt(1 - 0.0125),
        }
    )


def test_what_has_no_answer_has_no_votes_for_it(tmp_path):
    made = evaluator("vqa")(context(Task(choices=("yes", "no")), {"val": QUESTIONS}, tmp_path))
    together = [Prediction((), ("", "yes")), *(Prediction((("no", 0.5),), ("no", "yes")) for _ in range(3))]
    alone = {name: predictions(own) for name, own in (("a", ["no"] * 4), ("b", ["yes"] * 4))}
    found = as_row(beside_members(made, together, alone))
    assert found["agreement"] == 50
    assert found["over_best_member"] == -100
