"""Builders of images with captions as JSON lists: COCO, Flickr30K, and a user's own."""

import pytest

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from tests.data_set_files import jpeg, put
from tests.picture_files import encoded, noise
from tfds_builders.build import build, builder_class


def read(folder, part, split):
    records = Records(part, split, folder=str(folder))
    return records.read(range(len(records)))


@pytest.fixture
def make(tmp_path):
    def run(name, config, **options):
        return build(name, config, manual_dir=tmp_path / "manual", data_dir=tmp_path, overwrite=True, **options)

    return run


def fault(make, *arguments, **options):
    with pytest.raises(DataError) as caught:
        make(*arguments, **options)
    return str(caught.value)


RELEASES = {
    "coco_captions": ("coco_karpathy", "val2014/COCO_val2014_{:012d}.jpg"),
    "flickr30k": ("flickr30k", "flickr30k-images/{}.jpg"),
}


@pytest.fixture(params=RELEASES)
def released(request, tmp_path, monkeypatch):
    """A small release of the same form: its name and how its images are called."""
    name = request.param
    lists, form = RELEASES[name]
    folder = tmp_path / "manual"
    train = [(391895, "A man rides."), (7, " A dog. "), (391895, "Someone rides.")]
    rows = [{"image": form.format(i), "caption": caption, "image_id": f"x_{i}"} for i, caption in train]
    put(folder / f"{lists}_train.json", rows)
    put(folder / f"annotation/{lists}_val.json", [{"image": form.format(9), "caption": ["A cat", "One cat"]}])
    for i in (391895, 7):
        put(folder / form.format(i), jpeg(i))
    put(folder / "images" / form.format(9), jpeg(9))
    counts = {"captions": {"train": 3, "val": 2}, "images": {"train": 2, "val": 1}}
    monkeypatch.setattr(builder_class(name), "EXPECTED_COUNTS", counts)
    return name, form


def test_a_release_joins_captions_and_images(released, make, tmp_path):
    name, form = released
    for config in ("captions", "images"):
        make(name, config)
    captions = read(tmp_path, f"{name}/captions", "train")
    assert captions[1] == {
        "question_id": 1,
        "image_id": 7,
        "image_name": form.format(7),
        "figure_id": "x_7",
        "caption": " A dog. ",
    }
    assert [row["image_id"] for row in captions] == [391895, 7, 391895]
    assert [row["caption"] for row in read(tmp_path, f"{name}/captions", "val")] == ["A cat", "One cat"]
    images = [Records(f"{name}/images", split, folder=str(tmp_path)) for split in ("train", "val")]
    assert images[0].metadata["image_ids"] == {"train": [391895, 7], "val": [9]}
    split = Split(Records(f"{name}/captions", "train+val", folder=str(tmp_path)), images, number_by="image_id")
    assert split.image_numbers.tolist() == [0, 1, 0, 2, 2]
    assert split[3]["image"] == (tmp_path / "manual/images" / form.format(9)).read_bytes()
    assert (split[1]["image_w"], split[1]["image_h"]) == (67, 50)


def test_less_than_the_release_is_refused(released, make, tmp_path):
    name, form = released
    (tmp_path / "manual" / form.format(7)).unlink()
    message = fault(make, name, "captions")
    assert f"image {form.format(7)} is not there" in message
    assert "--partial" in message
    make(name, "captions", partial=True)
    assert [row["image_id"] for row in read(tmp_path, f"{name}/captions", "train")] == [391895, 391895]
    put(tmp_path / "manual" / form.format(7), jpeg(7))
    next((tmp_path / "manual").rglob("*_val.json")).unlink()
    message = fault(make, name, "captions")
    assert "split val: 0 records, expected 2 as in the official release" in message


def test_names_without_a_number_are_named(released, make, tmp_path):
    name, _ = released
    lists, _ = RELEASES[name]
    names = ("a/photo.jpg", f"a/{2**63}.jpg", "a/-3.jpg", "a/1_２.jpg")
    put(tmp_path / f"manual/{lists}_train.json", [{"image": image, "caption": "A"} for image in names])
    message = fault(make, name, "captions")
    for image in names:
        assert f"image {image}: its name ends in no number from 0 to 2**63 - 1" in message


@pytest.fixture
def own(tmp_path):
    """A user's lists: two of train, joined, a test list, two that extend an epoch, images of two kinds."""
    folder = tmp_path / "manual"
    png = encoded(noise("RGB", (20, 30)), "PNG")
    elsewhere = tmp_path / "elsewhere/x.png"
    put(elsewhere, png)
    for i, name in enumerate("abcd"):
        put(folder / f"photos/{name}.jpg", jpeg(i))
    put(folder / "images/e.PNG", png)
    rows = [
        {"image": "photos/a.jpg", "caption": "one", "image_id": 5},
        {"image": "photos/b.JPG", "caption": ["two", "three"], "image_id": 5},
        {"image": str(elsewhere), "caption": "four", "more": [1]},
    ]
    put(folder / "train.json", rows)
    put(folder / "train/more.json", [{"image": "photos/a.jpg", "caption": "five", "image_id": 5}])
    put(folder / "test.json", [{"image": "photos/b.JPG", "caption": "six"}, {"image": "e.png", "caption": "seven"}])
    put(folder / "extension/01.json", [{"image": "photos/c.jpg", "caption": "eight"}])
    put(folder / "extension/00.json", [{"image": "photos/d.jpg", "caption": "nine"}])
    return folder


def test_a_users_lists(own, make, tmp_path):
    for config in ("captions", "images"):
        make("caption_list", config)
    splits = {
        split: read(tmp_path, "caption_list/captions", split)
        for split in ("train", "test", "extension_0", "extension_1")
    }
    assert {split: [(r["caption"], r["image_id"]) for r in rows] for split, rows in splits.items()} == {
        "train": [("one", 0), ("two", 1), ("three", 1), ("four", 2), ("five", 0)],
        "test": [("six", 1), ("seven", 3)],
        "extension_0": [("nine", 4)],
        "extension_1": [("eight", 5)],
    }
    assert [row["figure_id"] for row in splits["train"]][:3] == ["5", "5", "5"]
    assert [row["figure_id"] for row in splits["test"]] == ["photos/b.JPG", "e.png"]
    assert [r["question_id"] for rows in splits.values() for r in rows] == list(range(9))
    images = Records("caption_list/images", "train", folder=str(tmp_path))
    # An image of two splits is stored once.
    assert images.metadata["image_ids"] == {"train": [0, 1, 2], "test": [3], "extension_0": [4], "extension_1": [5]}


def test_splits_without_entries_are_reported(own, make, tmp_path, caplog):
    put(own / "val.json", [])
    message = fault(make, "caption_list", "captions")
    assert "no record for the split val: its list has no entries" in message
    assert "--partial" in message
    (own / "photos/c.jpg").unlink()
    make("caption_list", "captions", partial=True)
    assert "no record for the splits val, extension_1" in caplog.text
    assert read(tmp_path, "caption_list/captions", "extension_0")


def test_all_faults_of_lists_at_once(own, make, tmp_path):
    put(own / "val.json", "[{")
    put(own / "test_2.json", {"image": "a"})
    rows = [
        {"image": "photos/a.jpg", "caption": []},
        {"caption": "x"},
        7,
        {"image": "photos/none.jpg", "caption": "y"},
        {"image": "../elsewhere/x.png", "caption": "z"},
    ]
    put(own / "train_1.json", rows)
    message = fault(make, "caption_list", "images")
    for part in (
        "val.json is not JSON",
        "test_2.json",
        "train_1.json, entry 0: caption is []; expected a text that is not empty, or a list of such texts",
        "train_1.json, entry 1: no image",
        "train_1.json, entry 2: expected the fields image, caption, image_id; came 7",
        "image photos/none.jpg is not there",
        "image ../elsewhere/x.png leads out of the folder",
    ):
        assert part in message
    assert not list(tmp_path.glob("caption_list/*/1*"))


def test_damaged_images_are_named_and_nothing_is_built(own, make, tmp_path):
    for name in "ad":
        put(own / f"photos/{name}.jpg", b"no image")
    message = fault(make, "caption_list", "images", workers=2)
    assert "photos/a.jpg is not a picture" in message
    assert "photos/d.jpg is not a picture" in message
    assert not list(tmp_path.glob("caption_list/*/1*"))


def test_captions_without_any_image_are_texts(own, make, tmp_path, caplog):
    put(own / "train.json", [{"image": "gone/a.jpg", "caption": "one"}])
    for path in (own / "test.json", own / "train/more.json", *(own / "extension").iterdir()):
        path.unlink()
    make("caption_list", "captions")
    assert [row["caption"] for row in read(tmp_path, "caption_list/captions", "train")] == ["one"]
    assert "no images in" in caplog.text
    assert "image gone/a.jpg is not there" in fault(make, "caption_list", "images", partial=True)


def test_missing_lists_are_named(make, tmp_path):
    (tmp_path / "manual").mkdir()
    for name in ("coco_captions", "flickr30k", "caption_list"):
        assert "needed file" in fault(make, name, "captions")
