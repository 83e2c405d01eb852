"""A data set, opened once and asked for splits: examples (questions, captions, labels) joined to their images by image id.

Its parts are built separately (`examples`, `images`; see docs/adding_a_data_set.md), since many examples share an image:
copying 400 KB of region features into each would multiply the size on disk.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from jaxvqa.data import views
from jaxvqa.data.records import Records, check_built, data_dir, newest_version
from jaxvqa.errors import ConfigError, DataError, nearest
from jaxvqa.inputs import read_json

HELD_OUT = "held_out"
"""The split of those examples of `config.data.train_split` that are not trained on: see `is_held_out`."""

_CHUNK = 1024  # records that are read at a time


class DataSet:
    """The data that `config.data` names; training, evaluation and vocabulary share what one of them has read.

    Attributes:
      config: `config.data` as it was when the data set was opened.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        """Opens nothing yet.

        Args:
          config: `config.data`: `dir`; `examples` and `images` (parts such as "vqa_v2/features"; `images` may be empty);
            `image_splits` (names joined by "+"; empty for all that the part has), `limit`, `cache_mib`; `question_types` (empty
            for all); `positives_by`, if there is one, a feature of the examples by which a split numbers its images (see
            `Split`); and `held_out`, a share of images, all of whose examples are left out of the splits of `train_split`
            and are the split `HELD_OUT` instead.
        """
        self.config = config.copy_and_resolve_references()
        self._records: dict[tuple[str, str], Records] = {}
        self._splits: dict[str, Split] = {}

    def records(self, part: str, splits: str) -> Records:
        """One part's records over splits joined by "+"; opened and kept once."""
        if (part, splits) not in self._records:
            self._records[part, splits] = Records(part, splits, self.config.dir, self.config.cache_mib)
        return self._records[part, splits]

    def changed(self, **fields: Any) -> "DataSet":
        """The same folder with other values of `config.data`, such as another part; what both read is kept once."""
        other = DataSet(self.config)
        with other.config.unlocked():
            other.config.update(fields)
        other._records = self._records
        return other

    def split(self, split: str) -> "Split":
        """The examples of `split`, or of several joined by "+", with the images of all `config.image_splits`.

        Raises:
          DataError: a part is not built, says the command that builds it; or has no such split, or no example is kept.
        """
        if split not in self._splits:
            self._splits[split] = self._open(split)
        return self._splits[split]

    def _open(self, split: str) -> "Split":
        config = self.config
        held_out, trained_on = split == HELD_OUT, config.train_split.split("+")
        parted = config.held_out and (held_out or not {*split.split("+")}.isdisjoint(trained_on))
        split = config.train_split if held_out and parted else split
        check_built([part for part in (config.examples, config.images) if part], config.dir)
        images: list[Records] = []
        if config.images:
            splits = config.image_splits
            if not splits:
                file = newest_version(config.images, data_dir(config.dir)) / "dataset_info.json"
                found = read_json(file, "the description of a built data set", {"splits": [{"name": str}]})
                splits = "+".join(one["name"] for one in found["splits"])
            images = [self.records(config.images, name) for name in splits.split("+")]
        return Split(
            self.records(config.examples, split),
            images,
            limit=config.limit,
            question_types=tuple(config.question_types),
            number_by=config.get("positives_by", ""),
            keep=(lambda image_id: is_held_out(image_id, config.held_out) == held_out) if parted else None,
        )


class Split:
    """Examples by position: each one's own record (its annotation) with that of its image.

    An example has the features of its record (`question_id`, `image_id`, `question`, `answers`, `caption`, …) and, unless the
    split was opened without images, those of the image (`features`, `boxes`, `image`, …). One about two images, whose record
    has `second_image_id` too, has the second image's record as `second`. If the split numbers its images, `image_number`
    counts them in order of first appearance.

    Attributes:
      records: the examples' own records, in whose order they stand.
    """

    def __init__(
        self,
        records: Records,
        images: Sequence[Records] = (),
        *,
        limit: int = 0,
        question_types: Sequence[str] = (),
        number_by: str = "",
        keep: Callable[[int], bool] | None = None,
    ):
        """Joins records to images.

        Args:
          records: the examples, whose order is the split's order.
          images: one `Records` for each split of the image side; none for a run on the text alone.
          limit: keeps the first that many examples; 0 keeps all.
          question_types: keeps those whose `question_type` is one of these, before `limit` counts; none keeps all.
          number_by: the feature by which images are numbered: `image_id`, or `figure_id`, which panels of a figure share;
            empty for no numbers, which cost a pass over all examples.
          keep: whether the examples of an image of that id are kept, before `limit` counts; None keeps all.

        Raises:
          DataError: when the image side carries no index of its image ids, or no example is kept.
        """
        self.records, self._images, self._number_by = records, list(images), number_by
        if question_types or keep:
            found = itertools.islice(_positions_of(records, question_types, keep), limit or None)
            self._positions: Sequence[int] = list(found)
        else:
            self._positions = range(min(len(records), limit or len(records)))
        self._where: dict[int, tuple[int, int]] = {}
        for i, part in enumerate(self._images):
            ids = part.metadata.get("image_ids", {}).get(part.splits)
            if ids is None or len(ids) != len(part):
                raise DataError(
                    f"{part.part} ({part.splits}) in {part.path} carries no list of its image ids in metadata.json; "
                    f"build it anew: python -m tfds_builders.build {part.part.split('/')[0]} --overwrite"
                )
            self._where.update((int(image_id), (i, position)) for position, image_id in enumerate(ids))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at these positions, with their images."""
        records = self.read_records(indices)
        if not self._images:
            return records
        pairs = [record for record in records if "second_image_id" in record]
        ids = [int(r["image_id"]) for r in records] + [int(r["second_image_id"]) for r in pairs]
        images = iter(self.read_images(ids))
        examples = [next(images) | record for record in records]
        for example in examples:
            if "second_image_id" in example:
                example["second"] = next(images)
        return examples

    def read_records(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples' own records, without images."""
        records = self.records.read([self._positions[int(index)] for index in indices])
        if not self._number_by:
            return records
        numbers = (self.image_numbers[int(index)] for index in indices)
        return [record | {"image_number": int(n)} for record, n in zip(records, numbers, strict=True)]

    def all_records(self) -> Iterator[dict[str, Any]]:
        """Every example's own record in order."""
        for start in range(0, len(self), _CHUNK):
            yield from self.read_records(range(start, min(start + _CHUNK, len(self))))

    def read_images(self, image_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The images' records. An image that is asked for twice is read once.

        Raises:
          DataError: names the images that were not built.
        """
        missing = sorted({image_id for image_id in image_ids if image_id not in self._where})
        if missing:
            raise DataError(
                f"Images {missing[:10]} are in none of {', '.join(f'{r.part} ({r.splits})' for r in self._images)}: the "
                f"examples in {self.records.path} are about images that were not built."
            )
        found: dict[int, dict[str, Any]] = {}
        for i, part in enumerate(self._images):
            mine = [image_id for image_id in dict.fromkeys(image_ids) if self._where[image_id][0] == i]
            if mine:
                found.update(zip(mine, part.read([self._where[image_id][1] for image_id in mine]), strict=True))
        return [found[image_id] for image_id in image_ids]

    @functools.cached_property
    def image_ids(self) -> np.ndarray:
        """The image of each example, int64[N]."""
        return np.fromiter((int(record["image_id"]) for record in self.all_records()), np.int64, len(self))

    @functools.cached_property
    def image_numbers(self) -> np.ndarray:
        """The number of each example's image in order of first appearance, int32[N]; the same for equal values of `number_by`.

        Raises:
          DataError: the examples have no such feature; names those that they have.
        """
        numbers: dict[Any, int] = {}
        found = np.empty(len(self), np.int32)
        for start in range(0, len(self), _CHUNK):
            positions = self._positions[start : start + _CHUNK]
            for i, record in enumerate(self.records.read(positions), start):
                if self._number_by not in record:
                    raise DataError(
                        f"config.data.positives_by is {self._number_by!r}; the examples of {self.records.part} have "
                        f"{', '.join(record)}.{nearest(self._number_by, record)}"
                    )
                found[i] = numbers.setdefault(record[self._number_by], len(numbers))
        return found

    @functools.cached_property
    def images(self) -> views.Images:
        """The images, each once."""
        return views.Images(self.read, self.image_ids)

    @functools.cached_property
    def texts(self) -> views.Texts:
        """The texts, each once."""
        return views.Texts.of(self.all_records())

    @property
    def pairs(self) -> np.ndarray:
        """Which text belongs to which image, int64[P, 2] positions in `images` and `texts`, each pair once, in order."""
        return np.unique(np.stack([np.searchsorted(self.images.ids, self.image_ids), self.texts.of_example], 1), axis=0)


def _positions_of(records: Records, types: Sequence[str], keep: Callable[[int], bool] | None) -> Iterator[int]:
    """Positions of the examples of these types (none: of all) about images that are kept, in order.

    Raises:
      DataError: no question is of these types; names those that there are.
    """
    seen: set[str] = set()
    kept = False
    for start in range(0, len(records), _CHUNK):
        positions = range(start, min(start + _CHUNK, len(records)))
        for position, record in zip(positions, records.read(positions), strict=True):
            seen.add(record.get("question_type", ""))
            if types and record.get("question_type", "") not in types:
                continue
            if keep is None or keep(int(record["image_id"])):
                kept = True
                yield position
    if types and seen.isdisjoint(types):
        known = sorted(filter(None, seen))
        raise DataError(
            f"No question of {records.part} ({records.splits}) is of the type {' or '.join(map(repr, types))} "
            f"(config.data.question_types); its types are {', '.join(known) or 'not stated'}."
            + "".join(nearest(name, known) for name in types)
        )
    if not kept:
        raise DataError(
            f"config.data.held_out leaves no example of {records.part} ({records.splits}); the images are too few for it."
        )


def is_held_out(image_id: int, share: float) -> bool:
    """Whether an image is one of the share that `config.data.held_out` keeps from training: by its id, in any run the same."""
    return zlib.crc32(str(image_id).encode()) < share * 2**32


def check_annotators(split: Split, rule: str, looked_at: int = 256) -> None:
    """Checks that the questions of a split have several annotators where the answer rule compares these.

    Args:
      split: the questions, of which some are looked at, evenly spread; captions have no annotators.
      rule: `config.data.answers.rule`.
      looked_at: how many questions.

    Raises:
      ConfigError: each of them has one annotator.
    """
    if rule == "exact" or not len(split):
        return
    places = np.unique(np.linspace(0, len(split) - 1, looked_at).astype(int))
    counts = {len(q.get("answers", ())) for q in split.read_records(places.tolist()) if "question" in q}
    if counts - {0} == {1}:
        raise ConfigError(
            f"config.data.answers.rule is {rule!r}, which compares the answers of several annotators; the questions of "
            f"{split.records.part} ({split.records.splits}) have one each. Set --config.data.answers.rule=exact."
        )
