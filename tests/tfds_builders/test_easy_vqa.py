"""The builder of easy-VQA, on a few of the package's own files; the whole of it in the slow tests."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxvqa.data.region_features import region_features
from jaxvqa.errors import DataError
from tfds_builders.build import build
from tfds_builders.easy_vqa import easy_vqa_dataset_builder as module

pytestmark = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="easy-vqa is not installed")
COUNTS = {"train": 5, "test": 3}
ORIGINAL_PACKAGE_DATA = module.package_data


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Replaces the package's data by its first pictures and their questions; returns the rows of each split."""
    rows = {}
    for split, count in COUNTS.items():
        source, target = module.package_data() / split, tmp_path / "package" / split
        (target / "images").mkdir(parents=True)
        for number in range(count):
            shutil.copy(source / f"images/{number}.png", target / "images")
        rows[split] = [row for row in json.loads((source / "questions.json").read_text()) if row[2] < count]
        (target / "questions.json").write_text(json.dumps(rows[split]))
    questions = {split: len(kept) for split, kept in rows.items()}
    monkeypatch.setattr(module, "package_data", lambda: tmp_path / "package")
    monkeypatch.setattr(module, "_IMAGES", COUNTS)
    monkeypatch.setattr(module.Builder, "EXPECTED_COUNTS", {"images": COUNTS, "questions": questions})
    return rows


def read(tmp_path, config, split, **decoders):
    builder = tfds.builder_from_directory(tmp_path / "data/easy_vqa" / config / "1.0.0")
    return list(builder.as_data_source(split, decoders=decoders or None))


def test_questions(few, tmp_path):
    build("easy_vqa", "questions", data_dir=tmp_path / "data")
    for split, first_question, first_image in (("train", 0, 0), ("test", 1_000_000, 100_000)):
        records = read(tmp_path, "questions", split)
        assert len(records) == len(few[split]) > 10
        for i, (record, (question, answer, image)) in enumerate(zip(records, few[split], strict=True)):
            assert record["question_id"] == first_question + i
            assert record["image_id"] == first_image + image
            assert record["question"].decode() == question
            assert record["answers"] == [answer.encode()]
            assert record["multiple_choice_answer"] == answer.encode()
            if answer in ("yes", "no"):
                assert (record["question_type"], record["answer_type"]) == (b"yes/no", b"yes/no")
            else:
                kind = b"shape" if answer in ("circle", "rectangle", "triangle") else b"color"
                assert (record["question_type"], record["answer_type"]) == (kind, b"other")
    assert {record["question_type"] for record in read(tmp_path, "questions", "train")} == {
        b"yes/no",
        b"shape",
        b"color",
    }


def test_images(few, tmp_path):
    build("easy_vqa", "images", data_dir=tmp_path / "data")
    builder = tfds.builder_from_directory(tmp_path / "data/easy_vqa/images/1.0.0")
    for split, first in (("train", 0), ("test", 100_000)):
        records = read(tmp_path, "images", split, image=tfds.decode.SkipDecoding())
        ids = [record["image_id"] for record in records]
        assert ids == list(range(first, first + COUNTS[split])) == builder.info.metadata["image_ids"][split]
        for record in records:
            path = tmp_path / f"package/{split}/images/{record['image_id'] - first}.png"
            assert record["image"] == path.read_bytes()
            assert record["features"].dtype == np.float16
            assert len(record["features"]) == len(record["boxes"])
    decoded = read(tmp_path, "images", "test")[1]
    assert (decoded["image_h"], decoded["image_w"]) == decoded["image"].shape[:2] == (64, 64)
    np.testing.assert_array_equal(decoded["features"], region_features(decoded["image"], decoded["boxes"]))


def test_regions_overlap_and_cover_the_picture():
    boxes = module.grid_regions()
    assert boxes.dtype == np.float32
    assert boxes[0].tolist() == [0, 0, 64, 64]
    covered = np.zeros((64, 64), int)
    for x1, y1, x2, y2 in boxes[1:].astype(int):
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    assert covered[32, 32] >= 4


def test_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install -c constraints/py31\d.txt -e '.\[demo\]'"):
        build("easy_vqa", "questions", data_dir=tmp_path / "data")


def test_a_failed_rebuild_leaves_what_was_built(few, monkeypatch, tmp_path):
    build("easy_vqa", "questions", data_dir=tmp_path / "data")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "package_data", ORIGINAL_PACKAGE_DATA)
    with pytest.raises(DataError, match="not installed"):
        build("easy_vqa", "questions", data_dir=tmp_path / "data", overwrite=True)
    assert len(read(tmp_path, "questions", "train")) == len(few["train"])


def test_missing_picture(few, tmp_path):
    (tmp_path / "package/test/images/1.png").unlink()
    with pytest.raises(DataError, match=r"test/images/1\.png cannot be read"):
        build("easy_vqa", "images", data_dir=tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_counts_are_checked(few, tmp_path, monkeypatch):
    monkeypatch.setitem(module.Builder.EXPECTED_COUNTS, "images", {"train": 5, "test": 4})
    with pytest.raises(DataError, match="split test: 3 records, expected 4"):
        build("easy_vqa", "images", data_dir=tmp_path / "data")


@pytest.mark.slow
def test_whole(tmp_path):
    counts = {}
    for config in ("questions", "images"):
        result = build("easy_vqa", config, data_dir=tmp_path / "data")
        counts[config] = {split: numbers["records"] for split, numbers in result["splits"].items()}
    assert counts == {"questions": {"train": 38_575, "test": 9_673}, "images": {"train": 4_000, "test": 1_000}}
    images = {record["image_id"] for split in COUNTS for record in read(tmp_path, "images", split)}
    assert len(images) == 5_000
    assert images >= {record["image_id"] for split in COUNTS for record in read(tmp_path, "questions", split)}
