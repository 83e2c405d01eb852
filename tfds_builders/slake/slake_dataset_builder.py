"""Builder of SLAKE; README.md beside it describes the data."""

import tensorflow_datasets as tfds

from tfds_builders.question_tables import QuestionLists, Record
from tfds_builders.slake.release import RELEASE

LANGUAGES = {"questions": ("en",), "questions_zh": ("zh",), "questions_all": ("en", "zh")}


class Builder(QuestionLists):
    """SLAKE: `questions` in English, in Chinese (`questions_zh`), in both (`questions_all`), and `images`."""

    release = RELEASE
    BUILDER_CONFIGS = [  # noqa: RUF012
        *(
            tfds.core.BuilderConfig(name=n, description=f"Questions: {' and '.join(of)}.")
            for n, of in LANGUAGES.items()
        ),
        tfds.core.BuilderConfig(name="images", description="Images, bytes as they are."),
    ]
    DEFAULT_CONFIGS = ("questions", "images")
    EXPECTED_COUNTS = {  # noqa: RUF012
        "questions": {"train": 4_919, "val": 1_053, "test": 1_061},
        "questions_zh": {"train": 4_916, "val": 1_046, "test": 1_033},
        "questions_all": {"train": 9_835, "val": 2_099, "test": 2_094},
        "images": {"train": 450, "val": 96, "test": 96},
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Unpack Slake1.0.zip there; see tfds_builders/slake/README.md."

    def asked(self, record: Record) -> bool:
        """Whether a question is in the config's language."""
        return record["language"] in LANGUAGES[self.builder_config.name]
