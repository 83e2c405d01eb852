"""Builder of ROCO; README.md beside it describes the data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.data.pictures import Facts
from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.manual import ManualFile
from tfds_builders.roco import release
from tfds_builders.roco.release import Record

Picture = tuple[Path, Facts]


class Builder(tfds.core.GeneratorBasedBuilder):
    """ROCO: `captions`, and the `images` they describe."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="captions", description="Captions: all, or those whose picture is there."),
        tfds.core.BuilderConfig(name="images", description="Pictures, bytes as fetched."),
    ]
    workers = 1
    """Threads that read pictures; the build command sets it."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Clone {release.HOME} there; see tfds_builders/roco/README.md."

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns what the chosen config needs at the least."""
        return [release.CAPTIONS, *([release.PICTURES] if self.builder_config.name == "images" else [])]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        images = self.builder_config.name == "images"
        columns: dict[str, Any] = {"image_id": np.int64, "image_name": text}
        if images:
            columns |= {"image": features.Image(encoding_format="jpeg"), "image_w": np.int32, "image_h": np.int32}
        else:
            columns |= {
                "question_id": np.int64,
                "caption": text,
                "question_type": text,
                "keywords": features.Sequence(text),
                "pmc_id": text,
                "figure": text,
                "licence": text,
            }
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage=release.HOME,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(image_ids={}) if images else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits, pictures = read_splits(Path(dl_manager.manual_dir), self.workers)
        if self.builder_config.name == "captions":
            return {split: self._generate_examples(records) for split, records in splits.items()}
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for r in rs] for split, rs in splits.items()}
        return {split: self._generate_examples(image_examples(rs, pictures)) for split, rs in splits.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def read_splits(manual_dir: Path, workers: int = 1) -> tuple[dict[str, list[Record]], dict[int, Picture]]:
    """Reads the captions of each split, and finds the pictures.

    Captions whose picture is not there are left out, since some articles are gone; unless there is no picture at all: then
    all captions are kept, for use as texts.

    Args:
      manual_dir: Folder of the files.
      workers: Threads that decode pictures.

    Returns:
      Caption records by split, without splits that have none; image id -> file and what it holds.

    Raises:
      DataError: Text files are of another form, pictures are damaged, or nothing is left; one message names all of it.
    """
    faults: list[str] = []
    splits = {split: release.read_split(split, manual_dir, faults) for split in release.FOLDERS}
    found = {split: release.find_pictures(split, records, manual_dir) for split, records in splits.items()}
    paths = {image_id: path for of_split in found.values() for image_id, path in of_split.items()}
    faults += release.twice(splits)
    whole = checks.whole_pictures("roco", paths.values(), faults, workers) if paths else {}
    if faults:
        advice = "Fetch these files again, or remove the pictures, as tfds_builders/roco/README.md says."
        raise checks.error_of(f"roco: {len(faults)} fault(s) in {manual_dir}", faults, advice)
    pictures = {image_id: (path, whole[path]) for image_id, path in paths.items()}
    empty = [split for split, records in splits.items() if release.has_files(split, manual_dir) and not records]
    if empty:
        raise DataError(
            f"roco: captions.txt of {', '.join(empty)} in {manual_dir} is empty. Fetch it again: {release.HOME}"
        )
    if not pictures:
        logging.warning("roco: no pictures in %s: all captions are built, for use without", manual_dir)
        return {split: records for split, records in splits.items() if records}, {}
    kept = {split: [r for r in records if r["image_id"] in pictures] for split, records in splits.items()}
    for split, records in splits.items():
        if len(kept[split]) < len(records):
            logging.warning(
                "roco: %d of %d captions of %s have no picture", len(records) - len(kept[split]), len(records), split
            )
        if records and not kept[split]:
            logging.warning("roco: no caption of %s has a picture; the split is left out", split)
    return {split: records for split, records in kept.items() if records}, pictures


def image_examples(records: Iterable[Record], pictures: Mapping[int, Picture]) -> Iterator[Record]:
    """Yields the pictures of captions, bytes as they are.

    Args:
      records: Caption records.
      pictures: Image id -> file and what it holds.
    """
    for record in records:
        path, facts = pictures[record["image_id"]]
        example = {"image_id": record["image_id"], "image_name": record["image_name"], "image": checks.read_bytes(path)}
        yield example | {"image_w": facts.width, "image_h": facts.height}
