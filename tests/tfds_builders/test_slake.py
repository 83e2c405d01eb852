"""SLAKE on made files: languages, splits, counts, and what is refused."""

import functools
import os

import pytest

from jaxvqa import configs
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import DataError
from jaxvqa.tasks import make_task
from tests.data_set_files import SLAKE_ROW, built, jpeg, put
from tfds_builders.build import builder_class, config_names

LARGER = {
    "question": "Which is larger?",
    "answer": "Left lung ",
    "answer_type": "CLOSED",
    "img_name": "xmlab2/source.jpg",
}
KIDNEYS = {"question": "How many kidneys?", "answer": 2, "content_type": "Quantity", "img_name": "xmlab3/source.jpg"}
ROWS = {
    "train": [
        SLAKE_ROW,
        SLAKE_ROW | {"question": "肝脏正常吗？", "answer": "是", "q_lang": "zh", "answer_type": "CLOSED"},
        SLAKE_ROW | LARGER,
    ],
    "validation": [SLAKE_ROW | KIDNEYS],
    "test": [SLAKE_ROW | {"question": "这是什么？", "q_lang": "zh", "img_name": "xmlab4/source.jpg"}],
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """The folder of the release, below the one that is given."""
    folder = tmp_path / "manual/Slake1.0"
    for name, rows in ROWS.items():
        put(folder / f"{name}.json", rows)
    for number in range(1, 5):
        put(folder / f"imgs/xmlab{number}/source.jpg", jpeg(number))
    return folder


@pytest.fixture
def make(tmp_path):
    """Builds a config and returns its records by split."""
    return functools.partial(built, "slake", tmp_path)


def test_questions_are_of_a_language_in_the_released_splits(files, make):
    english, chinese, both, images = (
        make(config, partial=True) for config in ("questions", "questions_zh", "questions_all", "images")
    )
    assert {split: [q["question"] for q in of] for split, of in english.items()} == {
        "train": ["What modality is this?", "Which is larger?"],
        "val": ["How many kidneys?"],
    }
    assert {split: [q["answers"] for q in of] for split, of in chinese.items()} == {
        "train": [["是"]],
        "test": [["MRI"]],
    }
    assert {split: len(of) for split, of in both.items()} == {"train": 3, "val": 1, "test": 1}
    modality, larger = english["train"]
    assert (modality["question_type"], modality["open_closed"], modality["answer_type"]) == (
        "Modality",
        "open",
        "other",
    )
    assert (larger["open_closed"], larger["multiple_choice_answer"]) == ("closed", "Left lung")
    assert english["val"][0]["answer_type"] == "number"
    assert chinese["train"][0]["open_closed"] == "closed"
    ids = {shown["image_name"]: shown["image_id"] for of in images.values() for shown in of}
    assert len(ids) == 4
    for of in (english, chinese, both):
        for split, questions in of.items():
            assert {q["image_name"]: q["image_id"] for q in questions}.items() <= ids.items()
            assert {q["image_id"] for q in questions} <= {shown["image_id"] for shown in images[split]}
    assert images["train"][0]["image"] == jpeg(1)


def test_english_is_what_is_built_unless_asked():
    assert config_names("slake") == ["questions", "images"]


def test_other_counts_than_the_releases_are_refused(files, make, tmp_path):
    with pytest.raises(DataError, match="split train: 2 records, expected 4919 as in the official release"):
        make("questions")
    assert not list((tmp_path / "data").glob("slake/*/1*"))


def test_what_is_missing_is_named(files, make):
    (files / "imgs/xmlab2/source.jpg").unlink()
    with pytest.raises(DataError, match=r"xmlab2/source\.jpg"):
        make("questions")
    for name in ("validation", "test"):
        (files / f"{name}.json").unlink()
    with pytest.raises(DataError) as caught:
        make("questions")
    message = str(caught.value)
    assert "2 needed files are missing" in message
    assert all(name in message for name in ("validate.json", "Slake1.0/test.json", "med-vqa.com"))
    left = make("questions", partial=True)
    assert {split: [q["question"] for q in of] for split, of in left.items()} == {"train": ["What modality is this?"]}
    for number in range(1, 5):
        (files / f"imgs/xmlab{number}/source.jpg").unlink(missing_ok=True)
    with pytest.raises(DataError, match="imgs"):
        make("questions", partial=True)


def test_all_wrong_entries_are_one_message(files, make):
    put(files / "train.json", [SLAKE_ROW | {"question": " "}, {"img_name": 3}, SLAKE_ROW | {"q_lang": "fr"}])
    with pytest.raises(DataError) as caught:
        make("questions")
    message = str(caught.value)
    assert all(f"entry {i}" in message for i in range(3))
    assert "one of" in message


def test_a_config_of_tables_reads_it(files, make, tmp_path, monkeypatch):
    monkeypatch.setattr(builder_class("slake"), "EXPECTED_COUNTS", {})
    for part in ("questions", "images"):
        make(part)
    config = configs.load("configs/cmsa.py:table")
    parts = {"dir": os.fspath(tmp_path / "data"), "examples": "slake/questions", "images": "slake/images"}
    configs.override(config, [(f"data.{name}", value) for name, value in parts.items()])
    data = DataSet(config.data)
    task = make_task(config, data)
    assert sorted(task.assets["answers"]) == ["left lung", "mri"]
    (example,) = data.split("val").read([0])
    for transform in task.transforms(train=False):
        example = transform(example)
    assert example["image"].shape == task.init_batch(1)["image"].shape[1:]
