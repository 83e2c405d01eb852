"""A data set that is opened once: splits share what they read, and images, texts and pairs are seen each once."""

import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.records import Records, data_dir
from jaxvqa.data.views import Texts
from jaxvqa.errors import ConfigError
from tfds_builders import build


@pytest.fixture
def data(phantoms):
    config = configs.load("configs/flamingo.py:small").data
    with config.unlocked():
        config.update({"dir": str(phantoms), "limit": 0})
        config.update({"examples": "phantom_vqa/tiny_questions", "images": "phantom_vqa/tiny_images"})
    return config


def test_what_one_part_has_read_is_read_once(data, monkeypatch):
    decoded = []
    decode = Records._decode
    monkeypatch.setattr(Records, "_decode", lambda self, at: decoded.append((self.part, *at)) or decode(self, at))
    opened = DataSet(data)
    first = opened.split("train")[0]
    assert opened.split("train") is opened.split("train")
    assert opened.split("train")[0].keys() == first.keys()
    alone = opened.changed(images="").split("train")[0]
    assert "image" in first
    assert "image" not in alone
    assert [part for part, *_ in decoded] == ["phantom_vqa/tiny_questions", "phantom_vqa/tiny_images"]
    data.limit = 3  # the opened one keeps the config that it was opened with
    assert len(opened.split("val")) > 3


def test_views_have_each_image_and_each_text_once(data):
    split = DataSet(data).split("train")
    records = list(split.all_records())
    assert split.images.ids.tolist() == sorted({int(r["image_id"]) for r in records})
    assert split.texts.texts == tuple(dict.fromkeys(r["question"] for r in records))
    assert [split.texts.texts[i] for i in split.texts.of_example] == [r["question"] for r in records]
    named = [(int(split.images.ids[i]), split.texts.texts[t]) for i, t in split.pairs]
    assert len(named) == len(set(named))
    assert set(named) == {(int(r["image_id"]), r["question"]) for r in records}
    shown = split.images.read(range(len(split.images)))
    assert [int(example["image_id"]) for example in shown] == split.images.ids.tolist()


def test_captions_are_texts_before_questions():
    found = Texts.of([{"question": "q", "caption": "a"}, {"question": "q"}, {"caption": "a"}, {"caption": "b"}])
    assert found.texts == ("a", "q", "b")
    np.testing.assert_array_equal(found.of_example, [0, 1, 0, 2])


def test_a_home_folder_that_nobody_has_is_named(monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", "~nobody_of_that_name/x")
    with pytest.raises(ConfigError, match="no home folder is known of ~nobody_of_that_name"):
        data_dir()


@pytest.mark.parametrize(
    ("variables", "there", "place"),
    [
        ({}, False, "home/tensorflow_datasets"),
        ({"XDG_DATA_HOME": "{tmp}/xdg"}, False, "xdg/tensorflow_datasets"),
        ({"XDG_DATA_HOME": "{tmp}/xdg"}, True, "home/tensorflow_datasets"),  # where data sets are built already
        ({"XDG_DATA_HOME": "relative"}, False, "home/tensorflow_datasets"),
        ({"XDG_DATA_HOME": "{tmp}/xdg", "TFDS_DATA_DIR": "~/own"}, False, "home/own"),
    ],
)
def test_where_data_sets_lie(tmp_path, monkeypatch, variables, there, place):
    for name in ("XDG_DATA_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (variables | {"HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    default = variables.get("TFDS_DATA_DIR", "~/tensorflow_datasets")  # TFDS reads it once, when it is imported
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", default)
    if there:
        (tmp_path / "home/tensorflow_datasets").mkdir(parents=True)
    assert data_dir() == tmp_path / place
    assert data_dir("~/given") == tmp_path / "home/given"
    assert build.main(["phantom_vqa", "--config=tiny_captions"]) == 0
    assert (tmp_path / place / "phantom_vqa/tiny_captions").is_dir()
