"""NLVR2: the release's lines and BLIP's lists give the same pairs, and all faults are named."""

import json

import pytest

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from tests.data_set_files import put
from tests.picture_files import encoded, noise
from tfds_builders.build import build, builder_class

COUNTS = {"train": 3, "val": 1, "test": 1}

LINES = {
    "train": [
        {"identifier": "train-10171-0-0", "directory": 37, "sentence": "A dog.", "label": "True", "writer": "8"},
        {"identifier": "train-4-1-2", "directory": 9, "sentence": " Two cats.", "label": "False"},
        {"identifier": "train-10171-0-1", "directory": 37, "sentence": "No dog.", "label": "False"},
    ],
    "dev": [{"identifier": "dev-850-0-0", "sentence": "One crab.", "label": "True"}],
    "test1": [{"identifier": "test1-0-3-1", "sentence": "It rains.", "label": "False"}],
}
OF_BLIP = {"train": "train", "dev": "dev", "test1": "test"}
PATHS = [
    f"{pair}-img{i}.png" for pair in ("train/37/train-10171-0", "train/9/train-4-1", "dev/dev-850-0") for i in (0, 1)
] + [f"test1/test1-0-3-img{i}.png" for i in (0, 1)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def listed(row):
    """An entry of BLIP's list for a line of the release."""
    split, *numbers, _ = row["identifier"].split("-")
    folder = f"{split}/{row['directory']}" if "directory" in row else split
    pair = f"{folder}/{split}-{'-'.join(numbers)}"
    return {"images": [f"{pair}-img{i}.png" for i in (0, 1)]} | {name: row[name] for name in ("sentence", "label")}


@pytest.fixture(params=["release", "blip"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(builder_class("nlvr2"), "EXPECTED_COUNTS", {"pairs": COUNTS})
    folder = tmp_path / "manual"
    for split, rows in LINES.items():
        if request.param == "release":
            put(folder / f"data/{split}.json", lines(rows))
        else:
            put(folder / f"annotation/nlvr_{OF_BLIP[split]}.json", [listed(row) for row in rows])
    for number, path in enumerate(PATHS):
        put(folder / "images" / path, encoded(noise("RGB", (20 + number, 10)), "PNG"))
    return folder


@pytest.fixture
def make(tmp_path):
    def run(config, **options):
        return build("nlvr2", config, manual_dir=tmp_path / "manual", data_dir=tmp_path, overwrite=True, **options)

    return run


def fault(make, *arguments, **options):
    with pytest.raises(DataError) as caught:
        make(*arguments, **options)
    return str(caught.value)


def test_sentences_join_their_two_images(folder, make, tmp_path):
    for config in ("pairs", "images"):
        make(config)
    pairs = Records("nlvr2/pairs", "train+val+test", folder=str(tmp_path))
    images = [Records("nlvr2/images", split, folder=str(tmp_path)) for split in COUNTS]
    split = Split(pairs, images)
    assert [(r["question_id"], r["image_id"], r["second_image_id"]) for r in split.all_records()] == [
        *((0, 0, 1), (1, 2, 3), (2, 0, 1), (3, 4, 5), (4, 6, 7))
    ]
    assert [(r["question"], r["answers"], r["multiple_choice_answer"]) for r in split.all_records()] == [
        ("A dog.", ["true"], "true"),
        (" Two cats.", ["false"], "false"),
        ("No dog.", ["false"], "false"),
        ("One crab.", ["true"], "true"),
        ("It rains.", ["false"], "false"),
    ]
    for i, (first, second) in enumerate(((0, 1), (2, 3), (0, 1), (4, 5), (6, 7))):
        for example, number in ((split[i], first), (split[i]["second"], second)):
            assert example["image"] == (folder / "images" / PATHS[number]).read_bytes()
            assert (example["image_w"], example["image_h"]) == (20 + number, 10)
    assert images[0].metadata["image_ids"] == {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7]}


def test_without_an_image_a_sentence_is_refused_or_left_out(folder, make, tmp_path):
    (folder / "images" / PATHS[3]).unlink()
    assert f"image {PATHS[3]} is not there" in fault(make, "pairs")
    make("pairs", partial=True)
    records = Records("nlvr2/pairs", "train", folder=str(tmp_path))
    assert [r["question"] for r in records.read(range(len(records)))] == ["A dog.", "No dog."]
    next(folder.rglob("*dev.json")).unlink()
    message = fault(make, "pairs")
    assert "1 needed file is missing" in message
    assert "dev.json" in message


def test_all_faults_at_once(folder, make):
    path = next(folder.rglob("*train.json"))
    text = path.read_text().replace('"True"', '"Maybe"').replace("No dog.", " ")
    path.write_text(text.replace("train-4-1-2", "4-1-2").replace("train-4-1-img1.png", ""))
    put(folder / "images" / PATHS[4], b"no image")
    message = fault(make, "images")
    assert 'label is "Maybe"; expected True or False' in message
    assert 'sentence is " "; expected a text that is not empty' in message
    if path.name == "train.json":
        assert 'identifier is "4-1-2"; expected split-set-pair-sentence, such as train-10171-0-0' in message
    path.write_text(lines(LINES["train"]) if path.name == "train.json" else json.dumps([*map(listed, LINES["train"])]))
    assert "dev-850-0-img0.png is not a picture" in fault(make, "images")


def test_a_list_of_neither_form_and_an_image_elsewhere(folder, make):
    put(next(folder.rglob("*dev.json")), '{"a": [}')
    put(next(folder.rglob("*test*.json")), [{"images": ["../a.png", "b.png"], "sentence": "x", "label": True}])
    message = fault(make, "pairs")
    assert "dev.json" in message
    assert "is not JSON" in message
    assert "image ../a.png leads out of the folder" in message
