"""The builder of MTPT: phantoms that phantom_vqa does not have, lists and questions in the original's form."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from tfds_builders.build import build, builder_class, config_names
from tfds_builders.mtpt import phantoms, release
from tfds_builders.phantom_vqa.phantom_vqa_dataset_builder import Builder as PhantomVqa
from tfds_builders.phantom_vqa.questions import make_questions
from tfds_builders.phantom_vqa.render import ORGANS, render
from tfds_builders.phantom_vqa.scenes import make_scene
from tfds_builders.vqa_rad.release import ROWS_FILE

Builder = builder_class("mtpt")
SPLITS = {"train": 32, "test": 8}


def read(folder, config, split):
    records = Records(f"mtpt/{config}", split, folder=str(folder))
    return records.read(range(len(records)))


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


# Phantoms.


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtpt")
    for config in Builder.BUILDER_CONFIGS:
        if config.tiny:
            build("mtpt", config.name, data_dir=folder)  # checks the counts
    return folder


def test_what_is_built_by_default():
    names = config_names("mtpt")
    assert len(names) == 6
    assert all(name.startswith("phantom_") for name in names)


@pytest.mark.parametrize("organ", ["abdomen", "brain", "chest"])
def test_phantoms(built, organ):
    known = {i for split in PhantomVqa.BUILDER_CONFIGS[0].images for i in PhantomVqa(config="images")._image_ids(split)}
    numbers, images, labels = [], set(), set()
    names = Records(f"mtpt/tiny_phantom_{organ}", "train", folder=str(built)).metadata["class_names"]
    for split, count in SPLITS.items():
        records = read(built, f"tiny_phantom_{organ}", split)
        assert len(records) == count
        for record in records:
            scene = make_scene(record["image_id"])
            picture = render(scene)
            assert scene.view.body_part == organ
            np.testing.assert_array_equal(pixels(record["image"]), picture.image)
            if organ == "abdomen":
                mask = pixels(record["mask"])
                assert mask.dtype == np.uint8
                for value, name in enumerate(names[1:], start=1):
                    expected = picture.organ_map == ORGANS.index(name) if name in ORGANS else np.zeros_like(mask, bool)
                    np.testing.assert_array_equal(mask == value, expected)
                labels |= set(np.unique(mask).tolist())
            else:
                assert names[record["label"]] == scene.abnormality
                labels.add(record["label"])
        numbers += [record["question_id"] for record in records]
        images |= {record["image_id"] for record in records}
    assert numbers == list(range(sum(SPLITS.values())))
    assert len(images) == len(numbers)
    assert not images & known
    assert labels == ({0, 1, 2, 3, 6, 7, 8} if organ == "abdomen" else set(range(len(names))))


def test_splits_cannot_meet():
    ids = {split: [s.image_id for s in phantoms.scenes("chest", split, 60)] for split in ("train", "test")}
    assert max(ids["train"]) < min(ids["test"])
    largest = max(max(PhantomVqa(config="images")._image_ids(split)) for split in ("train", "val", "test"))
    assert largest < min(ids["train"])


@pytest.mark.parametrize("organ", ["abdomen", "brain", "chest"])
def test_phantom_questions(built, organ):
    for split, images in (("train", range(48)), ("test", range(3200, 3216))):
        records = read(built, f"tiny_phantom_{organ}_questions", split)
        asked = {}
        for image_id in images:
            for question in make_questions(image_id):
                asked.setdefault(question.text, set()).add(make_scene(image_id).view.body_part)
        assert [record["question"] for record in records] == list(asked)
        assert [record["label"] for record in records] == [organ in parts for parts in asked.values()]
        assert 0.2 < np.mean([record["label"] for record in records]) < 0.9


# The original's files.


def write_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, "PNG")


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    rng = np.random.default_rng(0)
    for organ, images in release.IMAGE_SETS.items():
        for split, count in (("train", 3), ("test", 2)):
            lines = []
            for i in range(count):
                line = {"image": f"img/{split}_{i}.png", "mask": f"mask/{split}_{i}.png", "label": str(i % 2)}
                write_png(folder / images.folder / line["image"], rng.integers(0, 255, (6, 5), np.uint8))
                if organ == "abdomen":
                    write_png(folder / images.folder / line["mask"], rng.integers(0, 14, (6, 5), np.uint8))
                lines.append(" ".join(line[column] for column in images.columns))
            (folder / f"{images.lists}_{release.SPLITS[split]}.txt").write_text("\n".join(lines) + "\n\n")
    return folder


@pytest.mark.parametrize("organ", ["abdomen", "brain", "chest"])
def test_lists(manual, tmp_path, organ):
    build("mtpt", organ, manual_dir=manual, data_dir=tmp_path)
    train, test = read(tmp_path, organ, "train"), read(tmp_path, organ, "test")
    assert [record["question_id"] for record in train + test] == [0, 1, 2, 3, 4]
    for split, records in (("train", train), ("test", test)):
        for i, record in enumerate(records):
            folder = manual / release.IMAGE_SETS[organ].folder
            assert record["image_name"] == f"img/{split}_{i}.png"
            assert record["image"] == (folder / record["image_name"]).read_bytes()
            if organ == "abdomen":
                assert record["mask"] == (folder / f"mask/{split}_{i}.png").read_bytes()
            else:
                assert record["label"] == i % 2


def test_a_mask_with_a_palette_becomes_its_values(manual, tmp_path):
    path = manual / "Abdomen/mask/test_1.png"
    values = np.arange(30, dtype=np.uint8).reshape(6, 5) % 14
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.ravel())
    picture.putpalette([3 * i % 256 for i in range(768)])
    picture.save(path)
    with Image.open(path) as saved:
        assert saved.mode == "P"
    build("mtpt", "abdomen", manual_dir=manual, data_dir=tmp_path)
    np.testing.assert_array_equal(pixels(read(tmp_path, "abdomen", "test")[1]["mask"]), values)


@pytest.mark.parametrize(
    ("organ", "file", "content", "message"),
    [
        (
            "brain",
            "brain_tumor_trainset.txt",
            "img/train_0.png 1",
            "line 1: 'img/train_0.png 1'; expected image mask label",
        ),
        ("chest", "chest_xray_valset.txt", "img/test_0.png 2", "label '2'; expected one of 0 normal, 1 pneumonia"),
        ("chest", "chest_xray_valset.txt", "img/none.png 0", r"line 1: .*none\.png cannot be read"),
        ("chest", "chest_xray_trainset.txt", "\n", "trainset.txt is empty"),
        ("abdomen", "abdomen_trainset.txt", "img/train_0.png big.png", "values up to 14; expected an 8-bit PNG"),
        ("abdomen", "abdomen_trainset.txt", "img/train_0.png wide.png", "expected an 8-bit PNG of one channel"),
    ],
)
def test_faults_are_named(manual, tmp_path, organ, file, content, message):
    write_png(manual / "Abdomen/big.png", np.full((6, 5), 14, np.uint8))
    write_png(manual / "Abdomen/wide.png", np.zeros((6, 7), np.uint8))
    (manual / file).write_text(content)
    with pytest.raises(DataError, match=message):
        build("mtpt", organ, manual_dir=manual, data_dir=tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        build("mtpt", "chest", manual_dir=tmp_path, data_dir=tmp_path)
    for part in ("chest_xray_trainset.txt", "chest_xray_valset.txt", "chest_xray\n", "one image a line, image label"):
        assert part in str(caught.value)


# Questions.


def test_question_files(tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {})
    given = {"train": [{"question": "Is it?", "label": 1}, {"question": "What?", "label": 0}]}
    given["test"] = [{"question": "Where?", "label": 1}]
    (tmp_path / "data").mkdir()
    for split, questions in given.items():
        (tmp_path / "data" / f"brain_{split}.json").write_text(json.dumps(questions))
    build("mtpt", "brain_questions", manual_dir=tmp_path, data_dir=tmp_path)
    train, test = (read(tmp_path, "brain_questions", split) for split in ("train", "test"))
    assert [{k: record[k] for k in ("question", "label")} for record in train] == given["train"]
    assert [record["question_id"] for record in train + test] == [0, 1, 2]
    (tmp_path / "data" / "brain_test.json").write_text('[{"question": "Where?", "label": 2}]')
    with pytest.raises(DataError, match="labels 0 and 1"):
        build("mtpt", "brain_questions", manual_dir=tmp_path, data_dir=tmp_path, overwrite=True)
    (tmp_path / "data" / "brain_test.json").write_text('{"question": "Where?"}')
    with pytest.raises(DataError, match="expected a list of"):
        build("mtpt", "brain_questions", manual_dir=tmp_path, data_dir=tmp_path, overwrite=True)


def test_questions_of_vqa_rad(tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {})
    base = {"answer": "yes", "answer_type": "CLOSED", "question_type": "PRES", "image_name": "synpic1.jpg"}
    asked = [("Normal?", "HEAD", "freeform"), ("What?", "ABD", "para"), ("Normal?", "CHEST", "freeform")]
    asked += [("Where?", "HEAD", "test_freeform"), ("Normal?", "ABD", "test_para")]
    rows = [base | {"question": q, "image_organ": o, "phrase_type": p, "question_frame": "NULL"} for q, o, p in asked]
    rows[3]["question_frame"] = "Where in the image?"
    (tmp_path / "vqa_rad").mkdir()
    (tmp_path / "vqa_rad" / ROWS_FILE).write_text(json.dumps(rows))
    expected = {
        "abdomen": ([0, 1, 0], [0, 1]),
        "brain": ([1, 0, 1], [1, 0]),
        "chest": ([1, 0, 0], [0, 0]),
    }
    for organ, labels in expected.items():
        build("mtpt", f"{organ}_questions", manual_dir=tmp_path, data_dir=tmp_path)
        train, test = (read(tmp_path, f"{organ}_questions", split) for split in ("train", "test"))
        assert [record["question"] for record in train] == ["Normal?", "What?", "Where in the image?"]
        assert [record["question"] for record in test] == ["Where?", "Normal?"]
        assert tuple([record["label"] for record in records] for records in (train, test)) == labels


@pytest.mark.parametrize(
    ("organ", "train", "test"), [("abdomen", 0.356, 0.359), ("brain", 0.324, 0.271), ("chest", 0.350, 0.380)]
)
def test_shares_of_the_real_questions(jaxvqa_data, tmp_path, organ, train, test):
    build("mtpt", f"{organ}_questions", manual_dir=jaxvqa_data / "data/vqa_rad", data_dir=tmp_path)  # 2190 and 432
    for split, share in (("train", train), ("test", test)):
        labels = [record["label"] for record in read(tmp_path, f"{organ}_questions", split)]
        assert np.mean(labels) == pytest.approx(share, abs=5e-4)
