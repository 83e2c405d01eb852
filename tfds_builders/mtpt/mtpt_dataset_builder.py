"""Builder of CMSA-MTPT's pre-training data; README.md beside it describes the configs and the files."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import checks
from tfds_builders.manual import ManualFile
from tfds_builders.mtpt import phantoms, release
from tfds_builders.vqa_rad.vqa_rad_dataset_builder import folders

# Images made for each organ, and the images of phantom_vqa whose questions are collected: first id and number.
_FULL = {"train": 1000, "test": 200}
_TINY = {"train": 32, "test": 8}
_ASKED = {"train": (0, 3200), "test": (3200, 400)}  # of the train and val splits; the test split's stay unseen
_TINY_ASKED = {"train": (0, 48), "test": (3200, 16)}


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which organ, images or questions, real or made."""

    organ: str = "abdomen"
    questions: bool = False
    phantom: bool = False
    tiny: bool = False


def _configs() -> list[Config]:
    configs = []
    for prefix, phantom, tiny in (("", False, False), ("phantom_", True, False), ("tiny_phantom_", True, True)):
        for organ in release.ORGANS:
            kind = "Phantoms" if phantom else "Images"
            configs += [
                Config(
                    name=f"{prefix}{organ}", description=f"{kind}, {organ}.", organ=organ, phantom=phantom, tiny=tiny
                ),
                Config(
                    name=f"{prefix}{organ}_questions",
                    description=f"Questions that fit the {organ}, or do not.",
                    organ=organ,
                    questions=True,
                    phantom=phantom,
                    tiny=tiny,
                ),
            ]
    return configs


class Builder(tfds.core.GeneratorBasedBuilder):
    """MTPT: for each organ, images with masks or labels, and questions; from files, or made of phantoms."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = _configs()
    DEFAULT_CONFIGS = tuple(config.name for config in BUILDER_CONFIGS if config.phantom and not config.tiny)
    EXPECTED_COUNTS = {  # noqa: RUF012
        **{f"{organ}_questions": {"train": 2190, "test": 432} for organ in release.ORGANS},
        **{f"phantom_{organ}": _FULL for organ in release.ORGANS},
        **{f"tiny_phantom_{organ}": _TINY for organ in release.ORGANS},
    }
    workers = 1
    """Threads that read images; the build command sets it."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "See tfds_builders/mtpt/README.md for the files and their places."

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns what the chosen config needs: the real images and their lists."""
        config = self.builder_config
        if config.phantom or config.questions:
            return []
        return [
            *(release.list_file(config.organ, split) for split in release.SPLITS),
            release.image_folder(config.organ),
        ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        config = self.builder_config
        columns: dict[str, Any]
        metadata = None
        if config.questions:
            columns = {"question_id": np.int64, "question": features.Text(), "label": np.int64}
        else:
            columns = {
                "question_id": np.int64,
                "image_id": np.int64,
                "image_name": features.Text(),
                "image": features.Image(encoding_format="png"),
            }
            if config.organ == "abdomen":
                columns["mask"] = features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
            else:
                columns["label"] = np.int64
            classes = phantoms.CLASSES if config.phantom else {o: s.classes for o, s in release.IMAGE_SETS.items()}
            metadata = tfds.core.MetadataDict(class_names=list(classes[config.organ]))
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage="https://arxiv.org/abs/2105.00136",
            disable_shuffling=True,
            metadata=metadata,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        if not config.questions and not config.phantom:
            manual_dir = Path(dl_manager.manual_dir)
            lines = release.read_lists(manual_dir, config.organ)
            images = release.image_examples(manual_dir, config.organ, lines, self.workers)
            return {split: self._generate_examples(examples) for split, examples in images.items()}
        generators, first = {}, 0
        for split in release.SPLITS:
            examples: Iterable[dict[str, Any]]
            if config.questions:
                questions = self._questions(dl_manager, split)
                why = "no question of this split is in the files"
                checks.filled_splits(f"mtpt/{config.name}", {split: questions}, why, partial=False)
                examples, count = release.question_examples(questions, first), len(questions)
            else:
                count = (_TINY if config.tiny else _FULL)[split]
                examples = phantoms.image_examples(config.organ, split, count, first)
            generators[split] = self._generate_examples(examples)
            first += count  # numbers are unique over both splits
        return generators

    def _questions(self, dl_manager: tfds.download.DownloadManager, split: str) -> list[tuple[str, int]]:
        config = self.builder_config
        if config.phantom:
            return phantoms.questions(config.organ, *(_TINY_ASKED if config.tiny else _ASKED)[split])
        return release.read_questions(*folders(dl_manager), config.organ, split)

    def _generate_examples(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(examples)
