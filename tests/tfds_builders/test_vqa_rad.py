"""The builder of VQA-RAD: the literature's splits, splits by image, images as they are, and what is odd in the release."""

import collections
import functools
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from jaxvqa.golden import runner
from tfds_builders.build import build
from tfds_builders.vqa_rad import release
from tfds_builders.vqa_rad.vqa_rad_dataset_builder import Builder

GOLDEN = Path(__file__).parents[1] / "golden/cmsa"
CONFIGS = ("questions", "image_disjoint", "images")

ROW = {
    "qid": 0,
    "phrase_type": "freeform",
    "qid_linked_id": "03f4",
    "image_case_url": "https://medpix.nlm.nih.gov/case?id=1",
    "image_name": "synpic7.jpg",
    "image_organ": "HEAD",
    "evaluation": "evaluated",
    "question": "Is the brain normal?",
    "question_rephrase": "NULL",
    "question_relation": "NULL",
    "question_frame": "NULL",
    "question_type": "PRES",
    "answer": "Yes",
    "answer_type": "CLOSED",
}


def made_rows():
    """Rows with the release's oddities, on three images; a fourth one is in no row."""
    frame = {"question_frame": "Is the brain in the image normal?", "question_relation": "strict agreement"}
    odd = {"image_name": "synpic30.jpg", "image_organ": "ABD", "image_case_url": "https://medpix.nlm.nih.gov/case?id=3"}
    chest = {
        "image_name": "synpic200.jpg",
        "image_organ": "CHEST",
        "image_case_url": "https://medpix.nlm.nih.gov/?id=2",
    }
    rows = [
        ROW | {"qid": "0"},
        ROW | {"qid": 1, "phrase_type": "test_freeform", "question": "Brain normal?"} | frame,
        ROW
        | odd
        | {"qid": 2, "question": "How many stones? ", "answer": 4, "answer_type": "OPEN", "question_type": "COUNT"},
        ROW | odd | {"qid": 3, "phrase_type": "para", "answer_type": "CLOSED ", "question_type": "ATRIB"} | frame,
        ROW | chest | {"qid": 4, "phrase_type": "test_para", "answer": " lungs \tboth ", "answer_type": "OPEN"},
    ]
    del rows[4]["question_rephrase"]
    return rows


def write_release(folder, rows):
    """Writes rows and an image for each name, and one that no row names."""
    images = folder / release.IMAGE_FOLDER
    images.mkdir(parents=True)
    (folder / release.ROWS_FILE).write_text(json.dumps(rows))
    names = sorted({row["image_name"] for row in rows} | {"synpic1.jpg"})
    for i, name in enumerate(names):
        Image.new("RGB", (5 + i, 4), (40 * i, 9, 9)).save(images / name)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    for name in ("ROWS_URL", "IMAGES_URL"):
        monkeypatch.setattr(release, name, (tmp_path / "no network").as_uri())


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {})
    return write_release(tmp_path / "manual", made_rows())


@functools.cache
def read(folder, config, split):
    records = Records(f"vqa_rad/{config}", split, folder=str(folder))
    return records.read(range(len(records)))


def test_questions(made, tmp_path):
    build("vqa_rad", "questions", manual_dir=made, data_dir=tmp_path)
    train, test = read(tmp_path, "questions", "train"), read(tmp_path, "questions", "test")
    assert [record["question_id"] for record in train] == [1, 3, 4, 5, 6]
    assert [record["question_id"] for record in test] == [2, 7]
    assert [record["phrase_type"] for record in train] == ["freeform", "frame", "freeform", "para", "frame"]
    assert [record["phrase_type"] for record in test] == ["freeform", "para"]
    assert train[1]["question"] == train[1]["question_frame"] == "Is the brain in the image normal?"
    assert [record["release_row"] for record in train] == [0, 1, 2, 3, 3]
    assert [record["release_split"] for record in train] == ["train", "test", "train", "train", "train"]
    assert train[2]["answers"] == [train[2]["multiple_choice_answer"]] == ["4"]
    assert train[2]["question"] == "How many stones? "
    assert (train[3]["answer_type"], train[3]["open_closed"], train[3]["question_type"]) == (
        "CLOSED",
        "closed",
        "ATRIB",
    )
    assert (train[2]["answer_type"], train[2]["open_closed"]) == ("OPEN", "open")
    assert test[1]["multiple_choice_answer"] == " lungs \tboth "
    assert test[1]["question_rephrase"] == test[1]["question_frame"] == ""
    assert test[1]["image_case_url"] == "https://medpix.nlm.nih.gov/?id=2"
    assert (train[0]["image_id"], train[0]["image_name"], train[0]["organ"]) == (7, "synpic7.jpg", "HEAD")
    clean = read(tmp_path, "questions", "train_without_test_frames")
    assert [record["question_id"] for record in clean] == [1, 4, 5, 6]


def test_images(made, tmp_path):
    build("vqa_rad", "images", manual_dir=made, data_dir=tmp_path)
    records = Records("vqa_rad/images", "full", folder=str(tmp_path))
    images = records.read(range(len(records)))
    assert [image["image_id"] for image in images] == records.metadata["image_ids"]["full"] == [1, 7, 30, 200]
    assert [image["organ"] for image in images] == [-1, 1, 0, 2]
    for image in images:
        content = (made / release.IMAGE_FOLDER / image["image_name"]).read_bytes()
        assert image["image"] == content
        assert Image.open(io.BytesIO(content)).size == (image["image_w"], image["image_h"])


def test_images_join_questions(made, tmp_path):
    for config in ("questions", "images"):
        build("vqa_rad", config, manual_dir=made, data_dir=tmp_path)
    images = Records("vqa_rad/images", "full", folder=str(tmp_path))
    source = Split(Records("vqa_rad/questions", "test", folder=str(tmp_path)), [images])
    assert source[1]["image_name"] == "synpic200.jpg"
    assert source[1]["organ"] == "CHEST"  # the question's


def test_a_zip_is_as_good_as_the_folder(made, tmp_path):
    with zipfile.ZipFile(made / f"{release.IMAGE_FOLDER}.zip", "w") as archive:
        for path in (made / release.IMAGE_FOLDER).iterdir():
            archive.write(path, f"{release.IMAGE_FOLDER}/{path.name}")
            archive.writestr(f"__MACOSX/{release.IMAGE_FOLDER}/._{path.name}", b"")
    build("vqa_rad", "images", manual_dir=made, data_dir=tmp_path / "folder")
    shutil.rmtree(made / release.IMAGE_FOLDER)
    build("vqa_rad", "images", manual_dir=made, data_dir=tmp_path / "zip")
    assert read(tmp_path / "zip", "images", "full") == read(tmp_path / "folder", "images", "full")


def test_download(made, tmp_path, monkeypatch):
    content = (made / release.ROWS_FILE).read_bytes()
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", made / release.IMAGE_FOLDER)
    monkeypatch.setattr(release, "ROWS_URL", (made / release.ROWS_FILE).as_uri())
    monkeypatch.setattr(release, "IMAGES_URL", Path(archive).as_uri())
    with pytest.raises(DataError, match="expected 948b7156059b"):
        build("vqa_rad", "images", data_dir=tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.partial"))
    monkeypatch.setattr(release, "ROWS_SHA256", hashlib.sha256(content).hexdigest())
    build("vqa_rad", "images", data_dir=tmp_path / "data")
    assert len(read(tmp_path / "data", "images", "full")) == 4
    # What was downloaded once is not downloaded again.
    monkeypatch.setattr(release, "ROWS_URL", "file:///nowhere")
    build("vqa_rad", "questions", data_dir=tmp_path / "data")


def test_without_files_and_network(tmp_path):
    with pytest.raises(DataError) as caught:
        build("vqa_rad", "questions", manual_dir=tmp_path, data_dir=tmp_path / "data")
    for part in (release.ROWS_FILE, str(tmp_path), release.HOME, "--manual_dir=DIR"):
        assert part in str(caught.value)
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_an_image_is_missing(made, tmp_path):
    (made / release.IMAGE_FOLDER / "synpic30.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images .* missing, such as synpic30\.jpg"):
        build("vqa_rad", "images", manual_dir=made, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is not JSON"),
        ("[]", "expected a list of rows"),
        ('[{"question": "?"}]', r"row 0: no answer; expected[\s\S]*row 0: no answer_type"),
        (json.dumps([ROW, ROW | {"image_organ": "LEG"}]), 'row 1: image_organ is "LEG"; expected one of "ABD"'),
        (json.dumps([ROW | {"image_name": "photo.jpg"}]), "synpicNUMBER"),
    ],
)
def test_damaged_rows(tmp_path, content, message):
    (tmp_path / release.ROWS_FILE).write_text(content)
    with pytest.raises(DataError, match=message):
        build("vqa_rad", "questions", manual_dir=tmp_path, data_dir=tmp_path / "data")


def many_rows():
    """Rows of 120 images, two of which show one case."""
    rows = []
    for i in range(120):
        case = 5 if i == 6 else i
        place = {
            "image_name": f"synpic{i}.jpg",
            "image_organ": release.ORGANS[i // 3 % 3],
            "image_case_url": f"case{case}",
        }
        rows += [ROW | place | {"question_frame": "Reworded?"}, ROW | place | {"phrase_type": "test_para"}]
    rows[12]["image_organ"] = rows[13]["image_organ"] = rows[10]["image_organ"]
    return rows


def test_no_image_is_in_two_splits():
    rows = many_rows()
    splits = release.split_images(rows)
    assert splits == release.split_images(rows[::-1])
    assert set(splits) == {row["image_name"] for row in rows}
    assert splits["synpic5.jpg"] == splits["synpic6.jpg"]
    organs = {row["image_name"]: row["image_organ"] for row in rows}
    counts = collections.Counter((organs[name], split) for name, split in splits.items())
    for organ in release.ORGANS:
        images = sum(counts[organ, split] for split in ("train", "val", "test"))
        assert abs(counts[organ, "test"] - 0.2 * images) <= 1
        assert abs(counts[organ, "val"] - 0.1 * images) <= 1


def test_image_disjoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {})
    rows = many_rows()
    (tmp_path / release.ROWS_FILE).write_text(json.dumps(rows))
    build("vqa_rad", "image_disjoint", manual_dir=tmp_path, data_dir=tmp_path)
    seen = {}
    for split in ("train", "val", "test"):
        records = read(tmp_path, "image_disjoint", split)
        ids = [record["question_id"] for record in records]
        assert ids == sorted(ids)
        images = {record["image_id"] for record in records}
        metadata = Records("vqa_rad/image_disjoint", split, folder=str(tmp_path)).metadata
        assert sorted(images) == metadata["image_ids"][split]
        assert collections.Counter(r["image_id"] for r in records) == dict.fromkeys(images, 3)
        seen[split] = images
    assert sum(map(len, seen.values())) == len(set.union(*seen.values())) == 120


# The real release.


@pytest.fixture(scope="module")
def real(jaxvqa_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa_rad")
    for config in CONFIGS:
        build("vqa_rad", config, manual_dir=jaxvqa_data / "data/vqa_rad", data_dir=folder)  # checks the counts
    return folder


def test_every_entry_is_that_of_the_published_files(real, jaxvqa_data):
    published = json.loads((jaxvqa_data / "data/vqa_rad/splits.json").read_text(encoding="utf-8"))
    names = {"qid": "question_id", "answer": "multiple_choice_answer", "image_organ": "organ"}
    for split, entries in published.items():
        records = read(real, "questions", split)
        ours = [{name: record[names.get(name, name)] for name in entries[0]} for record in records]
        assert ours == [entry | {"answer": str(entry["answer"])} for entry in entries]


def test_images_are_the_published_files(real, jaxvqa_data):
    images = read(real, "images", "full")
    for image in images:
        path = jaxvqa_data / "data/vqa_rad" / release.IMAGE_FOLDER / image["image_name"]
        assert image["image"] == path.read_bytes()
    assert [image["image_name"] for image in images if image["organ"] < 0] == ["synpic35356.jpg"]
    organs = {image["image_id"]: release.ORGANS[image["organ"]] for image in images if image["organ"] >= 0}
    train = read(real, "questions", "train")
    assert all(organs[record["image_id"]] == record["organ"] for record in train)
    assert collections.Counter(record["organ"] for record in train) == {"ABD": 999, "HEAD": 977, "CHEST": 1088}


def test_real_images_are_in_one_split(real):
    splits = {split: read(real, "image_disjoint", split) for split in ("train", "val", "test")}
    images = {split: {record["image_id"] for record in records} for split, records in splits.items()}
    assert {split: len(ids) for split, ids in images.items()} == {"train": 218, "val": 32, "test": 64}
    assert len(set.union(*images.values())) == 314
    cases = [{record["image_case_url"] for record in records} for records in splits.values()]
    assert sum(map(len, cases)) == len(set.union(*cases))
    organs = np.array([[sum(r["organ"] == o for r in rows) for o in release.ORGANS] for rows in splits.values()])
    shares = organs / organs.sum(1, keepdims=True)
    assert np.abs(shares - shares.mean(0)).max() < 0.06


# The golden case of images, whose two files are in the repository.


def test_preprocessing_case(tmp_path, monkeypatch):
    outputs = [("slice", True), ("moments", True)]
    monkeypatch.delenv("JAXVQA_DATA", raising=False)
    assert [(row.output, row.passed) for row in runner.run(GOLDEN / "preprocess224.manifest.json")] == outputs
    # The images lie beside the case there; elsewhere they are the data's.
    for path in GOLDEN.glob("preprocess224.*"):
        shutil.copy(path, tmp_path)
    case = tmp_path / "preprocess224.manifest.json"
    rows = runner.run(case)
    assert [row.passed for row in rows] == [None, None]
    assert "JAXVQA_DATA" in rows[0].note
    folder = tmp_path / "data/vqa_rad" / release.IMAGE_FOLDER
    folder.mkdir(parents=True)
    for path in GOLDEN.glob("*.jpg"):
        shutil.copy(path, folder)
    monkeypatch.setitem(os.environ, "JAXVQA_DATA", str(tmp_path))
    assert [(row.output, row.passed) for row in runner.run(case)] == outputs
