"""Builder of a user's own questions about images; README.md beside it describes the table."""

from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds

from tfds_builders.manual import ManualFile
from tfds_builders.question_tables import QuestionTable, Record
from tfds_builders.table import release


class Builder(QuestionTable):
    """A table of (image, question, answer) and its images: `questions` and `images`."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions and answers, checked against the images."),
        tfds.core.BuilderConfig(name="images", description="Images: JPEG and PNG as they are, others as 8-bit PNG."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put table.csv, table.jsonl or table.parquet there; see tfds_builders/table/README.md."
    )
    ADVICE = release.ADVICE

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the table."""
        return [release.table_file()]

    def read(self, folder: Path) -> list[Record]:
        """Returns the table's questions; arguments and errors as of `release.read`."""
        return release.read(release.table_file().require(folder))
