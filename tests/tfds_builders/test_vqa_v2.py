"""The builder of VQA v2 on small files in the layouts that it has to read."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxvqa.errors import DataError
from tfds_builders.build import build
from tfds_builders.vqa_v2 import vqa_v2_dataset_builder as builder_module
from tfds_builders.vqa_v2.region_files import image_id_of, read_region_file

TEXT_CASES = json.loads((Path(__file__).parents[1] / "golden/rwsan/text_cases.json").read_text())
FOLDERS = {"train": "train2014", "val": "val2014", "test": "test2015"}
# (question id, image id) in the order of the question file.
QUESTIONS = {
    "train": [(9001, 9), (9000, 9), (300, 3)],
    "val": [(42001, 42), (42000, 42)],
    "test": [(77000, 77), (5000, 5), (77001, 77)],
    "test_dev": [(5000, 5)],
    "vg": [(10**9 + 1, 42), (10**9, 3)],
}
QUESTION_FILES = {
    "train": "v2_OpenEnded_mscoco_train2014_questions.json",
    "val": "v2_OpenEnded_mscoco_val2014_questions.json",
    "test": "v2_OpenEnded_mscoco_test2015_questions.json",
    "test_dev": "v2_OpenEnded_mscoco_test-dev2015_questions.json",
    "vg": "VG_questions.json",
}
ANNOTATION_FILES = {
    "train": "v2_mscoco_train2014_annotations.json",
    "val": "v2_mscoco_val2014_annotations.json",
    "vg": "VG_annotations.json",
}
REGIONS = {9: 3, 3: 101, 42: 1, 77: 2, 5: 4}
IMAGES = {"train": [9, 3], "val": [42], "test": [77, 5]}


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def annotation(question_id: int, image_id: int) -> dict:
    return {
        "question_id": question_id,
        "image_id": image_id,
        "answers": [{"answer": f"a{i % 3} {question_id}", "answer_id": i + 1} for i in range(10)],
        "multiple_choice_answer": f"a0 {question_id}",
        "question_type": "what is",
        "answer_type": "other",
    }


def write_questions(folder: Path, splits=QUESTIONS) -> None:
    for split in splits:
        pairs = QUESTIONS[split]
        entries = [{"question_id": q, "image_id": i, "question": f"What is {q}?"} for q, i in pairs]
        write_json(folder / QUESTION_FILES[split], {"questions": entries})
        if split in ANNOTATION_FILES:  # in another order than the questions
            write_json(folder / ANNOTATION_FILES[split], {"annotations": [annotation(q, i) for q, i in sorted(pairs)]})


def region_arrays(image_id: int) -> dict:
    rng = np.random.default_rng(image_id)
    count = REGIONS[image_id]
    return {
        "x": np.maximum(rng.normal(size=(2048, count)), 0).astype(np.float32),
        "bbox": rng.uniform(0, 400, size=(count, 4)).astype(np.float32),
        "num_bbox": np.int64(count),
        "image_w": np.int64(640),
        "image_h": np.int64(480),
    }


def region_name(split: str, image_id: int) -> str:
    return f"COCO_{FOLDERS[split]}_{image_id:012d}.jpg.npz"


def write_regions(folder: Path, splits=IMAGES) -> None:
    for split in splits:
        place = folder / "coco_extract" / FOLDERS[split]
        place.mkdir(parents=True)
        for image_id in IMAGES[split]:
            np.savez_compressed(place / region_name(split, image_id), **region_arrays(image_id))


def read(tmp_path: Path, config: str, split: str, **decoders) -> list[dict]:
    builder = tfds.builder_from_directory(tmp_path / "data/vqa_v2" / config / "1.0.0")
    return list(builder.as_data_source(split, decoders=decoders or None))


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


@pytest.fixture
def make(tmp_path, manual):
    """Builds a config from the folder `manual`, and tells the records of each split."""

    def run(config: str) -> dict[str, int]:
        result = build("vqa_v2", config, data_dir=tmp_path / "data", manual_dir=manual)
        return {split: numbers["records"] for split, numbers in result["splits"].items()}

    return run


def nothing_was_built(tmp_path: Path) -> bool:
    """Tells whether no config's folder is there, whole or in part; TFDS's list of configs in .config does not count."""
    folders = [path for path in (tmp_path / "data").glob("vqa_v2/*/*") if path.is_dir()]
    return not folders and not list((tmp_path / "data").rglob("*array_record*"))


@pytest.mark.parametrize("case", TEXT_CASES["image_files"], ids=lambda case: case["path"][-20:])
def test_image_id_of(case):
    assert str(image_id_of(case["path"])) == case["image_id"]


@pytest.mark.parametrize("case", TEXT_CASES["image_features"])
def test_golden_region_files(case):
    file = io.BytesIO()
    np.savez(file, x=np.array(case["x"], np.float32))
    file.seek(0)
    features, boxes, image_w, image_h = read_region_file(file, max_regions=case["pad_size"], width=None)
    result = np.zeros_like(case["result"])
    result[: len(features)] = features
    assert result.tolist() == case["result"]
    assert boxes.tolist() == [[0, 0, 0, 0]] * len(features)
    assert (image_w, image_h) == (0, 0)


def test_questions(manual, make, tmp_path):
    write_questions(manual / "vqa")
    assert make("questions") == {"train": 3, "val": 2, "test": 3, "test_dev": 1, "vg": 2}
    for split, pairs in QUESTIONS.items():
        records = read(tmp_path, "questions", split)
        expected = sorted(pairs) if split in ("train", "vg") else pairs
        assert [(record["question_id"], record["image_id"]) for record in records] == expected
        for record in records:
            question_id = record["question_id"]
            assert record["question"] == f"What is {question_id}?".encode()
            if split in ANNOTATION_FILES:
                assert record["answers"] == [f"a{i % 3} {question_id}".encode() for i in range(10)]
                assert record["multiple_choice_answer"] == f"a0 {question_id}".encode()
                assert (record["question_type"], record["answer_type"]) == (b"what is", b"other")
            else:
                assert list(record["answers"]) == []
                assert record["answer_type"] == b""


def test_image_id_comes_from_the_annotation(manual, make, tmp_path):
    write_questions(manual / "vqa", ["train"])
    path = manual / "vqa" / ANNOTATION_FILES["train"]
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 1234
    write_json(path, content)
    make("questions")
    assert read(tmp_path, "questions", "train")[0]["image_id"] == 1234


def test_questions_out_of_the_official_zips(manual, make, tmp_path, caplog):
    write_questions(tmp_path / "unpacked")
    archives = {
        "v2_Questions_Train_mscoco.zip": [QUESTION_FILES["train"]],
        "v2_Annotations_Train_mscoco.zip": [ANNOTATION_FILES["train"]],
        "v2_Questions_Test_mscoco.zip": [QUESTION_FILES["test"], QUESTION_FILES["test_dev"]],
    }
    for archive, names in archives.items():
        with zipfile.ZipFile(manual / archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name in names:
                opened.write(tmp_path / "unpacked" / name, name)
    assert make("questions") == {"train": 3, "test": 3, "test_dev": 1}
    assert "no files for val, vg" in caplog.text
    assert "train holds 3 of the official 443757 questions" in caplog.text
    assert [record["question_id"] for record in read(tmp_path, "questions", "test")] == [77000, 5000, 77001]


def test_missing_files_are_named_together(manual, make, tmp_path):
    with pytest.raises(DataError, match="files are missing") as error:
        make("questions")
    for name in [QUESTION_FILES["train"], ANNOTATION_FILES["val"], "v2_Questions_Train_mscoco.zip", "s3.amazonaws.com"]:
        assert name in str(error.value)
    write_questions(manual / "vqa", ["train", "val", "vg"])
    (manual / "vqa" / ANNOTATION_FILES["train"]).unlink()
    (manual / "vqa" / QUESTION_FILES["vg"]).unlink()
    with pytest.raises(DataError, match="files are missing") as error:
        make("questions")
    assert ANNOTATION_FILES["train"] in str(error.value)
    assert QUESTION_FILES["vg"] in str(error.value)
    assert ANNOTATION_FILES["val"] not in str(error.value)
    with pytest.raises(DataError, match=r"coco_extract/val2014.*\n.*mcan-vqa"):
        make("features")
    with pytest.raises(DataError, match=r"train2014\.zip"):
        make("images")
    assert nothing_was_built(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (QUESTION_FILES["train"], {"questions": []}, "list 'questions' that is not empty"),
        (
            ANNOTATION_FILES["train"],
            {"annotations": [{"question_id": 9000}]},
            "annotations, entry 0: no image_id; expected a whole number",
        ),
        (
            ANNOTATION_FILES["train"],
            {"annotations": [annotation(9000, 9)] * 2},
            "1 question ids occur more than once, such as 9000",
        ),
        (ANNOTATION_FILES["train"], {"annotations": [annotation(9000, 9)]}, r"2 questions without .* \[300, 9001\]"),
        (
            ANNOTATION_FILES["train"],
            {"annotations": [annotation(1, 9)]},
            r"1 annotations without .* \[1\]; 3 questions",
        ),
    ],
)
def test_questions_and_annotations_have_to_fit(manual, make, tmp_path, name, content, message):
    write_questions(manual / "vqa", ["train"])
    write_json(manual / "vqa" / name, content)
    with pytest.raises(DataError, match=message):
        make("questions")
    assert nothing_was_built(tmp_path)


def test_damaged_json_and_zip(manual, make):
    write_questions(manual, ["train"])
    whole = (manual / QUESTION_FILES["train"]).read_text()
    (manual / QUESTION_FILES["train"]).write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        make("questions")
    (manual / QUESTION_FILES["train"]).unlink()
    (manual / "v2_Questions_Train_mscoco.zip").write_bytes(b"half a zip")
    with pytest.raises(DataError, match="is cut off or damaged"):
        make("questions")


def test_subsets(manual, make, tmp_path):
    write_questions(manual, ["train"])
    write_json(manual / "splits.json", {"train": [300, 9001], "minival": [9000], "with_region_features": [300]})
    assert make("questions") == {"train": 2, "val": 1, "with_region_features": 1}
    assert [record["question_id"] for record in read(tmp_path, "questions", "train")] == [300, 9001]
    assert [record["question_id"] for record in read(tmp_path, "questions", "val")] == [9000]


def test_subsets_have_to_fit(manual, make):
    write_questions(manual, ["train", "val"])
    write_json(manual / "splits.json", {"train": [300], "minival": [4]})
    with pytest.raises(DataError, match=r"divides the train questions into \['train', 'val'\], but the folder holds"):
        make("questions")
    for name in (QUESTION_FILES["val"], ANNOTATION_FILES["val"]):
        (manual / name).unlink()
    with pytest.raises(DataError, match="1 question ids of 'minival' are not in the train files, such as"):
        make("questions")


def check_features(tmp_path: Path, ids: dict[str, list[int]]) -> None:
    builder = tfds.builder_from_directory(tmp_path / "data/vqa_v2/features/1.0.0")
    assert builder.info.metadata["image_ids"] == ids
    for split, expected in ids.items():
        records = read(tmp_path, "features", split)
        assert [record["image_id"] for record in records] == expected
        for record in records:
            arrays = region_arrays(record["image_id"])
            assert record["features"].dtype == np.float16
            np.testing.assert_array_equal(record["features"], arrays["x"].T[:100].astype(np.float16))
            np.testing.assert_array_equal(record["boxes"], arrays["bbox"][:100])
            assert (record["image_w"], record["image_h"]) == (640, 480)


def test_features_from_folders(manual, make, tmp_path):
    write_regions(manual)
    assert make("features") == {"train": 2, "val": 1, "test": 2}
    check_features(tmp_path, {"train": [3, 9], "val": [42], "test": [5, 77]})


@pytest.mark.parametrize(
    ("place", "suffix"),
    [("coco_extract/", ".tar.gz"), ("coco_extract/", ".tar"), ("coco_extract/", ".zip"), ("", ".tar.gz"), ("", ".tgz")],
)
def test_features_from_archives(manual, make, tmp_path, place, suffix):
    write_regions(tmp_path / "unpacked", ["train"])
    source = tmp_path / "unpacked/coco_extract"
    (manual / place).mkdir(exist_ok=True)
    archive = manual / f"{place}train2014{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in sorted(source.rglob("*.npz"), reverse=True):
                opened.write(path, path.relative_to(source))
        order = [3, 9]
    else:
        with tarfile.open(archive, "w" if suffix == ".tar" else "w:gz") as tar:
            for image_id in (9, 3):
                path = source / "train2014" / region_name("train", image_id)
                tar.add(path, path.relative_to(source))
        order = [9, 3]  # a tar is read from front to end
    assert make("features") == {"train": 2}
    check_features(tmp_path, {"train": order})


def test_bad_region_files_are_listed_together(manual, make, tmp_path):
    write_regions(manual)
    train, test = (manual / "coco_extract" / FOLDERS[split] for split in ("train", "test"))
    (train / region_name("train", 1)).write_bytes(b"no zip")
    np.savez(train / region_name("train", 2), features=np.ones((2048, 3)))
    np.savez(train / region_name("train", 4), x=np.ones((36, 2048), np.float32))
    np.savez(train / region_name("train", 6), x=np.full((2048, 3), np.nan, np.float32))
    np.savez(train / region_name("train", 7), x=np.full((2048, 3), 1e5, np.float32))
    np.savez(train / region_name("train", 8), x=np.ones((2048, 3), np.float32), bbox=np.ones((2, 4)))
    np.savez(train / region_name("train", 10), x=np.array([{}], object))
    np.savez(train / "notes.npz", x=np.ones((2048, 3), np.float32))
    shutil.copy(train / region_name("train", 9), train / "COCO_train2014_9.npz")
    whole = (train / region_name("train", 3)).read_bytes()
    (train / region_name("train", 3)).write_bytes(whole[: len(whole) // 2])
    np.save(test / "zero.npy", np.zeros(3))
    shutil.move(test / "zero.npy", test / region_name("test", 11))
    with pytest.raises(DataError, match=r"11 bad file\(s\), nothing was built") as error:
        make("features")
    for part in [
        "000001.jpg.npz: cannot be read",
        "000002.jpg.npz: has no array 'x', only ['features']",
        "000004.jpg.npz: 'x' has shape [36, 2048], expected [2048, regions]",
        "000006.jpg.npz: 'x' holds NaN",
        "000007.jpg.npz: 'x' holds NaN, infinite or larger values",
        "000008.jpg.npz: 'bbox' has shape [2, 4], expected [3, 4]",
        "000010.jpg.npz: cannot be read",
        "notes.npz: no image id",
        "image id 9 is also that of",
        "000003.jpg.npz: cannot be read",
        "test2015_000000000011.jpg.npz: is not a .npz file",
    ]:
        assert part in str(error.value)
    assert nothing_was_built(tmp_path)


def test_long_lists_of_bad_files_are_cut(manual, make):
    folder = manual / "coco_extract/train2014"
    folder.mkdir(parents=True)
    for i in range(25):
        (folder / region_name("train", i)).touch()
    with pytest.raises(DataError, match=r"25 bad file") as error:
        make("features")
    assert str(error.value).count("cannot be read") == 20
    assert "and 5 more" in str(error.value)


def test_empty_folder_and_cut_archive(manual, make):
    (manual / "coco_extract/train2014").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no \.npz file"):
        make("features")
    shutil.rmtree(manual / "coco_extract")
    write_regions(manual, ["val"])
    source = manual / "coco_extract/val2014"
    with tarfile.open(manual / "val2014.tar.gz", "w:gz") as tar:
        tar.add(source, "val2014")
    shutil.rmtree(source)
    archive = manual / "val2014.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"val2014.tar.gz is cut off or damaged"):
        make("features")


@pytest.mark.parametrize("packed", [False, True])
def test_images_keep_their_bytes(manual, make, tmp_path, packed):
    jpegs = {}
    for image_id in IMAGES["train"]:
        file = io.BytesIO()
        Image.fromarray(np.full((20, 30, 3), image_id, np.uint8)).save(file, "jpeg")
        jpegs[image_id] = (f"train2014/COCO_train2014_{image_id:012d}.jpg", file.getvalue())
    (manual / "train2014").mkdir()
    if packed:
        with zipfile.ZipFile(manual / "train2014.zip", "w") as archive:
            for name, content in jpegs.values():
                archive.writestr(name, content)
    else:
        for name, content in jpegs.values():
            (manual / name).write_bytes(content)
    write_regions(manual, ["train"])  # their folder has the same name
    assert make("images") == {"train": 2}
    records = read(tmp_path, "images", "train", image=tfds.decode.SkipDecoding())
    assert [record["image_id"] for record in records] == [3, 9]
    for record in records:
        assert record["image"] == jpegs[record["image_id"]][1]
        assert (record["image_w"], record["image_h"]) == (30, 20)


def test_pictures_that_are_none(manual, make, tmp_path):
    folder = manual / "images/val2014"
    folder.mkdir(parents=True)
    (folder / "COCO_val2014_000000000001.jpg").write_bytes(b"no picture")
    Image.new("RGB", (4, 4)).save(folder / "COCO_val2014_000000000002.jpg", "png")
    with pytest.raises(DataError, match="2 bad file") as error:
        make("images")
    assert "is a PNG file, expected JPEG" in str(error.value)
    assert nothing_was_built(tmp_path)


def test_beam_needs_members_it_can_open(manual):
    write_regions(manual)
    members = builder_module.release.list_members(manual / "coco_extract/train2014", ".npz")
    example = builder_module._beam_example("features", (7, members[0]))
    assert example[0] == 7
    assert example[1]["image_id"] == 3
    with pytest.raises(DataError, match="without --beam"):
        builder_module.release.list_members(manual / "train2014.tar.gz", ".npz")


def test_beam_gives_the_same_records(manual, make, tmp_path):
    pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    write_regions(manual)
    build("vqa_v2", "features", data_dir=tmp_path / "data", manual_dir=manual, beam_pipeline_options="")
    check_features(tmp_path, {"train": [3, 9], "val": [42], "test": [5, 77]})


@pytest.mark.skipif("JAXVQA_DATA" not in os.environ, reason="JAXVQA_DATA is not set")
def test_real_files(tmp_path):
    folder = Path(os.environ["JAXVQA_DATA"]) / "data/vqa_v2_mini"
    counts = {}
    for config in ("questions", "features", "images"):
        result = build("vqa_v2", config, data_dir=tmp_path / "data", manual_dir=folder)
        counts[config] = {split: numbers["records"] for split, numbers in result["splits"].items()}
    assert counts["questions"] == {"train": 5000, "val": 1000, "with_image": 14, "with_region_features": 6}
    assert counts["features"] == counts["images"] == {"train": 10}
    subsets = json.loads((folder / "splits.json").read_text())
    ids = {record["question_id"] for record in read(tmp_path, "questions", "val")}
    assert ids == set(subsets["minival"])
    features = {record["image_id"]: record for record in read(tmp_path, "features", "train")}
    for record in read(tmp_path, "questions", "with_region_features"):
        path = folder / f"region_features_36/{record['image_id']:012d}.npz"
        with np.load(path) as arrays:
            stored = features[record["image_id"]]["features"]
            np.testing.assert_allclose(stored, arrays["x"].T, atol=4e-4 * arrays["x"].max())
    images = read(tmp_path, "images", "train", image=tfds.decode.SkipDecoding())
    assert {record["image_id"] for record in images} == {
        record["image_id"] for record in read(tmp_path, "questions", "with_image")
    }
    for record in images:
        path = folder / f"train2014/COCO_train2014_{record['image_id']:012d}.jpg"
        assert record["image"] == path.read_bytes()
