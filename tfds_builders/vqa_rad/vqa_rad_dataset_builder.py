"""Builder of VQA-RAD from the public release; README.md beside it describes the data and its splits."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.vqa_rad import release
from tfds_builders.vqa_v2.release import Member

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
    workers = 1
    """Threads that read images; the build command sets it."""

    partial = False
    """Whether to build what there is of the release; the build command sets it."""

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
        config = self.builder_config.name
        images = {}
        if config == "images" or (self.partial and release.image_place(manual_dir)):
            images = release.find_images(manual_dir, download_dir)
            rows = _with_image(rows, images, self.partial)
        if config == "images":
            ids = list(map(release.image_id, images))
            self.info.metadata["image_ids"]["full"] = ids
            return {"full": self._generate_examples(image_examples(rows, images, self.workers))}
        splits: dict[str, list[Example]]
        if config == "image_disjoint":
            of_image = release.split_images(rows)
            splits = {"train": [], "val": [], "test": []}
            for split, records in splits.items():
                names = (name for name, of in of_image.items() if of == split)
                self.info.metadata["image_ids"][split] = sorted(map(release.image_id, names))
                records += (record for _, record in release.entries(rows) if of_image[record["image_name"]] == split)
            because = f"{len(of_image)} images are too few to divide"
        else:
            splits = {"train": [], "test": [], "train_without_test_frames": []}
            for split, record in release.entries(rows):
                splits[split].append(record)
                if split == record["release_split"] == "train":
                    splits["train_without_test_frames"].append(record)
            because = 'rows belong to test if their phrase_type begins with "test_", the others to train'
        checks.filled_splits(f"vqa_rad/{config}", splits, because, partial=self.partial)
        return {split: self._generate_examples(records) for split, records in splits.items() if records}

    def _generate_examples(self, examples: Iterable[Example]) -> Iterator[tuple[int, Example]]:
        yield from enumerate(examples)


def folders(dl_manager: tfds.download.DownloadManager) -> tuple[Path | None, Path]:
    """Returns the folder of files downloaded by hand, None if there is none, and that of our own downloads."""
    try:
        manual_dir = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's way to say that the folder is absent or empty
        manual_dir = None
    return manual_dir, Path(dl_manager.download_dir) / "vqa_rad"


def _with_image(rows: Sequence[release.Row], images: Collection[str], partial: bool) -> list[release.Row]:
    """Returns the rows whose image is there; with `partial` the others are left out, else they are an error."""
    absent = sorted({row["image_name"] for row in rows} - set(images))
    if absent and not partial:
        raise DataError(
            f"{len(absent)} images that questions ask about are missing, such as {absent[0]}. Put them there, from "
            f"{release.HOME}, or build what there is with --partial."
        )
    if absent:
        logging.warning(
            "vqa_rad: %d images are missing, such as %s; their questions are left out", len(absent), absent[0]
        )
    return [row for row in rows if row["image_name"] in images]


def image_examples(rows: Iterable[release.Row], images: Mapping[str, Member], workers: int) -> Iterator[Example]:
    """Yields the images by number.

    Args:
      rows: The release's rows, which tell an image's organ; one image is in no row, and gets -1, TFDS's "no label".
      images: Name -> file.
      workers: Threads that read.

    Raises:
      DataError: Images cannot be read; names all of them.
    """
    organs = {row["image_name"]: row["image_organ"] for row in rows}

    def make(name: str, member: Member) -> Example:
        content = member.read()
        facts = checks.whole_picture(content, str(member))
        return {
            "image_id": release.image_id(name),
            "image_name": name,
            "image": content,
            "image_w": facts.width,
            "image_h": facts.height,
            "organ": organs.get(name, -1),
        }

    advice = f"Download them again: {release.HOME}"
    return checks.picture_examples("vqa_rad", {"full": images.items()}, make, advice, workers)["full"]
