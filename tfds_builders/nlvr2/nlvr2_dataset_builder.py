"""Builder of NLVR2; README.md beside it describes the data."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import checks
from tfds_builders.manual import ManualFile
from tfds_builders.nlvr2 import release

Record = dict[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder):
    """NLVR2: `pairs`, sentences about two images each, and the `images`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="pairs", description="Sentences, each about two images."),
        tfds.core.BuilderConfig(name="images", description="Images, bytes as they are."),
    ]
    EXPECTED_COUNTS = {"pairs": release.SENTENCES}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the lists and the images there; see tfds_builders/nlvr2/README.md."

    workers = 1
    """Threads that read images; the build command sets it."""

    partial = False
    """Whether sentences without both images are left out; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the lists, of a part of the release one of them, and the images."""
        lists = list(release.LISTS.values())
        if self.partial:
            lists = [
                ManualFile(tuple(path for file in lists for path in file.paths), release.REPOSITORY, "Of any split.")
            ]
        return [*lists, release.IMAGES]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        images = self.builder_config.name == "images"
        columns: dict[str, Any] = {"image_id": np.int64}
        if images:
            columns |= {"image_name": text, "image": features.Image(encoding_format="png")}
            columns |= dict.fromkeys(("image_w", "image_h"), np.int32)
        else:
            columns |= dict.fromkeys(("question_id", "second_image_id"), np.int64)
            columns |= dict.fromkeys(("question", "multiple_choice_answer"), text)
            columns["answers"] = features.Sequence(text)
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage=release.HOME,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(image_ids={}) if images else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits, found = release.read(Path(dl_manager.manual_dir), partial=self.partial)
        if self.builder_config.name == "pairs":
            return {split: self._generate_examples(map(_sentence, rows)) for split, rows in splits.items()}
        seen: set[str] = set()  # an image that several splits have is stored in the first of them
        named: dict[str, list[tuple[str, Record]]] = {}
        for split, rows in splits.items():
            for row in rows:
                ids = row["image_id"], row["second_image_id"]
                for name, image_id in zip(row["images"], ids, strict=True):
                    if name not in seen:
                        seen.add(name)
                        one = str(found[name]), {"image_id": image_id, "image_name": name}
                        named.setdefault(split, []).append(one)
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for _, r in of] for split, of in named.items()}
        advice = "Fetch these images again, or build with --partial what has both of its images."
        made = checks.picture_examples(self.name, named, _image, advice, self.workers)
        return {split: self._generate_examples(examples) for split, examples in made.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def _sentence(row: Record) -> Record:
    kept = {name: row[name] for name in ("question_id", "image_id", "second_image_id", "question")}
    return kept | {"multiple_choice_answer": row["truth"], "answers": [row["truth"]]}


def _image(name: str, record: Record) -> Record:
    content = checks.read_bytes(Path(name))
    facts = checks.whole_picture(content, name)
    return record | {"image": content, "image_w": facts.width, "image_h": facts.height}
