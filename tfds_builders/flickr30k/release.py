"""The files of Flickr30K in Karpathy's splits, as BLIP reads them."""

from tfds_builders.caption_lists import Release, coco_number, split_lists
from tfds_builders.manual import ManualFile

HOME = "https://shannon.cs.illinois.edu/DenotationGraph/"
LISTS = "https://storage.googleapis.com/sfr-vision-language-research/datasets"

CAPTIONS = {"train": 145_000, "val": 5_070, "test": 5_000}
IMAGES = {"train": 29_000, "val": 1_014, "test": 1_000}


def _list(split: str) -> ManualFile:
    name = f"flickr30k_{split}.json"
    return ManualFile((name, f"annotation/{name}"), f"{LISTS}/{name}")


RELEASE = Release(
    home=HOME,
    lists=split_lists({split: _list(split) for split in CAPTIONS}),
    needed=ManualFile(("flickr30k_*.json", "annotation/flickr30k_*.json"), LISTS, "Of the splits train, val and test."),
    pictures=ManualFile(
        ("flickr30k-images/*", "images/flickr30k-images/*"),
        HOME,
        "On request, for research and teaching without profit.",
    ),
    folders=(".", "images"),
    number=coco_number,
)
