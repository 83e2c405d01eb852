"""Data sets of questions about images, each with its answers and its image's file: what their builders share.

A data set says where its questions are and how they are read, one of a list a split in a `Release`;
`tfds_builders/table/README.md` describes the records.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.data import pictures
from jaxvqa.explain.overlay import encode
from tfds_builders import checks
from tfds_builders.manual import ManualFile, find_file
from tfds_builders.table import release

Record = dict[str, Any]

_KEPT = ("JPEG", "PNG")  # kinds of files that are stored as they are


class QuestionTable(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of such a data set: configs of questions, and `images`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    ADVICE = "Fetch these files again, or build with --partial what has its image."
    """What to do about faults."""

    workers = 1
    """Threads that read images; the build command sets it."""

    partial = False
    """Whether questions without their image are left out; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the files that are needed."""
        raise NotImplementedError

    def read(self, folder: Path) -> list[Record]:
        """Returns the questions of all splits in order, as of `release.record`, with `image_id` and `split`.

        Args:
          folder: Folder of the files.

        Raises:
          DataError: Lists all rows that are not as they should be.
        """
        raise NotImplementedError

    def asked(self, record: Record) -> bool:
        """Whether the chosen config of questions has this one."""
        return True

    def image_path(self, folder: Path, name: str) -> Path:
        """Returns where an image is."""
        return release.image_path(folder, name)

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
        records = self.read(folder)
        if self.partial:
            records = self._with_image(folder, records)
        splits = list(dict.fromkeys(record["split"] for record in records))
        if self.builder_config.name != "images":
            records = [record for record in records if self.asked(record)]
            self._say(records, self._digests(folder, records))
            of_split = {split: [_question(r) for r in records if r["split"] == split] for split in splits}
            return {split: self._generate_examples(of) for split, of in of_split.items() if of}
        # An image that several splits have is stored in the first of them.
        first: dict[str, Record] = {}
        for record in sorted(records, key=lambda r: splits.index(r["split"])):
            first.setdefault(record["image_name"], record)
        named: dict[str, list[tuple[str, Record]]] = {split: [] for split in splits}
        for name, record in first.items():
            named[record["split"]].append((str(self.image_path(folder, name)), record))
        named = {split: of for split, of in named.items() if of}
        self.info.metadata["image_ids"] |= {split: [r["image_id"] for _, r in of] for split, of in named.items()}
        made = checks.picture_examples(self.name, named, _image, self.ADVICE, self.workers)
        return {split: self._generate_examples(examples) for split, examples in made.items()}

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)

    def _with_image(self, folder: Path, records: list[Record]) -> list[Record]:
        """Those whose image is there.

        Raises:
          DataError: there is none.
        """
        names = {record["image_name"] for record in records}
        there = {name for name in names if self.image_path(folder, name).is_file()}
        kept = [record for record in records if record["image_name"] in there]
        if len(there) < len(names):
            missing, questions = len(names) - len(there), len(records) - len(kept)
            logging.warning(
                "%s: %d images are not there; built without their %d questions", self.name, missing, questions
            )
        checks.filled_splits(self.name, {"all": kept}, "no question has its image", partial=False)
        return kept

    def _digests(self, folder: Path, records: list[Record]) -> dict[str, bytes]:
        """The digest of each image's file, once all of them are whole.

        Raises:
          DataError: lists the images that are missing or damaged.
        """
        names = dict.fromkeys(record["image_name"] for record in records)
        paths = {name: self.image_path(folder, name) for name in names}
        faults: list[str] = []
        checks.whole_pictures(self.name, paths.values(), faults, self.workers)
        if faults:
            raise checks.error_of(f"{self.name}: {len(faults)} bad file(s), nothing was built", faults, self.ADVICE)
        return {name: release.digest(checks.read_bytes(path)) for name, path in paths.items()}

    def _say(self, records: list[Record], digests: dict[str, bytes]) -> None:
        """Prints what is worth knowing before training."""
        for line in (*release.summary(records), *(f"leak: {line}" for line in release.leaks(records, digests))):
            print(f"{self.name}: {line}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Release:
    """A release that has a list of questions for each split, and a folder of images.

    Attributes:
      home: Where it is downloaded.
      lists: Split -> where its list may lie.
      images: The folder of images, which has folders of files.
      folders: Where lists and images may lie below the folder of the files; "" is that folder itself.
      entries: Reads the entries of a list, or raises a DataError.
      fields: What is read of an entry.
      record: (number of the question, split, entry) -> its record, as of `table.release.record`.
    """

    home: str
    lists: Mapping[str, Sequence[str]]
    images: str
    folders: Sequence[str]
    entries: Callable[[Path], list[Any]]
    fields: Mapping[str, checks.Kind]
    record: Callable[[int, str, Record], Record]

    def list_of(self, split: str) -> ManualFile:
        """The list of a split."""
        return ManualFile(tuple(above + name for above in self.folders for name in self.lists[split]), self.home)

    def needed(self, *, partial: bool) -> list[ManualFile]:
        """All lists and the images; of a part, one of the lists."""
        listed = [self.list_of(split) for split in self.lists]
        if partial:
            listed = [ManualFile(tuple(path for file in listed for path in file.paths), self.home, "Of any split.")]
        paths = tuple(f"{above}{self.images}/*/*" for above in self.folders)
        return [*listed, ManualFile(paths, self.home, f"The folder {self.images} of the release.")]

    def read(self, name: str, folder: Path, *, partial: bool) -> list[Record]:
        """The questions of all splits; of a part, of those whose list is there.

        Raises:
          DataError: Lists all entries that are not as they should be.
        """
        faults: list[str] = []
        records: list[Record] = []
        for split in self.lists:
            file = self.list_of(split)
            if partial and file.find(folder) is None:
                continue
            path = file.require(folder)
            for entry in checks.checked_rows(self.entries(path), self.fields, str(path), faults, row="entry"):
                records.append(self.record(len(records), split, entry))
        if faults:
            raise checks.error_of(f"{name}: {len(faults)} fault(s)", faults, "Fetch the lists again.")
        return release.joined(records)

    def image_path(self, folder: Path, name: str) -> Path:
        """Where an image is, whatever the case of its name."""
        places = [folder / above / self.images / name for above in self.folders]
        return next((path for path in map(find_file, places) if path.exists()), places[0])


class QuestionLists(QuestionTable, skip_registration=True):  # type: ignore[call-arg]
    """Builder of such a release."""

    release: ClassVar[Release]

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the lists and the images."""
        return self.release.needed(partial=self.partial)

    def read(self, folder: Path) -> list[Record]:
        """Returns the questions; errors as of `Release.read`."""
        return self.release.read(self.name, folder, partial=self.partial)

    def image_path(self, folder: Path, name: str) -> Path:
        """Returns where an image is."""
        return self.release.image_path(folder, name)


def _question(record: Record) -> Record:
    kept = ("image_id", "image_name", "question_id", "question", "answers", "multiple_choice_answer")
    return {name: record[name] for name in (*kept, "question_type", "answer_type", "open_closed", "patient")}


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
        "organ": 0,  # such data sets say nothing of it
    }
