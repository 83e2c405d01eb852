"""Builder of ImageCLEF VQA-Med 2019, 2020 and 2021, and of SYSU-HCP's mixture; README.md beside it describes them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.data.med_text import DiseaseList
from jaxvqa.data.pictures import Facts
from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.manual import ManualFile
from tfds_builders.vqa_med import release
from tfds_builders.vqa_med.release import Record

Picture = tuple[Path, Facts]

_PARTS = "A part of 2019's release is also --config=sample_questions_2019,sample_images_2019."

_BY_YEAR: dict[str, Mapping[str, Sequence[str]]] = {
    str(year): {part.split: (name,) for name, part in release.PARTS.items() if part.year == year}
    for year in (2019, 2020, 2021)
}
_BY_YEAR["2021"] = {"train": release.TRAIN_2021, **_BY_YEAR["2021"]}
_SPLITS: Mapping[str, Mapping[str, Sequence[str]]] = {**_BY_YEAR, "sysu_hcp": release.SYSU}
_OPTIONAL: Mapping[str, Sequence[str]] = {"2021": ("train",), "sysu_hcp": release.SYSU_OPTIONAL}


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which questions or images.

    Attributes:
      source: A year, or "sysu_hcp".
      part: questions, images, or captions: the answers about an image as one text.
      sample: Leave out what has no picture, as for a part of a release.
    """

    source: str = "2019"
    part: str = "questions"
    sample: bool = False


def _configs() -> list[Config]:
    parts = [(source, part, False) for source in _SPLITS for part in ("questions", "images")]
    parts += [("2019", "captions", False), *(("2019", part, True) for part in ("questions", "images", "captions"))]
    return [
        Config(
            name=f"{'sample_' if sample else ''}{part}_{source}",
            description=f"{part.capitalize()}, {source}{', those with an image' if sample else ''}.",
            source=source,
            part=part,
            sample=sample,
        )
        for source, part, sample in parts
    ]


class Builder(tfds.core.GeneratorBasedBuilder):
    """VQA-Med: `questions_YEAR` and `images_YEAR` of each year, `captions_2019`, and those of SYSU-HCP's training."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = _configs()
    DEFAULT_CONFIGS = tuple(config.name for config in BUILDER_CONFIGS if not config.sample)
    EXPECTED_COUNTS = {  # noqa: RUF012
        "questions_2019": {"train": 12_792, "val": 2_000, "test": 500},
        "images_2019": {"train": 3_200, "val": 500, "test": 500},
        **{f"{kind}_2020": {"train": 4_000, "val": 500, "test": 500} for kind in ("questions", "images")},
        **{f"{kind}_2021": {"train": 4_500, "val": 500, "test": 500} for kind in ("questions", "images")},
        **{f"{kind}_sysu_hcp": {"val": 500, "test": 500} for kind in ("questions", "images")},
    }
    OPTIONAL_SPLITS = dict.fromkeys(("questions_2021", "images_2021"), _OPTIONAL["2021"])
    PARTS = _PARTS

    workers = 1
    """Threads that read pictures; the build command sets it."""

    partial = False
    """Whether to leave out what has no picture, as `sample_` configs do; the build command sets it."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "See tfds_builders/vqa_med/README.md for the files and their places."

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns the text files that the chosen config needs."""
        needed = _SPLITS[self.builder_config.source].items()
        optional = _OPTIONAL.get(self.builder_config.source, ())
        return [
            file for split, names in needed if split not in optional for n in names for file in release.PARTS[n].files
        ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        text = features.Text()
        config = self.builder_config
        columns: dict[str, Any] = {"image_id": np.int64, "image_name": text}
        metadata: dict[str, Any] = {}
        if config.part == "captions":
            columns |= {"question_id": np.int64, "caption": text, "year": np.int32, "member": text}
        elif config.part == "images":
            metadata["image_ids"] = {}
            columns |= {"image": features.Image(encoding_format="jpeg"), "image_w": np.int32, "image_h": np.int32}
        else:
            columns |= {
                "question_id": np.int64,
                "question": text,
                "answers": features.Sequence(text),
                "multiple_choice_answer": text,
                "question_type": text,
                "answer_type": text,
                "open_closed": text,
                "year": np.int32,
                "member": text,
            }
            if config.source == "sysu_hcp":
                columns["label"] = np.int64
                metadata["class_names"] = []
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns),
            homepage="https://www.imageclef.org/2021/medical/vqa",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(metadata) if metadata else None,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config, manual_dir = self.builder_config, Path(dl_manager.manual_dir)
        splits, classes, images = read_splits(
            config.source,
            manual_dir,
            pictures=config.part == "images" or config.sample or self.partial,
            sample=config.sample or self.partial,
            workers=self.workers,
        )
        if config.part == "captions":
            captions = {split: release.captions(records) for split, records in splits.items()}
            return {split: self._generate_examples(records) for split, records in captions.items() if records}
        if config.part == "questions":
            if classes is not None:
                self.info.metadata["class_names"] = list(classes.answers)
            return {split: self._generate_examples(records) for split, records in splits.items()}
        generators = {}
        for split, records in splits.items():
            names = dict.fromkeys(record["image_name"] for record in records)
            ids = [int(name.removeprefix("synpic")) for name in names]
            self.info.metadata["image_ids"][split] = ids
            generators[split] = self._generate_examples(image_examples(zip(ids, names, strict=True), images))
        return generators

    def _generate_examples(self, examples: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(examples)


def read_splits(
    source: str, manual_dir: Path, *, pictures: bool, sample: bool = False, workers: int = 1
) -> tuple[dict[str, list[Record]], DiseaseList | None, dict[str, Picture]]:
    """Reads the questions of each split, and finds the pictures.

    Args:
      source: A year, or "sysu_hcp".
      manual_dir: Folder of the files.
      pictures: Whether to find and check them.
      sample: Leave out questions whose picture is not there.
      workers: Threads that decode pictures.

    Returns:
      Records by split; the classes (of "sysu_hcp" only); image name -> file and what it holds.

    Raises:
      DataError: Text files are of another form, pictures are missing or damaged, or a split is empty; one message names all
        of it.
    """
    plan = {
        split: _present(split, names, manual_dir, whole=source != "sysu_hcp")
        if split in _OPTIONAL.get(source, ())
        else list(names)
        for split, names in _SPLITS[source].items()
    }
    names = [name for names in plan.values() for name in names]
    faults: list[str] = []
    parts = {name: release.read_part(release.PARTS[name], manual_dir, faults) for name in names}
    release.number_questions(parts)
    images = _pictures(parts, manual_dir, faults, sample, workers) if pictures else {}
    classes = _classes(parts, manual_dir, faults) if source == "sysu_hcp" else None
    if faults:
        raise checks.error_of(
            f"vqa_med, {source}: {len(faults)} fault(s) in {manual_dir}",
            faults,
            f"Put the files there as tfds_builders/vqa_med/README.md says, or build what there is: --partial. {_PARTS}",
        )
    joined = {split: [record for name in names for record in parts[name]] for split, names in plan.items()}
    splits = {split: joined[split] for split in joined if plan[split]}
    if classes is not None:
        splits = {split: _labelled(split, records, classes) for split, records in splits.items()}
    because = (
        "none of its questions has a picture"
        if sample
        else "none of its questions has an answer of the list of classes"
    )
    checks.filled_splits(f"vqa_med, {source}", splits, because, partial=sample or source == "sysu_hcp")
    splits = {split: records for split, records in splits.items() if records}
    for records in parts.values():
        for record in records:
            record.pop("raw_answer")
    return splits, classes, images


def _pictures(
    parts: Mapping[str, list[Record]], manual_dir: Path, faults: list[str], sample: bool, workers: int
) -> dict[str, Picture]:
    """Finds the pictures of the parts; without `sample`, missing ones are faults, else their questions are taken out."""
    names = {name: [record["image_name"] for record in records] for name, records in parts.items()}
    found = release.find_images(
        (image for images in names.values() for image in images), (release.PARTS[n] for n in names), manual_dir
    )
    for name, records in parts.items():
        absent = release.missing_images(names[name], found, release.PARTS[name])
        if sample and absent:
            logging.warning("vqa_med: %s; their questions are left out", absent[0])
            records[:] = [record for record in records if record["image_name"] in found]
        else:
            faults += absent
    whole = checks.whole_pictures("vqa_med", found.values(), faults, workers)
    return {name: (path, whole[path]) for name, path in found.items() if path in whole}


def _present(split: str, names: Sequence[str], manual_dir: Path, *, whole: bool) -> list[str]:
    """The parts of an optional split that are there; with `whole` all of them or none."""
    absent = [name for name in names if release.PARTS[name].rows.find(manual_dir) is None]
    if not absent:
        return list(names)
    what = "left out" if whole else "built without"
    logging.warning("vqa_med: no files of %s; the split %s is %s", " and ".join(absent), split, what)
    return [] if whole else [name for name in names if name not in absent]


def _classes(parts: Mapping[str, Sequence[Record]], manual_dir: Path, faults: list[str]) -> DiseaseList | None:
    """The original's list where its file is there, else one by its rule."""
    path = release.DISEASES.find(manual_dir)
    if path is None:
        return DiseaseList.build(r["raw_answer"] for name in release.TRAIN_2021 for r in parts[name])
    try:
        return DiseaseList.from_file(path)
    except DataError as error:
        faults.append(str(error))
        return None


def _labelled(split: str, records: Sequence[Record], classes: DiseaseList) -> list[Record]:
    """Gives records the `label` of their first answer that is a class, -1 without one; training splits keep the others."""
    for record in records:
        answers = [record["raw_answer"], *record["answers"]]
        asked = record["question_type"] == "abnormality"
        labels = [label for label in map(classes.label, answers) if label >= 0] if asked else []
        record["label"] = labels[0] if labels else -1
    if split not in release.SYSU_TRAINED:
        return list(records)
    kept = [record for record in records if record["label"] >= 0]
    logging.info(
        "vqa_med: %d of %d questions of %s have one of %d classes", len(kept), len(records), split, len(classes)
    )
    return kept


def image_examples(images: Iterable[tuple[int, str]], files: Mapping[str, Picture]) -> Iterator[Record]:
    """Yields the pictures, bytes as they are.

    Args:
      images: Ids and names.
      files: Image name -> file and what it holds.
    """
    for image_id, name in images:
        path, (_, width, height) = files[name]
        content = checks.read_bytes(path)
        yield {"image_id": image_id, "image_name": name, "image": content, "image_w": width, "image_h": height}
