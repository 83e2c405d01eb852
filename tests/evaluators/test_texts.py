"""Scores of written texts: answers by group, captions, the nearest answer; and what the words of a split add up to."""

import json
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxvqa.data.sources import VqaSource
from jaxvqa.evaluators import evaluator
from jaxvqa.evaluators.context import Context
from jaxvqa.metrics import text
from jaxvqa.metrics.score import as_row
from jaxvqa.state import TrainState
from jaxvqa.tasks.predictions import Predict

WRITTEN = ("yes", "small mass", "No", "left lung")


def question(number, answer, kind, closed):
    return {
        "question_id": number,
        "image_id": 1,
        "question": "what?",
        "answers": [answer],
        "multiple_choice_answer": answer,
        "question_type": kind,
        "open_closed": closed,
    }


QUESTIONS = [
    question(11, "yes", "presence", "closed"),
    question(12, "a small mass", "abnormality", "open"),
    question(13, "no", "presence", "closed"),
    question(14, "right lung", "position", "open"),
]
CAPTIONS = [
    {"question_id": 21, "image_id": 2, "caption": "a small mass in the left lung"},
    {"question_id": 22, "image_id": 3, "caption": "a circle"},
]


class Source(VqaSource):
    """A split's records."""

    def __init__(self, records=()):
        self.records = list(records)

    def __len__(self):
        return len(self.records)

    def read_questions(self, indices):
        return [self.records[i] for i in indices]


class Task:
    """A task that reads nothing, and writes the texts of a list."""

    assets, batch_keys = {"answers": []}, ()
    transforms = init_batch = init = loss = lambda *_, **__: None

    def __init__(self, written=(), rule="exact"):
        self.answer_rule = rule
        write = Predict(lambda *_: {}, (), text=lambda output: written[int(output["words"][0])])
        self.predictions = {"answers": write, "likelihood": Predict(lambda *_: {}, ())}


def context(predict, task, records, workdir, name="val"):
    """What an evaluator is made with."""
    config = ml_collections.ConfigDict({"split": "val", "batch_size": 2, "predict": predict})
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    return Context(name, config, task, lambda _: Source(records), mesh, workdir)


@pytest.fixture
def evaluate(tmp_path):
    """Scores what was written to the records of a split: the values, and the predictions."""

    def run(records, answers, rule="exact", **outputs):
        made = evaluator("generation")(context("answers", Task(answers, rule), records, tmp_path))
        count = len(records)
        outputs = {"words": np.arange(count)[:, None], "score": np.full(count, math.log(0.25))} | outputs
        values = as_row(made.score(7, made.predictions(outputs)))
        lines = (tmp_path / "predictions/val_7.jsonl").read_text().splitlines()
        return values, [json.loads(line) for line in lines]

    return run


def test_answers_are_scored_to_the_letter_by_rule_and_by_their_words(evaluate):
    values, rows = evaluate(QUESTIONS, WRITTEN)
    assert values["val/accuracy"] == 75.0  # the rule knows no capitals and no articles
    assert values["val/exact"] == 25.0
    assert values["val/exact/low"] <= 25.0 <= values["val/exact/high"]
    bleu = [1.0, math.exp(1 - 3 / 2), 0.0, 0.5]
    assert values["val/bleu"] == pytest.approx(100 * np.mean(bleu), abs=1e-3)
    by_group = {name.removeprefix("val/exact/"): value for name, value in values.items() if name.count("/") == 3}
    by_group = {name: value for name, value in by_group.items() if not name.startswith("val/")}
    assert by_group == {
        "question_type/abnormality": 0.0,
        "question_type/position": 0.0,
        "question_type/presence": 50.0,
        "open_closed/closed": 50.0,
        "open_closed/open": 0.0,
    }
    assert values["val/open_closed/closed"] == 100.0
    assert [row["answer"] for row in rows] == list(WRITTEN)
    assert [row["exact"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert rows[1]["truth"] == "a small mass"
    assert rows[0]["probability"] == 0.25


def test_a_split_without_answers_is_only_written_down(evaluate):
    asked = [row | {"answers": [], "multiple_choice_answer": ""} for row in QUESTIONS]
    values, rows = evaluate(asked, WRITTEN)
    assert values == {}
    assert [row["answer"] for row in rows] == list(WRITTEN)
    assert "exact" not in rows[0]


@pytest.mark.parametrize("rule", ["exact", "soft"])
def test_captions_are_scored_as_texts(evaluate, rule):
    written = ["a small mass in the right lung", "a square"]
    values, rows = evaluate(CAPTIONS, written, rule)
    truth = [[row["caption"]] for row in CAPTIONS]
    assert values["val/bleu"] == pytest.approx(100 * (6 / 7 + 1 / 2) / 2, abs=1e-3)
    for order, value in enumerate(text.corpus_bleu(written, truth), start=1):
        assert values[f"val/bleu_{order}"] == pytest.approx(100 * value)
    assert values["val/rouge_l"] == pytest.approx(
        100 * np.mean([text.rouge_l(*p) for p in zip(written, truth, strict=True)])
    )
    assert values["val/cider"] == pytest.approx(np.mean(text.cider(written, truth)))
    assert "val/accuracy" not in values
    assert "val/exact" not in values
    assert "accuracy" not in rows[0]
    assert rows[0]["annotators"] == truth[0]


def test_the_nearest_answer_by_its_states(evaluate):
    true = np.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1], [0.0, -1.0]], np.float32)
    written = np.asarray([[0.9, 0.2], [0.1, 3.0], [0.0, 1.0], [0.2, -2.0]], np.float32)
    values, _ = evaluate(QUESTIONS, WRITTEN, true=true, written=written)
    assert values["val/nearest"] == 75.0
    assert values["val/nearest/low"] <= 75.0 <= values["val/nearest/high"]


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        (
            {"loss": [3.0, 5.0], "loss_words": [3.0, 1.0], "nll": [1.0, 2.0], "words": [2.0, 1.0], "right": [1.0, 1.0]},
            {"loss": 2.0, "perplexity": math.e, "word_accuracy": 200 / 3},
        ),
        (
            {"class_loss": [2.0, 0.0, 4.0], "class_known": [1.0, 0.0, 1.0], "class_right": [1.0, 0.0, 0.0]},
            {"loss": 3.0, "class_accuracy": 50.0},
        ),
        (
            {"loss": [4.0], "loss_words": [2.0], "nll": [0.0], "words": [0.0], "right": [0.0]}
            | {"class_loss": [1.0], "class_known": [1.0], "class_right": [1.0]},
            {"loss": 3.0, "class_accuracy": 100.0},
        ),
    ],
)
def test_likelihoods_are_means_over_all_words_of_a_split(monkeypatch, tmp_path, sums, expected):
    """Not means of the examples' means: long texts weigh more."""
    arrays = {name: np.asarray(values, np.float32) for name, values in sums.items()}
    monkeypatch.setattr(Context, "outputs", lambda *_: arrays)
    made = evaluator("likelihood")(context("likelihood", Task(), (), tmp_path, "sure"))
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, (), None)
    assert as_row(made.run(state)) == pytest.approx({f"sure/{name}": value for name, value in expected.items()})
