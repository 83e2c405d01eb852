"""Held-out images: chosen by image and never by question, with nothing of them in training."""

import json

import pytest

from jaxvqa import configs, main
from jaxvqa.data.data_set import HELD_OUT, DataSet
from jaxvqa.errors import DataError
from jaxvqa.runs import Run
from tests import runs


def images(data, split):
    return {int(q["image_id"]) for q in DataSet(data).split(split).all_records()}


def questions(data, split):
    return {int(q["question_id"]) for q in DataSet(data).split(split).all_records()}


@pytest.fixture
def data(phantoms):
    config = configs.load("configs/flamingo.py:small")
    changes = {
        "dir": phantoms,
        "examples": "phantom_vqa/tiny_questions",
        "images": "phantom_vqa/tiny_images",
        "limit": 0,
    }
    configs.override(config, [(f"data.{name}", str(value)) for name, value in changes.items()])
    return config.data


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_images_are_held_out_with_all_of_their_questions(data, share):
    whole, every, other = images(data, "train"), questions(data, "train"), questions(data, "val")
    data.held_out = share
    train, held = images(data, "train"), images(data, HELD_OUT)
    assert train | held == whole
    assert not train & held
    assert 0 < len(held) < len(whole)
    assert abs(len(held) / len(whole) - share) < 0.25
    assert questions(data, "train") | questions(data, HELD_OUT) == every
    assert questions(data, "val") == other


def test_too_small_a_share_is_reported(data):
    data.held_out = 1e-9
    with pytest.raises(
        DataError, match=r"config.data.held_out leaves no example of phantom_vqa/tiny_questions \(train\)"
    ):
        DataSet(data).split(HELD_OUT)


def test_the_variant_chooses_by_held_out_images_and_tests_at_the_end():
    config = configs.load("configs/flamingo.py:vqa_rad,held_out")
    assert config.best.metric == "likelihood/loss"
    assert config.evals.likelihood.split == HELD_OUT
    tests = {row.every for row in config.evals.values() if row.split == "test"}
    assert tests == {config.total}
    assert config.evals[config.main_eval].split == "test"


def test_the_variant_is_for_what_has_no_validation_split(capsys):
    assert main.main(["--config=configs/flamingo.py:roco,held_out"]) == 2
    assert "held_out is for vqa_rad" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_chooses_its_best_state_by_it(phantoms, tmp_path):
    changes = {"data__held_out": 0.3, "evals__val__split": HELD_OUT}
    changes |= {"best__metric": "val/accuracy", "best__mode": "max"}
    assert main.main(runs.command(phantoms, tmp_path, **changes)[3:]) == 0
    held = {int(row["id"]) for row in map(json.loads, (tmp_path / "predictions/val_6.jsonl").read_text().splitlines())}
    assert held == questions(Run.open(tmp_path).config.data, HELD_OUT)
    assert (tmp_path / "best").is_dir()
