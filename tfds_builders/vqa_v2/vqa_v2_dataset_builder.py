"""Builder of VQA v2 from the real files; README.md says which, and where they belong."""

import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.checks import Kind
from tfds_builders.manual import PICTURE_ENDINGS, ManualFile
from tfds_builders.vqa_v2 import release
from tfds_builders.vqa_v2.region_files import FEATURE_WIDTH, has_boxes, image_id_of, read_region_file

OFFICIAL_COUNTS = {"train": 443_757, "val": 214_354, "test": 447_793, "test_dev": 107_394}
"""Questions of the official splits. A build of fewer is a build of a part, and says so."""

_ADVICE = "Get them again, or move them away if no question needs them."

Example = dict[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder):
    """VQA v2: `questions`, and on the image side `features` and `images`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # TFDS's own form
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="questions", description="Questions and their answers."),
        tfds.core.BuilderConfig(name="features", description="Region features of the pictures, float16."),
        tfds.core.BuilderConfig(name="images", description="The pictures, JPEG bytes as published."),
    ]
    DEFAULT_CONFIGS = ("questions", "features")
    OFFERS_BEAM = True
    MANUAL_DOWNLOAD_INSTRUCTIONS = "See tfds_builders/vqa_v2/README.md for the files and their places."

    use_beam = False
    """Whether to return Beam transforms, so that a cluster reads the pictures' files."""

    workers = 1
    """Threads that read pictures' files; the build command sets it."""

    partial = False
    """Whether splits may be empty; the build command sets it."""

    def manual_files(self) -> Iterable[ManualFile]:
        """Returns what the chosen config needs: at least one whole split."""
        return [_AnySplit(paths=(), url="", config=self.builder_config.name)]

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Text(), tfds.features.Scalar
        side: dict[str, Any] = {"image_id": number(np.int64), "image_w": number(np.int32), "image_h": number(np.int32)}
        features: dict[str, dict[str, Any]] = {
            "questions": {
                "question_id": number(np.int64),
                "image_id": number(np.int64),
                "question": text,
                "answers": tfds.features.Sequence(text),
                "multiple_choice_answer": text,
                "question_type": text,
                "answer_type": text,
            },
            "features": side
            | {
                "features": tfds.features.Tensor(shape=(None, FEATURE_WIDTH), dtype=np.float16, encoding="bytes"),
                "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32, encoding="bytes"),
            },
            "images": side | {"image": tfds.features.Image(encoding_format="jpeg")},
        }
        config = self.builder_config.name
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features[config]),
            homepage="https://visualqa.org",
            disable_shuffling=True,
            metadata=None if config == "questions" else tfds.core.MetadataDict(image_ids={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir = Path(dl_manager.manual_dir)
        config = self.builder_config.name
        if config == "questions":
            splits = question_splits(manual_dir)
            _log_absent(config, release.QUESTIONS, splits)
            subsets = {split: subset for split, (_, subset) in splits.items() if subset is not None}
            if subsets:
                lists = _read_subsets(manual_dir)
                wanted = {split: lists[subset] for split, subset in subsets.items()}
                checks.filled_splits("vqa_v2", wanted, f"its list in {release.SUBSETS} is empty", partial=self.partial)
                splits = {split: files for split, files in splits.items() if wanted.get(split, True)}
            return {
                split: self._generate_examples(functools.partial(question_examples, manual_dir, source, subset))
                for split, (source, subset) in splits.items()
            }
        sources = picture_sources(manual_dir, config)
        _log_absent(config, _PICTURES[config].files, sources)
        ids: dict[str, list[int]] = {split: [] for split in sources}
        self.info.metadata["image_ids"] |= ids
        if self.use_beam:
            seen: dict[int, str] = {}
            return {split: _beam_examples(path, config, ids[split], seen) for split, path in sources.items()}
        examples = picture_examples(sources, config, self.workers)
        return {
            split: self._generate_examples(functools.partial(_noting_ids, examples[split], ids[split]))
            for split in sources
        }

    def _generate_examples(self, examples: Callable[[], Iterable[Example]]) -> Iterator[tuple[int, Example]]:
        yield from enumerate(examples())


# The questions.


def question_splits(manual_dir: Path) -> dict[str, tuple[str, str | None]]:
    """Returns {split to build: (split whose files it is read from, key of `splits.json` or None for all)}.

    Raises:
        DataError: no split is there, or one lacks its question or annotation file; one message names all of them.
    """
    found: dict[str, tuple[str, str | None]] = {}
    missing = []
    for split, questions in release.QUESTIONS.items():
        needed = [questions, *([release.ANNOTATIONS[split]] if split in release.ANNOTATIONS else [])]
        there = [release.find_json(manual_dir, file) is not None for file in needed]
        if all(there):
            found[split] = (split, None)
        elif any(there):
            missing += [file for file, is_there in zip(needed, there, strict=True) if not is_there]
    if not found and not missing:
        missing = [table[split] for split in ("train", "val") for table in (release.QUESTIONS, release.ANNOTATIONS)]
    if missing:
        raise _missing_error(manual_dir, "questions", missing, "A split needs all its files")
    if (manual_dir / release.SUBSETS).is_file():
        found = _with_subsets(manual_dir, found)
    return found


def _with_subsets(manual_dir: Path, found: dict[str, tuple[str, str | None]]) -> dict[str, tuple[str, str | None]]:
    """Replaces the train split by its parts: each list of `splits.json` is a split; `minival` is called val."""
    subsets = _read_subsets(manual_dir)
    parts = {"val" if name == "minival" else name: name for name in subsets}
    if "train" not in found or "train" not in parts or set(parts) & set(found) - {"train"}:
        raise DataError(
            f"{manual_dir / release.SUBSETS} divides the train questions into {sorted(parts)}, but the folder holds the "
            f"files of {sorted(found)}. Move it away, or the files of the splits that it makes."
        )
    return {split: ("train", name) for split, name in parts.items()} | {
        split: files for split, files in found.items() if split != "train"
    }


def _read_subsets(manual_dir: Path) -> dict[str, list[int]]:
    """Reads `splits.json`."""
    path, faults = manual_dir / release.SUBSETS, list[str]()
    subsets = release.read_json(manual_dir, ManualFile((release.SUBSETS,), ""))
    if not isinstance(subsets, dict) or not subsets or not all(isinstance(ids, list) for ids in subsets.values()):
        raise DataError(f"{path}: expected {{split: [question ids]}}.")
    found = {}
    for name, ids in subsets.items():
        if not re.fullmatch(r"(?!all$)\w+", name):
            faults.append(f"{name!r} cannot be a split's name; expected letters, digits and _, and not all")
        rows = checks.checked_rows(
            ([number] for number in ids), {"id": checks.whole()}, f"{path}, {name}", faults, "entry"
        )
        found[name] = [row["id"] for row in rows]
    if faults:
        raise checks.error_of(f"{path}: {len(faults)} fault(s)", faults, "Mend the file, or move it away.")
    return found


def question_examples(manual_dir: Path, source: str, subset: str | None) -> Iterator[Example]:
    """Yields the questions of a split.

    Training splits follow the annotation file, whose entries also give the image id (docs/originals/rwsan.md, section 4.5);
    val and the test splits follow the question file, which is the order of a result file.

    Args:
        manual_dir: Folder of the files.
        source: Split whose files are read, a key of `release.QUESTIONS`.
        subset: List of `splits.json` to keep; None keeps all.

    Raises:
        DataError: entries lack a field, or questions and annotations do not belong together.
    """
    faults: list[str] = []
    questions = _by_id(_entries(manual_dir, release.QUESTIONS[source], "questions", _QUESTION, faults))
    has_annotations = source in release.ANNOTATIONS
    annotations: dict[int, Example] = {}
    if has_annotations:
        fields = _ANNOTATION_OF_VG if source == "vg" else _ANNOTATION
        annotations = _by_id(_entries(manual_dir, release.ANNOTATIONS[source], "annotations", fields, faults))
    if faults:
        raise checks.error_of(
            f"vqa_v2: {len(faults)} fault(s) in the files of {source}, nothing was built",
            faults,
            "Download the files again, or mend or take out these entries in both.",
        )
    if has_annotations:
        _check_pairs(questions, annotations, source)
    count = len(annotations) if has_annotations else len(questions)
    official = OFFICIAL_COUNTS.get(source, count)
    if subset is None and count != official:
        logging.warning("vqa_v2: %s holds %d of the official %d questions.", source, count, official)
    order: Iterable[int] = annotations if source in ("train", "vg") else questions
    if subset is not None:
        keep = set(_read_subsets(manual_dir)[subset])
        unknown = keep - set(order)
        if unknown:
            raise DataError(
                f"{manual_dir / release.SUBSETS}: {len(unknown)} question ids of {subset!r} are not in the {source} "
                f"files, such as {sorted(unknown)[:5]}."
            )
        order = [question_id for question_id in order if question_id in keep]
    for question_id in order:
        question = questions[question_id]
        annotation = annotations.get(question_id, {})
        yield {
            "question_id": question_id,
            "image_id": (annotation or question)["image_id"],
            "question": question["question"],
            "answers": annotation.get("answers", []),
            "multiple_choice_answer": annotation.get("multiple_choice_answer", ""),
            "question_type": annotation.get("question_type", ""),
            "answer_type": annotation.get("answer_type", ""),
        }


_IDS = {"question_id": checks.whole(), "image_id": checks.whole()}
_QUESTION = {**_IDS, "question": checks.TEXT}
_ANNOTATION = {
    **_IDS,
    "answers": checks.list_of("answer", checks.ANY_TEXT),  # an annotator may have had nothing to say
    "multiple_choice_answer": checks.TEXT,
    "question_type": checks.ANY_TEXT.or_else(""),
    "answer_type": checks.ANY_TEXT.or_else(""),
}
_ANNOTATION_OF_VG = _ANNOTATION | {"multiple_choice_answer": checks.TEXT.or_else("")}  # of use to no answer list


def _entries(
    manual_dir: Path, file: ManualFile, key: str, fields: Mapping[str, Kind], faults: list[str]
) -> list[Example]:
    """Reads the list `key` of a JSON file; entries that are not as `fields` say are added to the faults."""
    content = release.read_json(manual_dir, file)
    path = release.find_json(manual_dir, file)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected an object with a list {key!r} that is not empty.")
    before = len(faults)
    rows = checks.checked_rows(entries, fields, str(path), faults, f"{key}, entry")
    faults += checks.twice((row["question_id"] for row in rows), "question ids", f"{path}, {key}")
    return rows if len(faults) == before else []


def _by_id(entries: list[Example]) -> dict[int, Example]:
    """Returns the entries by question id, in their order."""
    return {entry["question_id"]: entry for entry in entries}


def _check_pairs(questions: dict[int, Example], annotations: dict[int, Example], split: str) -> None:
    """Raises when an annotation has no question, or a question no annotation."""
    faults = [
        f"{len(ids)} {what}, such as {sorted(ids)[:5]}"
        for ids, what in (
            (annotations.keys() - questions.keys(), "annotations without their question"),
            (questions.keys() - annotations.keys(), "questions without their annotation"),
        )
        if ids
    ]
    if faults:
        raise DataError(f"The question and annotation files of {split} do not belong together: {'; '.join(faults)}.")


# The image side.


def _features_example(name: str, content: bytes) -> Example:
    """Makes a record of config `features` from a region feature file."""
    try:
        features, boxes, image_w, image_h = read_region_file(io.BytesIO(content))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return {
        "image_id": image_id_of(name),
        "features": features,
        "boxes": boxes,
        "image_w": image_w,
        "image_h": image_h,
    }


def _image_example(name: str, content: bytes) -> Example:
    """Makes a record of config `images` from a JPEG file."""
    facts = checks.whole_picture(content, name, ("JPEG",))
    return {"image_id": image_id_of(name), "image": content, "image_w": facts.width, "image_h": facts.height}


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """What an image-side config reads: its files by split, their endings, and how a record is made of one."""

    files: dict[str, ManualFile]
    suffixes: tuple[str, ...]
    example: Callable[[str, bytes], Example]


_PICTURES = {
    "features": _Pictures(release.FEATURES, (".npz",), _features_example),
    "images": _Pictures(release.IMAGES, PICTURE_ENDINGS, _image_example),
}


def picture_sources(manual_dir: Path, config: str) -> dict[str, Path]:
    """Returns {split: folder or archive} of an image-side config.

    Raises:
        DataError: none is there.
    """
    files = _PICTURES[config].files
    found = {split: release.find_pictures(manual_dir, file) for split, file in files.items()}
    sources = {split: path for split, path in found.items() if path is not None}
    if not sources:
        raise _missing_error(manual_dir, config, list(files.values()), "At least one of these is needed")
    return sources


def picture_examples(sources: Mapping[str, Path], config: str, workers: int = 1) -> dict[str, Iterator[Example]]:
    """Returns the records of each picture split; once one is bad, all bad files of all splits are named.

    Args:
        sources: Folder or archive of each split.
        config: "features" or "images".
        workers: Threads.
    """
    pictures = _PICTURES[config]
    splits = {split: release.read_members(source, pictures.suffixes) for split, source in sources.items()}
    return checks.picture_examples(
        f"vqa_v2/{config}", splits, lambda name, read: pictures.example(name, read()), _ADVICE, workers
    )


def _noting_ids(examples: Iterable[Example], ids: list[int]) -> Iterator[Example]:
    """Passes records on, and adds their image ids to a list; logs how many have features but no boxes."""
    unplaced = 0
    for example in examples:
        ids.append(example["image_id"])
        unplaced += "boxes" in example and not has_boxes(example)
        yield example
    if unplaced:
        logging.warning(
            "vqa_v2/features: %d of %d files have no bbox, image_w or image_h: Flamingo cannot be trained on these regions, "
            "and no explanation can show them; RWSAN can.",
            unplaced,
            len(ids),
        )


def _check_new(image_id: int, name: str, seen: dict[int, str]) -> None:
    """Raises when an image id was met before; remembers it otherwise."""
    if image_id in seen:
        raise DataError(f"{name}: image id {image_id} is also that of {seen[image_id]}")
    seen[image_id] = name


def _beam_examples(source: Path, config: str, ids: list[int], seen: dict[int, str]) -> Any:
    """Returns a Beam transform that makes the same records; `ids` is filled at once, from the file names."""
    beam = tfds.core.lazy_imports.apache_beam
    pictures = _PICTURES[config]
    members = release.list_members(source, pictures.suffixes)
    faults = [] if members else [f"{source}: holds no {' or '.join(pictures.suffixes)} file"]
    for member in members:
        try:
            ids.append(image_id_of(member.name or member.path))
            _check_new(ids[-1], str(member), seen)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise checks.error_of(f"vqa_v2: {len(faults)} bad file(s), nothing was built", faults, _ADVICE)
    return beam.Create(list(enumerate(members))) | beam.Map(functools.partial(_beam_example, config))


def _beam_example(config: str, keyed: tuple[int, release.Member]) -> tuple[int, Example]:
    """Makes one keyed record in a Beam worker."""
    key, member = keyed
    return key, _PICTURES[config].example(str(member), member.read())


# Messages.


@dataclasses.dataclass(frozen=True)
class _AnySplit(ManualFile):
    """Stands for "at least one whole split", which a list of needed files cannot say.

    Attributes:
        config: The config to be built.
    """

    config: str = ""

    def find(self, manual_dir: str | os.PathLike[str]) -> Path | None:
        """Returns `manual_dir` if a split can be built from it.

        Raises:
            DataError: none can, or files of a split are missing.
        """
        folder = Path(manual_dir)
        if self.config == "questions":
            question_splits(folder)
        else:
            picture_sources(folder, self.config)
        return folder


def _missing_error(manual_dir: Path, config: str, files: list[ManualFile], rule: str) -> DataError:
    """Names missing files, their places and their addresses."""
    lines = [f"vqa_v2/{config}: files are missing in {manual_dir}. {rule}:"]
    for file in files:
        lines.append(f"  {' or '.join(file.paths)}\n      from {file.url}" + (f" ({file.note})" if file.note else ""))
    lines.append("Put them there, or name the folder that holds them: --manual_dir=DIR.")
    return DataError("\n".join(lines))


def _log_absent(config: str, known: Iterable[str], found: Iterable[str]) -> None:
    """Says which splits are not built."""
    absent = [split for split in known if split not in set(found)]
    if absent:
        logging.warning("vqa_v2/%s: no files for %s; these splits are not built.", config, ", ".join(absent))
