"""Builder of PathVQA; README.md beside it describes the data."""

import tensorflow_datasets as tfds

from tfds_builders.path_vqa.release import RELEASE
from tfds_builders.question_tables import QuestionLists


class Builder(QuestionLists):
    """PathVQA: `questions` and the `images` that they are about."""

    release = RELEASE
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions and answers, checked against the images."),
        tfds.core.BuilderConfig(name="images", description="Images that have questions, bytes as they are."),
    ]
    EXPECTED_COUNTS = {"questions": {"train": 19_755, "val": 6_279, "test": 6_761}}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack pvqa.zip there; see tfds_builders/path_vqa/README.md."
