"""The rule of a data set's answers and the number of its annotators: what cannot work is told, what can is scored as stated."""

import json

import pytest

from jaxvqa import main
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.data_set import DataSet, Split, check_annotators
from jaxvqa.metrics.vqa import fair_to_few, question_accuracy
from tests import runs


def with_annotators(monkeypatch, counts):
    """Lets the phantoms have counts[i % len(counts)] annotators at question i."""
    read = Split.read_records

    def fewer(self, indices):
        found = read(self, indices)
        return [
            q | {"answers": q["answers"][: counts[int(i) % len(counts)]]} for i, q in zip(indices, found, strict=True)
        ]

    monkeypatch.setattr(Split, "read_records", fewer)


def command(phantoms, workdir, **changes):
    return runs.command(phantoms, workdir, **changes)[3:]


def test_one_annotator_under_soft_is_reported(phantoms, tmp_path, monkeypatch, capsys):
    with_annotators(monkeypatch, [1])
    assert main.main(command(phantoms, tmp_path)) == 2
    text = capsys.readouterr().err
    assert "config.data.answers.rule is 'soft'" in text
    assert "phantom_vqa/tiny_questions (train) have one each" in text
    assert "--config.data.answers.rule=exact" in text


def test_one_annotator_in_the_evaluated_split_is_reported(phantoms, tmp_path, monkeypatch, capsys):
    runs.write(runs.tiny_config(phantoms), tmp_path, step=2)
    with_annotators(monkeypatch, [1])
    assert main.main(["--mode=eval", f"--workdir={tmp_path}"]) == 2
    assert "phantom_vqa/tiny_questions (val) have one each" in capsys.readouterr().err
    assert main.main(["--mode=eval", f"--workdir={tmp_path}", "--config.data.answers.rule=exact"]) == 0


def test_other_numbers_of_annotators_are_scored(phantoms, tmp_path, monkeypatch, capsys):
    runs.write(runs.tiny_config(phantoms), tmp_path, step=2)
    with_annotators(monkeypatch, [3, 1, 7, 10])
    assert main.main(["--mode=eval", f"--workdir={tmp_path}"]) == 0
    assert "val/accuracy_since_2021 " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "predictions/val_2.jsonl").read_text().splitlines()]
    assert {len(row["annotators"]) for row in rows} == {3, 1, 7, 10}
    for row in rows:
        assert row["accuracy"] == pytest.approx(fair_to_few(question_accuracy)(row["answer"], row["annotators"]))


def test_the_rule_alone_decides_what_is_seldom_right(phantoms, monkeypatch):
    """One annotator among others': a right answer is right in full, in the target as in the score."""
    with_annotators(monkeypatch, [1, 10])
    config = runs.tiny_config(phantoms)
    source = DataSet(config.data).split("train")
    check_annotators(source, "soft")
    question = source.read_records([0])[0]
    assert AnswerList(("x", *question["answers"])).scores(question["answers"], "soft").tolist() == [0, 1]
    assert fair_to_few(question_accuracy)(question["answers"][0], question["answers"]) == 1
