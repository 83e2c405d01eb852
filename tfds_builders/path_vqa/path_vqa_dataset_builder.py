"""Builder of PathVQA; README.md beside it describes the data."""

from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds

from tfds_builders.manual import ManualFile
from tfds_builders.path_vqa import release
from tfds_builders.question_tables import QuestionTable, Record, needed


class Builder(QuestionTable):
    """PathVQA: `questions` and the `images` that they are about."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions and answers, checked against the images."),
        tfds.core.BuilderConfig(name="images", description="Images that have questions, bytes as they are."),
    ]
    EXPECTED_COUNTS = {"questions": {"train": 19_755, "val": 6_279, "test": 6_761}}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack pvqa.zip there; see tfds_builders/path_vqa/README.md."

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the lists and the images."""
        return needed(release.LISTS, release.IMAGES, partial=self.partial)

    def read(self, folder: Path) -> list[Record]:
        """Returns the questions; errors as of `release.read`."""
        return release.read(folder, partial=self.partial)

    def image_path(self, folder: Path, name: str) -> Path:
        """Returns where an image is."""
        return release.image_path(folder, name)
