"""The builder of ROCO: places and forms of its files, captions with and without pictures, all faults in one message."""

import shutil
import unicodedata

import pytest
from PIL import Image

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from tfds_builders.build import build
from tfds_builders.roco import release

CAPTIONS = {
    ("train", "radiology"): {1: " Axial CT,\u00a05\u00a0\u00b5m slices. ", 4: " Chest\u2028film."},
    ("train", "non-radiology"): {81_827: "Histology."},
    ("validation", "radiology"): {2: " MRI of the brain"},
    ("test", "non-radiology"): {81_830: "A map"},
}


@pytest.fixture
def texts(tmp_path):
    """A part of the repository without pictures."""
    folder = tmp_path / "manual"
    for (split, group), captions in CAPTIONS.items():
        place = folder / "data" / split / group
        place.mkdir(parents=True)
        names = {number: f"ROCO_{number:05d}" for number in captions}
        files = {
            "captions": [f"{names[number]}\t{caption}" for number, caption in captions.items()],
            "licences": ["ROCO_ID,PMC_ID,CC", *(f"{name},PMC{n}_fig_{n},a.jpg,CC BY" for n, name in names.items())],
            "keywords": [f"{name}\t\taxial\tct" if n == 1 else f"{name}\t" for n, name in names.items()],
        }
        for name, lines in files.items():
            (place / f"{name}.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    return folder


@pytest.fixture
def pictures(texts):
    """The same with the pictures of three of five captions."""
    for place, name in (
        ("train/radiology", "ROCO_00004"),
        ("train/non-radiology", "PMC81827_fig_81827,a"),
        ("test/non-radiology", "ROCO_81830"),
    ):
        folder = texts / "data" / place / "images"
        folder.mkdir()
        Image.new("L", (len(name), 7)).save(folder / f"{name}.jpg")
    return texts


def read(folder, part, split):
    records = Records(f"roco/{part}", split, folder=str(folder))
    return records.read(range(len(records)))


def test_captions_without_pictures(texts, tmp_path):
    build("roco", "captions", manual_dir=texts, data_dir=tmp_path)
    train = read(tmp_path, "captions", "train")
    assert train[0] == {
        "question_id": 1,
        "image_id": 1,
        "image_name": "ROCO_00001",
        "caption": "Axial CT, 5 \u03bcm slices.",
        "question_type": "radiology",
        "keywords": ["axial", "ct"],
        "pmc_id": "PMC1",
        "figure": "fig_1,a.jpg",
        "licence": "CC BY",
    }
    assert [record["image_id"] for record in train] == [1, 4, 81_827]
    assert train[1]["caption"] == "Chest\u2028film."  # only line feeds end a line
    assert (train[2]["question_type"], train[2]["keywords"]) == ("non-radiology", [])
    assert [r["caption"] for r in read(tmp_path, "captions", "val")] == ["MRI of the brain"]
    with pytest.raises(DataError, match=r"roco: 1 needed file is missing[\s\S]*scripts/fetch.py"):
        build("roco", "images", manual_dir=texts, data_dir=tmp_path)


def test_captions_join_their_pictures(pictures, tmp_path):
    # From the folder data/ too.
    for config in ("captions", "images"):
        build("roco", config, manual_dir=pictures / "data", data_dir=tmp_path)
    images = Records("roco/images", "train", folder=str(tmp_path))
    assert images.metadata["image_ids"] == {"train": [4, 81_827], "test": [81_830]}
    source = Split(Records("roco/captions", "train", folder=str(tmp_path)), [images])
    examples = source.read(range(len(source)))
    assert [(e["caption"], e["image_w"], e["image_h"]) for e in examples] == [
        ("Chest\u2028film.", 10, 7),
        ("Histology.", 20, 7),
    ]
    assert examples[0]["image"] == (pictures / "data/train/radiology/images/ROCO_00004.jpg").read_bytes()
    kept = Split(Records("roco/captions", "train", folder=str(tmp_path)), question_types=("radiology",))
    assert [example["image_id"] for example in kept.read(range(len(kept)))] == [4]
    with pytest.raises(DataError, match="no split 'val'"):
        read(tmp_path, "captions", "val")


def test_all_faults_at_once(pictures, tmp_path):
    train = pictures / "data/train/radiology"
    (train / "images/ROCO_00004.jpg").write_bytes(b"no picture")
    with (train / "captions.txt").open("a") as file:
        file.write("ROCO_00002\t twice\nROCO_00009\n")
    (pictures / "data/test/non-radiology/keywords.txt").unlink()
    validation = pictures / "data/validation/radiology"
    (validation / "captions.txt").write_text("photo\t words\n")
    (validation / "licences.txt").write_bytes("ROCO_00002,ä".encode("latin1"))
    with pytest.raises(DataError) as caught:
        build("roco", "images", manual_dir=pictures, data_dir=tmp_path)
    message = str(caught.value)
    for part in (
        "captions.txt: 1 lines are not in ROCO's form, such as line 4",
        "radiology/licences.txt: 1 captions have no row, such as ROCO_00002",
        "radiology/keywords.txt: 1 captions have no row, such as ROCO_00002",
        "test/non-radiology/keywords.txt: [Errno 2]",
        "names are not ROCO_NUMBER, such as photo",
        "licences.txt: 'utf-8' codec",
        "ROCO_00004.jpg is not a picture",
    ):
        assert part in message
    assert not list(tmp_path.rglob("*array_record*"))


def test_no_image_is_captioned_twice(texts, tmp_path):
    shutil.copytree(texts / "data/train/radiology", texts / "data/test/radiology")
    with pytest.raises(DataError, match="2 images are captioned twice, such as ROCO_00001, ROCO_00004"):
        build("roco", "captions", manual_dir=texts, data_dir=tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data/\*/\*radiology/captions.txt[\s\S]*razorx89"):
        build("roco", "captions", manual_dir=tmp_path, data_dir=tmp_path)


def test_the_releases_counts():
    by_split = {split: sum(n for (of, _), n in release.ROWS.items() if of == split) for split in release.FOLDERS}
    assert by_split == {"train": 70_343, "val": 8_791, "test": 8_791}


def test_the_real_sample(jaxvqa_data, tmp_path):
    source = jaxvqa_data / "data/roco_captions"
    build("roco", "captions", manual_dir=source, data_dir=tmp_path)
    for split, count in (("val", 721), ("test", 710)):
        records = read(tmp_path, "captions", split)
        lines = (source / "data" / release.FOLDERS[split] / "radiology/captions.txt").read_text(encoding="utf-8")
        raw = dict(line.split("\t") for line in lines.split("\n")[:-1])
        assert len(records) == len(raw) == count
        for record in records:
            assert record["caption"] == unicodedata.normalize("NFKC", raw[record["image_name"]].strip())
            assert record["licence"] in ("CC BY", "CC0")
            assert record["pmc_id"].startswith("PMC")
            assert record["figure"]
