"""Builder of MIMIC-CXR; README.md beside it describes the data and the two selections."""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxvqa.data import pictures
from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_file
from tfds_builders.mimic_cxr import release, reports
from tfds_builders.mimic_cxr.release import Picture
from tfds_builders.mimic_cxr.selection import select

SIDE = 224
"""Width and height of pictures that are stored smaller."""

Record = dict[str, Any]


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which part of which selection.

    Attributes:
      part: "reports" or "images".
      frontal: All frontal pictures with the official split, instead of one picture a study with a random split.
      full_size: Store the JPEG files as they are, instead of 224 x 224.
    """

    part: str = "reports"
    frontal: bool = False
    full_size: bool = False


def _configs() -> list[Config]:
    kinds = (("reports", False), ("images", False), ("images", True))
    return [
        Config(
            name=f"{'frontal_' if frontal else ''}{part}{'_full_size' if full_size else ''}",
            description=f"{part.capitalize()} of {'frontal pictures' if frontal else 'studies'}.",
            part=part,
            frontal=frontal,
            full_size=full_size,
        )
        for frontal in (False, True)
        for part, full_size in kinds
    ]


class Builder(tfds.core.GeneratorBasedBuilder):
    """MIMIC-CXR: `reports` and `images` of studies, and those of frontal pictures."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = _configs()
    DEFAULT_CONFIGS = ("reports", "images")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "See tfds_builders/mimic_cxr/README.md for the files and their places."

    workers = 1
    """Threads that make pictures smaller; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns what the chosen config needs."""
        config = self.builder_config
        files = [release.METADATA, release.REPORTS if config.part == "reports" else release.PICTURES]
        return [*files, release.OFFICIAL_SPLIT] if config.frontal else files

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        columns: dict[str, Any] = {
            "image_id": np.int64,
            "image_name": text,
            "subject_id": np.int32,
            "study_id": np.int32,
            "view": text,
        }
        metadata: dict[str, Any] = {}
        if self.builder_config.part == "images":
            columns |= {"image": features.Image(encoding_format="jpeg"), "image_w": np.int32, "image_h": np.int32}
            metadata["image_ids"] = {}
        else:
            columns |= {"question_id": np.int64, "caption": text}
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage=release.JPG_HOME,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata) if metadata else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir, config = Path(dl_manager.manual_dir), self.builder_config
        if config.part == "reports":
            place = release.REPORTS.require(manual_dir)
            texts = reports.Reports(place if place.is_file() else place.parents[1])
            chosen = select(manual_dir, config.frontal, lambda picture: picture.report, texts.__contains__)
            examples = {
                split: report_examples(pictures, texts, chosen.captions, config.frontal)
                for split, pictures in chosen.splits.items()
            }
        else:
            root = release.PICTURES.require(manual_dir).parents[1]
            chosen = select(
                manual_dir, config.frontal, lambda picture: picture.path, lambda name: find_file(root / name).exists()
            )
            side = 0 if config.full_size else SIDE
            examples = image_examples(chosen.splits, root, side, self.workers)
            ids = {split: [picture.image_id for picture in pictures] for split, pictures in chosen.splits.items()}
            self.info.metadata["image_ids"] |= ids
        return {split: self._generate_examples(records) for split, records in examples.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def report_examples(
    pictures: Iterable[Picture], texts: reports.Reports, captions: Mapping[int, str], frontal: bool
) -> Iterator[Record]:
    """Yields the reports of pictures.

    Args:
      pictures: The pictures.
      texts: The reports.
      captions: Study id -> caption, as far as they are known.
      frontal: Take the section that says what is seen, instead of the whole report.

    Raises:
      DataError: A report cannot be read.
    """
    for picture in pictures:
        text = captions.get(picture.study_id)
        if text is None:
            report = texts.read(picture.report)
            text = reports.conclusion(report) if frontal else reports.caption(reports.lines_of(report))
        yield _record(picture) | {"question_id": picture.image_id, "caption": text}


def image_examples(
    splits: Mapping[str, Sequence[Picture]], root: Path, side: int, workers: int
) -> dict[str, Iterator[Record]]:
    """Returns pictures by split.

    Args:
      splits: Which.
      root: The folder that holds files/.
      side: Width and height to which they are resized, bicubic, and stored as JPEG of quality 100; 0 for the bytes as they
        are.
      workers: Threads that read.

    Raises:
      DataError: When read to the end: files are damaged; names all of them.
    """

    def load(name: str, picture: Picture) -> Record:
        content = checks.read_bytes(find_file(root / picture.path))
        if side:
            content, width, height = _smaller(content, name, side), side, side
        else:
            _, width, height = checks.whole_picture(content, name)
        return _record(picture) | {"image": content, "image_w": width, "image_h": height}

    named = {split: ((str(root / picture.path), picture) for picture in chosen) for split, chosen in splits.items()}
    return checks.picture_examples("mimic_cxr", named, load, f"Download them again: {release.JPG_HOME}", workers)


def _smaller(content: bytes, name: str, side: int) -> bytes:
    try:
        picture = pictures.decode(content)
    except DataError as error:
        raise DataError(f"{name} {error}") from error
    buffer = io.BytesIO()
    picture.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def _record(picture: Picture) -> Record:
    return {
        "image_id": picture.image_id,
        "image_name": picture.dicom_id,
        "subject_id": picture.subject_id,
        "study_id": picture.study_id,
        "view": picture.view,
    }
