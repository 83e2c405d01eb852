"""The evaluation that a run is judged by is the one that its config names, whatever the order of the names."""

import json

import pytest

from jaxvqa import configs, evaluators, main, train
from jaxvqa.errors import ConfigError
from jaxvqa.evaluators.likelihood import LikelihoodEvaluator
from jaxvqa.explain.attention import default_split
from jaxvqa.metrics.score import Score
from jaxvqa.report.results import result
from jaxvqa.report.run import Record, notes
from tests import runs
from tests.test_configs import ALL

NAMES = [
    *ALL,
    *("configs/flamingo.py:vqa_rad", "configs/flamingo.py:roco", "configs/sysu_hcp.py:vqa_med_2019,plane"),
    *(
        "configs/flamingo.py:imageclef,classify",
        "configs/flamingo.py:vqa_rad,held_out",
        "configs/cmsa.py:vqa_rad,blind",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_names_one_that_writes_predictions(name):
    config = configs.load(name)
    if name == "configs/blip_pretrain.py:published":  # a list of captions alone, of which nothing is kept apart
        assert not config.evals
        return
    assert config.main_eval in config.evals
    row = config.evals[configs.main_evaluation(config)]
    assert row.type not in evaluators.WITHOUT_PREDICTIONS
    assert row.split != config.data.train_split
    assert "train" not in config.evals  # whose metrics would be those of the training steps
    assert default_split(config) == row.split


class Likely(LikelihoodEvaluator):
    """Comes first by its name, and writes nothing."""

    def run(self, state):
        yield f"{self.context.name}/loss", Score(1.0)


@pytest.fixture
def folder(phantoms, tmp_path, monkeypatch):
    """A run with an evaluation whose name comes before that of the main one; its classifier began random, and is frozen."""
    monkeypatch.setitem(evaluators.EVALUATORS, "likelihood", f"{__name__}:Likely")
    config = runs.tiny_config(phantoms)
    with config.unlocked():
        config.evals.a_loss = config.evals.val.to_dict() | {"type": "likelihood"}
    config.optim.freeze = ((r"classifier/.*", True), (r".*", False))
    runs.write(config, tmp_path, step=2, fresh=["classifier", "embed"])
    return tmp_path


def test_predicting_a_split_is_as_the_main_evaluation_does(folder, capsys):
    assert main.main(["--mode=predict", "--split=test", f"--workdir={folder}"]) == 0
    said = capsys.readouterr()
    assert "test/accuracy" in said.out
    for words in said:  # a head that was never learned gives no score without a loud word
        assert "RANDOM NUMBERS: classifier. Neither read from a checkpoint nor trained" in words
    assert "RANDOM NUMBERS: classifier" in " ".join(notes(Record.read(folder)))
    assert (folder / "predictions" / "test_2.jsonl").is_file()


def test_predicting_without_predictions_says_why_not(folder, capsys):
    words = ["--mode=predict", "--split=test", f"--workdir={folder}"]
    assert main.main([*words, "--config.main_eval=a_loss"]) == 2
    assert (
        "writes no predictions. Name one that does with --config.main_eval=NAME; there is val."
        in capsys.readouterr().err
    )
    for wrong in ("", "vall"):
        assert main.main([*words, f"--config.main_eval={wrong}"]) == 2
        assert "choose a_loss or val." in capsys.readouterr().err
    assert not (folder / "predictions").exists()


def test_training_wants_a_main_evaluation(phantoms, tmp_path):
    config = runs.tiny_config(phantoms, main_eval="vall")
    with pytest.raises(ConfigError, match="Did you mean 'val'"):
        train.train(config, tmp_path)


def test_the_reports_headline_is_that_of_the_main_evaluation(tmp_path):
    evals = {"on_train": {"split": "train"}, "val": {"split": "val"}}
    (tmp_path / "config.json").write_text(json.dumps({"main_eval": "val", "evals": evals, "data": {}}))
    row = {"step": 1, "on_train/accuracy": 99.0, "val/accuracy": 60.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    record = Record.read(tmp_path)
    assert record.main == "val"
    assert result(record, "val", [])["value"] == 60.0
