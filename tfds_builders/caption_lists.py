"""Data sets of images with captions that are written as JSON lists of {image, caption}: what their builders share.

A data set says in a `Release` where its lists and images lie. The forms are BLIP's (docs/originals/blip.md, section 13).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.data.blip_text import coco_image_id
from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_files

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Release:
    """Where a data set's files lie, and what differs between such data sets.

    Attributes:
      home: Where it is downloaded.
      lists: Folder of the files -> the lists of each split, in the order in which they are joined.
      needed: What is needed at the least for the texts.
      pictures: What is needed besides for the images.
      folders: Where images may lie whose path is not absolute, below the folder of the files; the first that has one counts.
      number: An image's path -> its id, or ValueError; None numbers images in order of first appearance.
    """

    home: str
    lists: Callable[[Path], Mapping[str, Sequence[Path]]]
    needed: ManualFile
    pictures: ManualFile | None = None
    folders: tuple[str, ...] = (".",)
    number: Callable[[str], int] | None = None


def _captions(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError
    return texts


FIELDS = {
    "image": checks.TEXT,
    "caption": checks.Kind("a text that is not empty, or a list of such texts", _captions),
    "image_id": checks.TEXT_OR_NUMBER.or_else(""),
}
"""What an entry of a list has; entries of one `image_id` are about one figure or image."""


class CaptionLists(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of such a data set: `captions`, and the `images` they describe."""

    release: ClassVar[Release]
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="captions", description="Captions: all, or those whose image is there."),
        tfds.core.BuilderConfig(name="images", description="Images, bytes as they are."),
    ]
    workers = 1
    """Threads that read images; the build command sets it."""

    partial = False
    """Whether captions without their image are left out; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns what the chosen config needs at the least."""
        pictures = self.release.pictures if self.builder_config.name == "images" else None
        return [self.release.needed, *([pictures] if pictures else [])]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        images = self.builder_config.name == "images"
        columns: dict[str, Any] = {"image_id": np.int64, "image_name": text}
        if images:
            columns |= {"image": features.Image(encoding_format="jpeg"), "image_w": np.int32, "image_h": np.int32}
        else:
            columns |= {"question_id": np.int64, "figure_id": text, "caption": text}
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage=self.release.home,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(image_ids={}) if images else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        alone = self.builder_config.name == "captions"
        folder = Path(dl_manager.manual_dir)
        splits, found = read_splits(self.name, self.release, folder, partial=self.partial, alone=alone)
        if alone:
            return {split: self._generate_examples(map(_caption, records)) for split, records in splits.items()}
        once = {split: records for split, records in _each_image_once(splits).items() if records}
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for r in rs] for split, rs in once.items()}
        named = {split: [(str(found[r["image_name"]]), r) for r in records] for split, records in once.items()}
        advice = "Fetch these images again, or take their entries out of the lists."
        made = checks.picture_examples(self.name, named, _image, advice, self.workers)
        return {split: self._generate_examples(examples) for split, examples in made.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def read_splits(
    name: str, release: Release, folder: Path, *, partial: bool = False, alone: bool = False
) -> tuple[dict[str, list[Record]], dict[str, Path]]:
    """Reads the lists, one record for each caption, and finds the images.

    Args:
      name: The data set, for messages.
      release: Where its files lie.
      folder: Folder of the files.
      partial: Whether captions without their image are left out, instead of being faults.
      alone: Whether all captions are kept, for use as texts, where there is no image at all.

    Returns:
      By split, without those that have none: `question_id`, `image_id`, `image_name`, `figure_id`, `caption`; and image
      name -> its file.

    Raises:
      DataError: Lists are of another form or empty, images are missing, or two images have one id; one message names all of it.
    """
    faults: list[str] = []
    rows: dict[str, list[Record]] = {}
    for split, paths in release.lists(folder).items():
        rows[split] = [row for path in paths for row in _read_list(path, faults)]
    ids = _numbered(rows, release, faults)
    found = find_files(ids, folder, release.folders)
    missing = [image for image in ids if image not in found]
    if missing and not found and alone:
        logging.warning("%s: no images in %s: all captions are built, for use without", name, folder)
    elif missing and found and partial:
        logging.warning("%s: %d of %d images are not there; built without", name, len(missing), len(ids))
        rows = {split: [row for row in each if row["image"] in found] for split, each in rows.items()}
    elif missing:
        faults += [f"image {image} is not there" for image in missing]
    if faults:
        advice = "Mend the lists and add the images, or build with --partial what has its image."
        raise checks.error_of(f"{name}: {len(faults)} fault(s) in {folder}", faults, advice)
    because = "its list has no entries" + (", or none whose image is there" if partial else "")
    checks.filled_splits(name, rows, because, partial=partial)
    splits = {split: each for split, each in rows.items() if each}
    records: dict[str, list[Record]] = {}
    number = 0
    for split, each in splits.items():
        records[split] = []
        for row in each:
            common = {"image_id": ids[row["image"]], "image_name": row["image"]}
            common["figure_id"] = row["image_id"] or row["image"]
            for caption in row["caption"]:
                records[split].append(common | {"question_id": number, "caption": caption})
                number += 1
    return records, found


def _read_list(path: Path, faults: list[str]) -> list[Record]:
    try:
        content = read_json(path, "a list of images with their captions", [Any])
    except DataError as error:
        faults.append(str(error))
        return []
    return checks.checked_rows(content, FIELDS, str(path), faults, row="entry")


def _numbered(rows: Mapping[str, Iterable[Record]], release: Release, faults: list[str]) -> dict[str, int]:
    """The id of each image by its path, in order of first appearance."""
    ids: dict[str, int] = {}
    owners: dict[int, str] = {}
    for row in (row for each in rows.values() for row in each):
        image = row["image"]
        if image in ids:
            continue
        if ".." in PurePosixPath(image).parts:
            faults.append(f"image {image} leads out of the folder")
        try:
            number = len(ids) if release.number is None else release.number(image)
        except ValueError:
            faults.append(f"image {image}: its name ends in no number from 0 to 2**63 - 1, which would be its id")
            number = -1 - len(ids)
        if number in owners:
            faults.append(f"images {owners[number]} and {image} have one id, {number}")
        ids[image], owners[number] = number, image
    return ids


def _each_image_once(splits: Mapping[str, Iterable[Record]]) -> dict[str, list[Record]]:
    """The first record of each image; one that several splits have is in the first of them."""
    seen: set[int] = set()
    once: dict[str, list[Record]] = {split: [] for split in splits}
    for split, records in splits.items():
        for record in records:
            if record["image_id"] not in seen:
                seen.add(record["image_id"])
                once[split].append(record)
    return once


def _caption(record: Record) -> Record:
    return {name: record[name] for name in ("question_id", "image_id", "image_name", "figure_id", "caption")}


def _image(name: str, record: Record) -> Record:
    content = checks.read_bytes(Path(name))
    facts = checks.whole_picture(content, name)
    kept = {"image_id": record["image_id"], "image_name": record["image_name"], "image": content}
    return kept | {"image_w": facts.width, "image_h": facts.height}


def coco_number(image: str) -> int:
    """The id of an image by its path, as COCO's evaluation has it.

    Raises:
      ValueError: The name ends in no number from 0 to 2**63 - 1.
    """
    return checks.whole().read(coco_image_id(image, sound=True))


def split_lists(names: Mapping[str, ManualFile]) -> Callable[[Path], dict[str, list[Path]]]:
    """The list of each split that is there, for a release of one list a split."""

    def find(folder: Path) -> dict[str, list[Path]]:
        return {split: [path] for split, file in names.items() if (path := file.find(folder))}

    return find
