"""Builder of VQA-RAD from the public release; README.md beside it describes the data and its splits."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxvqa.errors import DataError
from tfds_builders.vqa_rad import release

Example = dict[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder):
    """VQA-RAD: `questions` as the literature divides them, `image_disjoint`, and `images`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions in the literature's splits."),
        tfds.core.BuilderConfig(name="image_disjoint", description="The same questions, no image in two splits."),
        tfds.core.BuilderConfig(name="images", description="The images, JPEG bytes as published."),
    ]
    EXPECTED_COUNTS = {  # noqa: RUF012
        "questions": {"train": 3064, "test": 451, "train_without_test_frames": 2780},
        "image_disjoint": {"train": 2428, "val": 359, "test": 728},
        "images": {"full": 315},
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {release.ROWS_FILE} and {release.IMAGE_FOLDER}/ there: {release.HOME}"

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        config = self.builder_config.name
        columns: dict[str, Any]
        if config == "images":
            columns = {
                "image_id": np.int64,
                "image_name": text,
                "image": features.Image(encoding_format="jpeg"),
                "image_w": np.int32,
                "image_h": np.int32,
                "organ": features.ClassLabel(names=release.ORGANS),
            }
        else:
            columns = {
                "question_id": np.int64,
                "image_id": np.int64,
                "image_name": text,
                "question": text,
                "answers": features.Sequence(text),
                "multiple_choice_answer": text,
                "question_type": text,
                "answer_type": text,
                "open_closed": text,
                "phrase_type": text,
                "organ": text,
                "release_row": np.int32,
                "release_split": text,
                "qid_linked_id": text,
                "image_case_url": text,
                "evaluation": text,
                "question_rephrase": text,
                "question_relation": text,
                "question_frame": text,
            }
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage=release.HOME,
            disable_shuffling=True,
            metadata=None if config == "questions" else tfds.core.MetadataDict(image_ids={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir, download_dir = folders(dl_manager)
        rows = release.read_rows(release.rows_path(manual_dir, download_dir))
        if self.builder_config.name == "images":
            ids = self.info.metadata["image_ids"].setdefault("full", [])
            return {"full": self._generate_examples(image_examples(rows, manual_dir, download_dir, ids))}
        if self.builder_config.name == "image_disjoint":
            splits = release.split_images(rows)
            for split in ("train", "val", "test"):
                names = (name for name, of in splits.items() if of == split)
                self.info.metadata["image_ids"][split] = sorted(map(release.image_id, names))
            by_image: dict[str, list[Example]] = {"train": [], "val": [], "test": []}
            for _, record in release.entries(rows):
                by_image[splits[record["image_name"]]].append(record)
            return {split: self._generate_examples(records) for split, records in by_image.items()}
        by_split: dict[str, list[Example]] = {"train": [], "test": [], "train_without_test_frames": []}
        for split, record in release.entries(rows):
            by_split[split].append(record)
            if split == record["release_split"] == "train":
                by_split["train_without_test_frames"].append(record)
        return {split: self._generate_examples(records) for split, records in by_split.items()}

    def _generate_examples(self, examples: Iterable[Example]) -> Iterator[tuple[int, Example]]:
        yield from enumerate(examples)


def folders(dl_manager: tfds.download.DownloadManager) -> tuple[Path | None, Path]:
    """Returns the folder of files downloaded by hand, None if there is none, and that of our own downloads."""
    try:
        manual_dir = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's way to say that the folder is absent or empty
        manual_dir = None
    return manual_dir, Path(dl_manager.download_dir) / "vqa_rad"


def image_examples(
    rows: Iterable[release.Row], manual_dir: Path | None, download_dir: Path, ids: list[int]
) -> Iterator[Example]:
    """Yields the images by number, and notes their ids.

    Args:
      rows: The release's rows, which tell an image's organ; one image is in no row, and gets -1, TFDS's "no label".
      manual_dir: Folder of the files, if there is one.
      download_dir: Folder for what `manual_dir` lacks.
      ids: Filled with the ids in record order.

    Raises:
      DataError: An image cannot be read, or rows name images that are not there.
    """
    organs = {row["image_name"]: row["image_organ"] for row in rows}
    for name, content in release.read_images(manual_dir, download_dir):
        try:
            with Image.open(io.BytesIO(content)) as picture:
                width, height = picture.size
        except OSError as error:
            raise DataError(f"{name} is not a picture ({error}). Download it again: {release.HOME}") from error
        ids.append(release.image_id(name))
        yield {
            "image_id": ids[-1],
            "image_name": name,
            "image": content,
            "image_w": width,
            "image_h": height,
            "organ": organs.pop(name, -1),
        }
    if organs:
        raise DataError(
            f"{len(organs)} images that questions ask about are missing, such as {sorted(organs)[0]}: {release.HOME}"
        )
