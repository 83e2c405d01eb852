"""The rule of a data set's answers and the number of its annotators: what cannot work is told, what can is scored as stated."""

import pytest

from jaxvqa import logs, main, train
from jaxvqa.data import sources
from tests import runs


def with_annotators(monkeypatch, counts):
    """Lets the phantoms have counts[i % len(counts)] annotators at question i."""
    read = sources.VqaSource.read_questions

    def fewer(self, indices):
        found = read(self, indices)
        return [
            q | {"answers": q["answers"][: counts[int(i) % len(counts)]]} for i, q in zip(indices, found, strict=True)
        ]

    monkeypatch.setattr(sources.VqaSource, "read_questions", fewer)


def command(phantoms, workdir, **changes):
    return runs.command(phantoms, workdir, **changes)[3:]


def test_one_annotator_under_soft_is_told(phantoms, tmp_path, monkeypatch, capsys):
    with_annotators(monkeypatch, [1])
    assert main.main(command(phantoms, tmp_path)) == 2
    text = capsys.readouterr().err
    assert "config.data.answers.rule is 'soft'" in text
    assert "phantom_vqa/tiny_questions (train) have one each" in text
    assert "--config.data.answers.rule=exact" in text


def test_one_annotator_in_the_evaluated_split_is_told(phantoms, tmp_path, monkeypatch, capsys):
    runs.write(runs.tiny_config(phantoms), tmp_path, step=2)
    with_annotators(monkeypatch, [1])
    assert main.main(["--mode=eval", f"--workdir={tmp_path}"]) == 2
    assert "phantom_vqa/tiny_questions (val) have one each" in capsys.readouterr().err
    assert main.main(["--mode=eval", f"--workdir={tmp_path}", "--config.data.answers.rule=exact"]) == 0


@pytest.mark.parametrize("counts", [[2], [1, 10], [3, 1, 7, 10]])
def test_other_numbers_of_annotators_are_scored(phantoms, tmp_path, monkeypatch, counts):
    with_annotators(monkeypatch, counts)
    workdir = tmp_path
    train.train(runs.tiny_config(phantoms, total="2 steps"), workdir)
    row = next(row for row in logs.read_metrics(workdir) if "val/accuracy" in row)
    assert row["val/controls/ceiling"] > 90
    assert 0 <= row["val/accuracy"] <= 100
    assert {"val/accuracy_since_2021", "val/accuracy_since_2021/low"} <= row.keys()
