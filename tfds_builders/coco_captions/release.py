"""The files of COCO's captions in Karpathy's splits, as BLIP reads them."""

from tfds_builders.caption_lists import Release, coco_number, split_lists
from tfds_builders.manual import ManualFile

HOME = "https://cocodataset.org"
LISTS = "https://storage.googleapis.com/sfr-vision-language-research/datasets"

CAPTIONS = {"train": 566_747, "val": 25_010, "test": 25_010}
IMAGES = {"train": 113_287, "val": 5_000, "test": 5_000}


def _list(split: str) -> ManualFile:
    name = f"coco_karpathy_{split}.json"
    return ManualFile((name, f"annotation/{name}"), f"{LISTS}/{name}")


RELEASE = Release(
    home=HOME,
    lists=split_lists({split: _list(split) for split in CAPTIONS}),
    needed=ManualFile(
        ("coco_karpathy_*.json", "annotation/coco_karpathy_*.json"), LISTS, "Of the splits train, val and test."
    ),
    pictures=ManualFile(
        ("*2014/*", "images/*2014/*"),
        "http://images.cocodataset.org/zips/train2014.zip and val2014.zip",
        "13.5 GB and 6.6 GB, unpacked; each image is under its own Flickr licence.",
    ),
    folders=(".", "images"),
    number=coco_number,
)
