"""Lists of images with captions that a user has: which file belongs to which split."""

from pathlib import Path

from tfds_builders.caption_lists import Release
from tfds_builders.manual import ManualFile, any_case

HOME = "https://github.com/salesforce/BLIP"

SPLITS = ("train", "val", "test")

EXTENSION = "extension"
"""The folder of lists of which each epoch reads one, after all of `train`; the split of the list i is extension_i."""


def _patterns(split: str) -> tuple[str, ...]:
    return f"{split}.json", f"{split}_*.json", f"{split}/*.json"


def find_lists(folder: Path) -> dict[str, list[Path]]:
    """The lists of each split: SPLIT.json, then SPLIT_*.json, then all in the folder SPLIT/, each in the order of names."""
    found = {}
    for split in SPLITS:
        if paths := [path for pattern in _patterns(split) for path in sorted(folder.glob(any_case(pattern)))]:
            found[split] = paths
    extension = sorted(folder.glob(any_case(f"{EXTENSION}/*.json")))
    return found | {f"{EXTENSION}_{i}": [path] for i, path in enumerate(extension)}


RELEASE = Release(
    home=HOME,
    lists=find_lists,
    needed=ManualFile(
        (*(pattern for split in SPLITS for pattern in _patterns(split)), f"{EXTENSION}/*.json"),
        "a list that you write",
        'JSON: [{"image": "a/b.jpg", "caption": "…"}, …]; see tfds_builders/caption_list/README.md.',
    ),
    folders=(".", "images"),
)
