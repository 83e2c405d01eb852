"""Held-out images: chosen by image and never by question, with nothing of them in training."""

import pytest

from jaxvqa import configs, main
from jaxvqa.data.data_set import HELD_OUT, DataSet
from jaxvqa.errors import DataError
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


def test_the_program_runs_with_it(phantoms, tmp_path):
    changes = {"data.max_tokens": 24, "data.max_prompt": 22, "data.held_out": 0.3, "evals.val.batch_size": 24}
    changes |= {f"evals.{name}.every": "2 steps" for name in ("val", "val_blank", "likelihood", "nearest")}
    changes |= {"evals.likelihood.split": "held_out", "total": "2 steps", "model.language_sizes.positions": 96}
    words = runs.command(
        phantoms, tmp_path, "configs/flamingo.py:small", **{k.replace(".", "__"): v for k, v in changes.items()}
    )
    assert main.main([word for word in words[3:] if "min_count" not in word]) == 0
    assert (tmp_path / "best").is_dir()
