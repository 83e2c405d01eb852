"""What evaluations share: each example once, by evaluation's transforms; examples of another split before the prompts."""

import numpy as np
import pytest

from jaxvqa.data.few_shot import Shots
from jaxvqa.errors import ConfigError, DivergedError
from jaxvqa.evaluators import evaluator
from jaxvqa.evaluators.few_shot import with_examples
from jaxvqa.tasks.predictions import Predict
from tests.evaluators.stubs import Task, chosen, context, keep, state


def records(count, first=0, vectors=None):
    vectors = np.zeros((count, 2), np.float32) if vectors is None else vectors
    return [
        {"question_id": first + i, "image_id": first + i, "question": "?", "answers": ["a"], "vector": vectors[i]}
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_example_once_in_order_with_the_transforms_of_evaluation(tmp_path, count):
    made = context(Task(), {"val": records(count)}, tmp_path)
    found = made.outputs(state({"value": np.arange(count, dtype=np.float32) ** 2}))["value"]
    np.testing.assert_array_equal(found, np.arange(count) ** 2)


def test_only_what_is_read_goes_to_the_devices(tmp_path):
    task = Task()
    seen = []
    task.predictions["keys"] = Predict(lambda p, c, batch: seen.append(set(batch)) or {"x": batch["place"]}, ("place",))
    made = context(task, {"val": records(2)}, tmp_path, predict="keys")
    made.outputs(state({}), transforms=(lambda example: {"place": example["place"], "more": example["vector"]},))
    assert seen == [{"place"}]


def test_a_nan_is_an_error_that_says_where(tmp_path):
    made = context(Task(), {"val": records(5)}, tmp_path)
    with pytest.raises(DivergedError, match=r"'value' for 1 of 5 examples, the first at the places \[4\]"):
        made.outputs(state({"value": np.float32([0, 1, 2, 3, np.nan])}))


def test_mistakes_in_a_row_are_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"evals.val.predict is 'givn': choose given.*'given'"):
        context(Task(), {"val": records(1)}, tmp_path, predict="givn")
    with pytest.raises(ConfigError, match=r"type is 'vqa', which scores answers"):
        evaluator("vqa")(context(WithoutAnswers(), {"val": records(1)}, tmp_path, type="vqa"))
    with pytest.raises(ConfigError, match=r"'vqa_mad': choose .*vqa_med"):
        evaluator("vqa_mad")


class WithoutAnswers(Task):
    """A task that gives scores alone."""

    def __init__(self):
        super().__init__()
        del self.answer_rule


def with_shots(by, splits, tmp_path, vectors=None):
    """An evaluation whose prompts have two examples, and the support that its transforms were made with."""
    supports = []

    def transforms(support):
        supports.append(support)
        return (keep,)

    task = Task(choices=("a", "b"), shots=Shots(2, by, "train", 0, transforms))
    task.predictions["image_vectors"] = Predict(lambda p, c, batch: {"vector": batch["vector"]}, ("vector",))
    task.transforms = lambda *, train: (lambda example: {key: example[key] for key in ("place", "vector")},)
    made = context(task, splits, tmp_path)
    return made, with_examples(made, task.predictions["given"].shots), supports


@pytest.mark.parametrize("by", ["seed", "image"])
def test_examples_are_of_the_split_of_examples(tmp_path, by):
    val, train = records(4), records(6, first=100)
    made, transforms, supports = with_shots(by, {"val": val, "train": train}, tmp_path)
    transforms(state({}))
    shown = {shot["question_id"] for record in val for shot in supports[0](record)}
    assert shown <= {record["question_id"] for record in train}
    assert len(shown) >= 2
    values = dict(evaluator("vqa")(made).run(state(chosen([0, 0, 1, 1]))))
    assert values["val/accuracy"].value == 50


def test_the_most_similar_are_found_by_the_models_own_vectors(tmp_path):
    angles = np.radians([0, 10, 20, 90, 180])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    asked = np.float32([[1, 0.02], [-1, 0.01]])
    made, transforms, supports = with_shots(
        "image", {"val": records(2, vectors=asked), "train": records(5, 100, train)}, tmp_path
    )
    transforms(state({}))
    first, second = ([s["question_id"] for s in supports[0](record)] for record in made.source.records)
    assert first == [101, 100]  # the nearest stands next to the question
    assert second == [103, 104]


def test_no_examples_no_other_transforms(tmp_path):
    made = context(Task(), {"val": records(1)}, tmp_path)
    assert with_examples(made, None)(state({})) is None
