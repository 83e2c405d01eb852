"""Scores of written texts, worked out by hand: answers by group, captions, and the nearest answer."""

import json
import math

import numpy as np
import pytest

from jaxvqa.metrics import text
from tests.evaluators.stubs import Task, evaluate

WRITTEN = ("yes", "small mass", "No", "left lung")


def question(number, answer, kind, closed, image=1):
    return {
        **{"question_id": number, "image_id": image, "question": "what?", "answers": [answer]},
        **{"multiple_choice_answer": answer, "question_type": kind, "open_closed": closed},
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


@pytest.fixture
def scored(tmp_path):
    """Scores what was written to the records of a split: the values, and the predictions."""

    def run(records, answers, rule="exact", row=(), **outputs):
        count = len(records)
        outputs = {"words": np.arange(count), "score": np.full(count, math.log(0.25), np.float32)} | outputs
        task = Task(rule, text=lambda output: answers[int(output["words"])])
        values = evaluate("generation", task, {"val": records}, outputs, tmp_path, **dict(row))
        lines = (tmp_path / "predictions/val_7.jsonl").read_text().splitlines()
        return values, [json.loads(line) for line in lines]

    return run


def test_answers_are_scored_to_the_letter_by_rule_and_by_their_words(scored):
    values, rows = scored(QUESTIONS, WRITTEN)
    bleu = [1.0, math.exp(1 - 3 / 2), 0.0, 0.5]
    assert {name: v for name, v in values.items() if not name.endswith(("low", "high"))} == {
        "accuracy": 75.0,  # the rule knows no capitals and no articles
        "question_type/abnormality": 100.0,
        "question_type/position": 0.0,
        "question_type/presence": 100.0,
        "open_closed/closed": 100.0,
        "open_closed/open": 50.0,
        "exact": 25.0,
        "bleu": pytest.approx(100 * np.mean(bleu), abs=1e-3),
        "exact/question_type/abnormality": 0.0,
        "exact/question_type/position": 0.0,
        "exact/question_type/presence": 50.0,
        "exact/open_closed/closed": 50.0,
        "exact/open_closed/open": 0.0,
    }
    assert [row["answer"] for row in rows] == list(WRITTEN)
    assert [row["exact"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert rows[1]["truth"] == "a small mass"
    assert rows[0]["probability"] == 0.25


def test_intervals_count_images(scored):
    """All four questions are about one image; of a single one nothing is known but that it may be right."""
    vectors = np.eye(4, dtype=np.float32)
    values, _ = scored(QUESTIONS, [row["answers"][0] for row in QUESTIONS], true=vectors, written=vectors)
    for name in ("accuracy", "exact", "bleu", "nearest"):
        assert (values[name], values[f"{name}/low"], values[f"{name}/high"]) == (100, pytest.approx(2.5), 100), name


def test_a_split_without_answers_is_only_written_down(scored):
    asked = [row | {"answers": [], "multiple_choice_answer": ""} for row in QUESTIONS]
    values, rows = scored(asked, WRITTEN)
    assert values == {}
    assert [row["answer"] for row in rows] == list(WRITTEN)
    assert "exact" not in rows[0]


def test_captions_are_compared_in_plain_words_where_the_row_says_so(scored):
    records = [{**CAPTIONS[0], "caption": "T1-weighted MR image. All masses are small!"}]
    written = ["t1 - weighted mr image all masses are small"]
    assert scored(records, written)[0]["bleu"] < 60
    values, rows = scored(records, written, row={"plain_words": True})
    assert [values[name] for name in ("bleu", "bleu_4", "rouge_l")] == pytest.approx([100] * 3)
    assert rows[0]["answer"] == written[0]
    assert rows[0]["annotators"] == [records[0]["caption"]]


@pytest.mark.parametrize("rule", ["exact", "soft"])
def test_captions_are_scored_as_texts(scored, rule):
    written = ["a small mass in the right lung", "a square"]
    values, rows = scored(CAPTIONS, written, rule)
    truth = [[row["caption"]] for row in CAPTIONS]
    assert values["bleu"] == pytest.approx(100 * (6 / 7 + 1 / 2) / 2, abs=1e-3)
    for order, value in enumerate(text.corpus_bleu(written, truth), start=1):
        assert values[f"bleu_{order}"] == pytest.approx(100 * value)
    assert values["rouge_l"] == pytest.approx(
        100 * np.mean([text.rouge_l(*p) for p in zip(written, truth, strict=True)])
    )
    assert values["cider"] == pytest.approx(np.mean(text.cider(written, truth)))
    assert "accuracy" not in values
    assert "exact" not in values
    assert "accuracy" not in rows[0]
    assert rows[0]["annotators"] == truth[0]


def test_the_nearest_answer_by_its_states(scored):
    true = np.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1], [0.0, -1.0]], np.float32)
    written = np.asarray([[0.9, 0.2], [0.1, 3.0], [0.0, 1.0], [0.2, -2.0]], np.float32)
    values, _ = scored(QUESTIONS, WRITTEN, true=true, written=written)
    assert values["nearest"] == 75.0
