"""Random access to built data sets: questions, and the images they ask about, joined by image id.

A data set is a TFDS builder with its parts apart (`questions`, `features`, `images`; see docs/adding_a_data_set.md),
since many questions share an image: copying 400 KB of region features into each would multiply the size on disk.
"""

import functools
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvqa.data.pipeline import Stage, Together
from jaxvqa.errors import ConfigError, DataError, nearest


def data_dir(folder: str = "") -> Path:
    """Where built data sets lie: `folder`, or TFDS's own place (`TFDS_DATA_DIR`, else ~/tensorflow_datasets)."""
    return Path(folder or tfds.core.constants.DATA_DIR).expanduser()


class Records:
    """The records of one part of a data set ("phantom_vqa/questions"), over one or several splits ("train+val").

    Texts come as str. Pictures stay encoded: a transform decodes them where their size is known.
    """

    def __init__(self, part: str, splits: str, folder: str = "", cache_mib: float = 0):
        """Opens the part's newest built version.

        Args:
          part: data set and config, as "phantom_vqa/questions".
          splits: one or several, joined by "+".
          folder: where data sets are built (see `data_dir`).
          cache_mib: keeps decoded records in memory if the splits take at most that many MiB on disk: decoding costs far
            more than a small data set's memory.

        Raises:
          DataError: when it is not built (says the command that builds it), is stored in a format without random access,
            or has no such split.
        """
        self.part, self.splits = part, splits
        self.path = _newest_version(part, data_dir(folder))
        builder = tfds.builder_from_directory(self.path)
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(
                f"{self.path} is stored as {builder.info.file_format.value}, which cannot be read in any order; expected "
                f"array_record. Build it anew: python -m tfds_builders.build {part.split('/')[0]} --overwrite, or "
                "tfds build --file_format=array_record"
            )
        known = sorted(builder.info.splits)
        for split in splits.split("+"):
            if split.partition("[")[0] not in known:
                raise DataError(f"{part} has no split {split!r}; it has {', '.join(known)}.{nearest(split, known)}")
        decoders = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._texts = {name for name, feature in builder.info.features.items() if _is_text(feature)}
        self._source = builder.as_data_source(splits, decoders=decoders)
        self.metadata: Mapping[str, Any] = builder.info.metadata or {}
        size = sum(builder.info.splits[split.partition("[")[0]].num_bytes for split in splits.split("+"))
        self._kept: dict[int, dict[str, Any]] | None = {} if size <= cache_mib * 2**20 else None

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The records at these positions; one call for many is several times faster than one for each.

        The records may be shared with later calls: they are to be read, not changed.

        Raises:
          DataError: names the file's folder and the record that cannot be read.
        """
        positions = [int(index) for index in indices]
        kept = self._kept
        if kept is None:
            return self._decode(positions)
        absent = [position for position in dict.fromkeys(positions) if position not in kept]
        if absent:
            kept.update(zip(absent, self._decode(absent), strict=True))
        return [kept[position] for position in positions]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process fills a cache of its own.
        return self.__dict__ | {"_kept": None if self._kept is None else {}}

    def _decode(self, positions: list[int]) -> list[dict[str, Any]]:
        try:
            records = self._source.__getitems__(positions)
            return [
                {name: _decode_text(value) if name in self._texts else value for name, value in record.items()}
                for record in records
            ]
        except Exception as error:
            raise self._damaged(positions, error) from error

    def _damaged(self, positions: list[int], error: Exception) -> DataError:
        for position in positions:
            try:
                self._source[position]
            except Exception as single:
                positions, error = [position], single
                break
        which = ", ".join(map(str, positions[:10]))
        return DataError(
            f"Record {which} of {self.part} ({self.splits}) in {self.path} cannot be read: {error}. The file is damaged; "
            f"build it anew: python -m tfds_builders.build {self.part.split('/')[0]} --overwrite"
        )


def _not_built(parts: Sequence[str], folder: Path) -> DataError:
    """Says the commands that build what is missing, then what there is."""
    from tfds_builders.build import build_command  # only here: it brings the builders' dependencies along

    configs: dict[str, list[str]] = {}
    for part in dict.fromkeys(parts):
        name, _, config = part.partition("/")
        configs.setdefault(name, []).append(config)
    commands = [build_command(name, list(filter(None, of)), folder) for name, of in configs.items()]
    built = sorted({str(p.parent.parent.relative_to(folder)) for p in folder.glob("*/*/*/dataset_info.json")})
    what = "data set" if len(parts) == 1 else "data sets"
    return DataError(
        f"The {what} {' and '.join(dict.fromkeys(parts))} {'is' if len(parts) == 1 else 'are'} not built. Build:\n  "
        + "\n  ".join(commands)
        + f"\nBuilt in {folder}: {', '.join(built) or 'nothing'}."
    )


def _newest_version(part: str, folder: Path) -> Path:
    versions = [info.parent for info in (folder / part).glob("*/dataset_info.json")]
    if not versions:
        raise _not_built([part], folder)
    return max(versions, key=lambda path: tuple(int(n) if n.isdigit() else -1 for n in path.name.split(".")))


def _is_text(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), tfds.features.Text)


def _decode_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else [item.decode() for item in value]


class VqaSource:
    """Examples of visual question answering: a question record with its image's record, by position.

    An example has the question's features (`question_id`, `image_id`, `question`, `answers`, …) and, unless `images` is
    empty, the image's (`features`, `boxes`, `image`, …).
    """

    def __init__(
        self,
        questions: Records,
        images: Sequence[Records] = (),
        *,
        limit: int = 0,
        question_types: Sequence[str] = (),
        keep: Callable[[int], bool] | None = None,
    ):
        """Joins questions to images.

        Args:
          questions: the questions, whose order is the source's order.
          images: one `Records` for each split of the image side; none for a run on the text alone.
          limit: keeps the first that many questions; 0 keeps all.
          question_types: keeps questions whose `question_type` is one of these, before `limit` counts; none keeps all.
          keep: whether the questions about an image of that id are kept, before `limit` counts; None keeps all.

        Raises:
          DataError: when the image side carries no index of its image ids, or no question is kept.
        """
        self.questions, self._images = questions, list(images)
        if question_types or keep:
            found = itertools.islice(_positions_of(questions, question_types, keep), limit or None)
            self._positions: Sequence[int] = list(found)
        else:
            self._positions = range(min(len(questions), limit or len(questions)))
        self._where: dict[int, tuple[int, int]] = {}
        for i, records in enumerate(self._images):
            ids = records.metadata.get("image_ids", {}).get(records.splits)
            if ids is None or len(ids) != len(records):
                raise DataError(
                    f"{records.part} ({records.splits}) in {records.path} carries no list of its image ids in metadata.json; "
                    f"build it anew: python -m tfds_builders.build {records.part.split('/')[0]} --overwrite"
                )
            self._where.update((int(image_id), (i, position)) for position, image_id in enumerate(ids))

    def __len__(self) -> int:
        return len(self._positions)

    def read_questions(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The questions' own features."""
        return self.questions.read([self._positions[int(index)] for index in indices])

    def read_images(self, image_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The images' features. An image that is asked for twice is read once.

        Raises:
          DataError: names the images that were not built.
        """
        missing = sorted({image_id for image_id in image_ids if image_id not in self._where})
        if missing:
            raise DataError(
                f"Images {missing[:10]} are in none of {', '.join(f'{r.part} ({r.splits})' for r in self._images)}: the "
                f"questions in {self.questions.path} ask about images that were not built."
            )
        found: dict[int, dict[str, Any]] = {}
        for i, records in enumerate(self._images):
            mine = [image_id for image_id in dict.fromkeys(image_ids) if self._where[image_id][0] == i]
            if mine:
                found.update(zip(mine, records.read([self._where[image_id][1] for image_id in mine]), strict=True))
        return [found[image_id] for image_id in image_ids]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at these positions: each question with its image."""
        questions = self.read_questions(indices)
        if not self._images:
            return questions
        images = self.read_images([int(question["image_id"]) for question in questions])
        return [image | question for image, question in zip(images, questions, strict=True)]

    def question(self, index: int) -> dict[str, Any]:
        """One question's own features."""
        return self.read_questions([index])[0]

    def image(self, image_id: int) -> dict[str, Any]:
        """One image's features."""
        return self.read_images([image_id])[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def all_questions(self, chunk: int = 1024) -> Iterator[dict[str, Any]]:
        """Every question in order, without images."""
        for start in range(0, len(self), chunk):
            yield from self.read_questions(range(start, min(start + chunk, len(self))))


def _positions_of(
    questions: Records, types: Sequence[str], keep: Callable[[int], bool] | None, chunk: int = 1024
) -> Iterator[int]:
    """Positions of the questions of these types (none: of all) about images that are kept, in order.

    Raises:
      DataError: there is none; names the types that there are.
    """
    seen: set[str] = set()
    kept = False
    for start in range(0, len(questions), chunk):
        positions = range(start, min(start + chunk, len(questions)))
        for position, question in zip(positions, questions.read(positions), strict=True):
            seen.add(question.get("question_type", ""))
            if types and question.get("question_type", "") not in types:
                continue
            if keep is None or keep(int(question["image_id"])):
                kept = True
                yield position
    if types and seen.isdisjoint(types):
        known = sorted(filter(None, seen))
        raise DataError(
            f"No question of {questions.part} ({questions.splits}) is of the type {' or '.join(map(repr, types))} "
            f"(config.data.question_types); its types are {', '.join(known) or 'not stated'}."
            + "".join(nearest(name, known) for name in types)
        )
    if not kept:
        raise DataError(
            f"config.data.held_out leaves no question of {questions.part} ({questions.splits}); the images are too few for it."
        )


HELD_OUT = "held_out"
"""The split of those examples of `config.data.train_split` that are not trained on: see `is_held_out`."""


def is_held_out(image_id: int, share: float) -> bool:
    """Whether an image is one of the share that `config.data.held_out` keeps from training: by its id, in any run the same."""
    return zlib.crc32(str(image_id).encode()) < share * 2**32


def _is_wanted(image_id: int, *, share: float, held_out: bool) -> bool:
    return is_held_out(image_id, share) == held_out


def open_vqa(config: Any, split: str) -> VqaSource:
    """Opens the questions of `split` with the images of all `config.image_splits`.

    Args:
      config: `config.data`: `dir`, `questions` and `images` (parts such as "vqa_v2/features"; empty for none),
        `image_splits` (names joined by "+"; empty for all that the part has), `limit`, `cache_mib`; and `question_types`,
        which may be missing or empty for all questions. With a share of images in `held_out`, 0 or missing for none, all
        questions about these are left out of the splits of `train_split`, and are the split `HELD_OUT`.
      split: question splits, joined by "+".
    """
    share = config.get("held_out", 0.0)
    keep: Callable[[int], bool] | None = None
    if share and (split == HELD_OUT or not set(split.split("+")).isdisjoint(config.train_split.split("+"))):
        keep = functools.partial(_is_wanted, share=share, held_out=split == HELD_OUT)
        split = config.train_split if split == HELD_OUT else split
    folder = data_dir(config.dir)
    parts = [part for part in dict.fromkeys((config.questions, config.images)) if part]
    if missing := [part for part in parts if not any((folder / part).glob("*/dataset_info.json"))]:
        raise _not_built(missing, folder)

    def records(part: str, splits: str) -> Records:
        stamp = (_newest_version(part, data_dir(config.dir)) / "dataset_info.json").stat().st_mtime_ns
        return _shared_records(part, splits, config.dir, config.cache_mib, stamp)

    images = []
    if config.images:
        splits = config.image_splits
        if not splits:
            info = json.loads((_newest_version(config.images, data_dir(config.dir)) / "dataset_info.json").read_text())
            splits = "+".join(s["name"] for s in info["splits"])
        images = [records(config.images, name) for name in splits.split("+")]
    types = tuple(config.get("question_types", ()))
    return VqaSource(records(config.questions, split), images, limit=config.limit, question_types=types, keep=keep)


def check_annotators(source: VqaSource, rule: str, looked_at: int = 256) -> None:
    """Checks that the questions of a source have several annotators where the answer rule compares these.

    Args:
      source: the questions, of which some are looked at, evenly spread; captions have no annotators.
      rule: `config.data.answers.rule`.
      looked_at: how many questions.

    Raises:
      ConfigError: each of them has one annotator.
    """
    if rule == "exact" or not len(source):
        return
    places = np.unique(np.linspace(0, len(source) - 1, looked_at).astype(int))
    counts = {len(q.get("answers", ())) for q in source.read_questions(places.tolist()) if "question" in q}
    if counts - {0} == {1}:
        raise ConfigError(
            f"config.data.answers.rule is {rule!r}, which compares the answers of several annotators; the questions of "
            f"{source.questions.part} ({source.questions.splits}) have one each. Set --config.data.answers.rule=exact."
        )


def curriculum_stages(config: Any) -> tuple[Stage, ...]:
    """Where the stages of `config.curriculum` lie in the source of `config.data.train_split`.

    Args:
      config: the whole config. Rows of `curriculum` are (first epoch, splits joined by "+"); a split that is named twice is
        visited twice as often.

    Raises:
      ConfigError: epochs do not ascend, or a stage has no examples or splits that are not trained with; lists all faults.
    """
    if not config.curriculum:
        return ()
    splits = config.data.train_split.split("+")
    ends = list(itertools.accumulate(len(open_vqa(config.data, split)) for split in splits))
    if config.data.limit:
        ends = [min(end, config.data.limit) for end in ends]
    where = dict(zip(splits, itertools.pairwise([0, *ends]), strict=True))
    stages: list[Stage] = []
    faults: list[str] = []
    for first, names in config.curriculum:
        parts = tuple(where.get(name, (0, 0)) for name in names.split("+"))
        unknown = [name for name in names.split("+") if name not in where]
        faults += [f"{name!r} is not in config.data.train_split = {config.data.train_split!r}" for name in unknown]
        if not unknown and not any(end > start for start, end in parts):
            faults.append(f"{names!r} has no examples")
        if stages and first <= stages[-1][0]:
            faults.append(f"epoch {first} stands behind epoch {stages[-1][0]}")
        stages.append((first, parts))
    if faults:
        raise ConfigError("config.curriculum:\n  " + "\n  ".join(faults))
    return tuple(stages)


def questions_together(config: Any, source: VqaSource) -> Together | None:
    """Which questions of a source stand together, as `config.data.questions_together` says: None for 1, or without that field.

    Raises:
      ConfigError: batches or microbatches cannot be cut into such groups.
    """
    count = config.data.get("questions_together", 1)
    if count == 1:
        return None
    if count < 1 or config.batch_size % count or config.microbatches > 1:
        raise ConfigError(
            f"config.data.questions_together is {count}: config.batch_size has to be a multiple of it, and config.microbatches "
            f"1, since a microbatch takes every n-th example; they are {config.batch_size} and {config.microbatches}."
        )
    pictures = np.fromiter((int(question["image_id"]) for question in source.all_questions()), np.int64, len(source))
    return Together(pictures, count)


@functools.lru_cache(maxsize=16)
def _shared_records(part: str, splits: str, folder: str, cache_mib: float, stamp: int) -> Records:
    """Training, evaluation and vocabulary share what one of them has decoded; `stamp` tells builds apart."""
    return Records(part, splits, folder, cache_mib)
