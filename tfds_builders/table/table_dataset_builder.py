"""Builder of a user's own questions about images; README.md beside it describes the table."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvqa.data import pictures
from jaxvqa.explain.overlay import encode
from tfds_builders import checks
from tfds_builders.manual import ManualFile
from tfds_builders.table import release

Record = dict[str, Any]

_KEPT = ("JPEG", "PNG")  # kinds of files that are stored as they are


class Builder(tfds.core.GeneratorBasedBuilder):
    """A table of (image, question, answer) and its images: `questions` and `images`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions and answers, checked against the images."),
        tfds.core.BuilderConfig(name="images", description="Images: JPEG and PNG as they are, others as 8-bit PNG."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put table.csv or table.jsonl there; see tfds_builders/table/README.md."
    workers = 1
    """Threads that read images; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the table."""
        return [release.table_file()]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        images = self.builder_config.name == "images"
        columns: dict[str, Any] = {"image_id": np.int64, "image_name": text}
        if images:
            columns |= {"image": features.Image(encoding_format="jpeg"), "image_w": np.int32, "image_h": np.int32}
            columns["organ"] = np.int32
        else:
            columns |= {"question_id": np.int64, "question": text, "answers": features.Sequence(text)}
            names = ("multiple_choice_answer", "question_type", "answer_type", "open_closed", "patient")
            columns |= dict.fromkeys(names, text)
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(image_ids={}) if images else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        records = release.read(release.table_file().require(folder))
        splits = list(dict.fromkeys(record["split"] for record in records))
        if self.builder_config.name == "questions":
            _say(records, _digests(folder, records, self.workers))
            of_split = {split: [_question(r) for r in records if r["split"] == split] for split in splits}
            return {split: self._generate_examples(of) for split, of in of_split.items()}
        # An image that several splits have is stored in the first of them.
        first: dict[str, Record] = {}
        for record in sorted(records, key=lambda r: splits.index(r["split"])):
            first.setdefault(record["image_name"], record)
        named: dict[str, list[tuple[str, Record]]] = {split: [] for split in splits}
        for name, record in first.items():
            named[record["split"]].append((str(release.image_path(folder, name)), record))
        named = {split: of for split, of in named.items() if of}
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for _, r in of] for split, of in named.items()}
        made = checks.picture_examples("table", named, _image, release.ADVICE, self.workers)
        return {split: self._generate_examples(examples) for split, examples in made.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def _digests(folder: Path, records: list[Record], workers: int) -> dict[str, bytes]:
    """The digest of each image's file, once all of them are whole.

    Raises:
      DataError: lists the images that are missing or damaged.
    """
    names = dict.fromkeys(record["image_name"] for record in records)
    paths = {name: release.image_path(folder, name) for name in names}
    faults: list[str] = []
    checks.whole_pictures("table", paths.values(), faults, workers)
    if faults:
        raise checks.error_of(f"table: {len(faults)} bad file(s), nothing was built", faults, release.ADVICE)
    return {name: release.digest(checks.read_bytes(path)) for name, path in paths.items()}


def _say(records: list[Record], digests: dict[str, bytes]) -> None:
    """Prints what is worth knowing before training."""
    for line in (*release.summary(records), *(f"leak: {line}" for line in release.leaks(records, digests))):
        print(f"table: {line}", file=sys.stderr, flush=True)


def _question(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "split"}


def _image(name: str, record: Record) -> Record:
    content = checks.read_bytes(Path(name))
    facts = checks.whole_picture(content, name)
    if facts.kind not in _KEPT:
        content = encode(np.asarray(pictures.decode(content, 3)))
    return {
        "image_id": record["image_id"],
        "image_name": record["image_name"],
        "image": content,
        "image_w": facts.width,
        "image_h": facts.height,
        "organ": 0,  # a table says nothing of it
    }
