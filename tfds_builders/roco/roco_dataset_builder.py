"""Builder of ROCO; README.md beside it describes the data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.errors import DataError
from tfds_builders.manual import ManualFile
from tfds_builders.pictures import picture_size
from tfds_builders.roco import release
from tfds_builders.roco.release import Record


class Builder(tfds.core.GeneratorBasedBuilder):
    """ROCO: `captions`, and the `images` they describe."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="captions", description="Captions: all, or those whose picture is there."),
        tfds.core.BuilderConfig(name="images", description="Pictures, bytes as fetched."),
    ]
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
        splits, pictures = read_splits(Path(dl_manager.manual_dir))
        if self.builder_config.name == "captions":
            return {split: self._generate_examples(records) for split, records in splits.items()}
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for r in rs] for split, rs in splits.items()}
        return {split: self._generate_examples(image_examples(rs, pictures)) for split, rs in splits.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def read_splits(manual_dir: Path) -> tuple[dict[str, list[Record]], dict[int, Path]]:
    """Reads the captions of each split, and finds the pictures.

    Captions whose picture is not there are left out, since some articles are gone; unless there is no picture at all: then
    all captions are kept, for use as texts.

    Args:
      manual_dir: Folder of the files.

    Returns:
      Caption records by split, without splits that have none; image id -> file.

    Raises:
      DataError: Text files are of another form, or files are no pictures; one message names all of it.
    """
    faults: list[str] = []
    splits = {split: release.read_split(split, manual_dir, faults) for split in release.FOLDERS}
    found = {split: release.find_pictures(split, records, manual_dir) for split, records in splits.items()}
    pictures = {image_id: path for paths in found.values() for image_id, path in paths.items()}
    faults += release.twice(splits)
    faults += [f"{path} is not a picture" for path in pictures.values() if picture_size(path) is None]
    if faults:
        raise DataError(
            f"roco: {len(faults)} fault(s) in {manual_dir}:\n  "
            + "\n  ".join(faults)
            + "\nFetch these files again, or remove the pictures, as tfds_builders/roco/README.md says."
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
    return {split: records for split, records in kept.items() if records}, pictures


def image_examples(records: Iterable[Record], pictures: Mapping[int, Path]) -> Iterator[Record]:
    """Yields the pictures of captions, bytes as they are.

    Args:
      records: Caption records.
      pictures: Image id -> file, a picture.
    """
    for record in records:
        path = pictures[record["image_id"]]
        width, height = picture_size(path) or (0, 0)
        example = {"image_id": record["image_id"], "image_name": record["image_name"], "image": path.read_bytes()}
        yield example | {"image_w": width, "image_h": height}
