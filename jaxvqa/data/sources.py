"""Random access to built data sets: questions, and the images they ask about, joined by image id.

A data set is a TFDS builder with its parts apart (`questions`, `features`, `images`; see docs/adding_a_data_set.md),
since many questions share an image: copying 400 KB of region features into each would multiply the size on disk.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvqa.errors import DataError, nearest


def data_dir(folder: str = "") -> Path:
    """Where built data sets lie: `folder`, or TFDS's own place (`TFDS_DATA_DIR`, else ~/tensorflow_datasets)."""
    return Path(folder or tfds.core.constants.DATA_DIR).expanduser()


class Records:
    """The records of one part of a data set ("phantom_vqa/questions"), over one or several splits ("train+val").

    Pictures stay encoded: a transform decodes them where their size is known.
    """

    def __init__(self, part: str, splits: str, folder: str = ""):
        """Opens the part's newest built version.

        Raises:
          DataError: when it is not built (says the command that builds it) or has no such split.
        """
        self.part, self.splits = part, splits
        self.path = _newest_version(part, data_dir(folder))
        builder = tfds.builder_from_directory(self.path)
        known = sorted(builder.info.splits)
        for split in splits.split("+"):
            if split.partition("[")[0] not in known:
                raise DataError(f"{part} has no split {split!r}; it has {', '.join(known)}.{nearest(split, known)}")
        decoders = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._source = builder.as_data_source(splits, decoders=decoders)
        self.metadata: Mapping[str, Any] = builder.info.metadata or {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._source[int(index)]
        except Exception as error:
            raise DataError(
                f"Record {index} of {self.part} ({self.splits}) in {self.path} cannot be read: {error}. The file is damaged; "
                f"build it anew: python -m tfds_builders.build {self.part.split('/')[0]} --overwrite"
            ) from error


def _newest_version(part: str, folder: Path) -> Path:
    versions = [info.parent for info in (folder / part).glob("*/dataset_info.json")]
    if not versions:
        name, _, config = part.partition("/")
        built = sorted({str(p.parent.parent.relative_to(folder)) for p in folder.glob("*/*/*/dataset_info.json")})
        raise DataError(
            f"The data set {part} is not built in {folder} (built there: {', '.join(built) or 'nothing'}). "
            f"Build it: python -m tfds_builders.build {name} --config={config} --data_dir={folder}"
        )
    return max(versions, key=lambda path: tuple(int(n) if n.isdigit() else -1 for n in path.name.split(".")))


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_text(item) for item in value]
    return value


class VqaSource:
    """Examples of visual question answering: a question record with its image's record, by position.

    An example has the question's features (`question_id`, `image_id`, `question`, `answers`, …; texts as str) and, unless
    `images` is empty, the image's (`features`, `boxes`, `image`, …).
    """

    def __init__(self, questions: Records, images: Sequence[Records] = (), *, limit: int = 0):
        """Joins questions to images.

        Args:
          questions: the questions, whose order is the source's order.
          images: one `Records` for each split of the image side; none for a run on the text alone.
          limit: keeps the first that many questions; 0 keeps all.

        Raises:
          DataError: when the image side carries no index of its image ids.
        """
        self.questions, self._images = questions, list(images)
        self._limit = limit
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
        return min(len(self.questions), self._limit or len(self.questions))

    def question(self, index: int) -> dict[str, Any]:
        """The question's own features, texts as str."""
        return {name: _text(value) for name, value in self.questions[index].items()}

    def image(self, image_id: int) -> dict[str, Any]:
        """The image's features."""
        if image_id not in self._where:
            raise DataError(
                f"Image {image_id} is in none of {', '.join(f'{r.part} ({r.splits})' for r in self._images)}: the questions "
                f"in {self.questions.path} ask about images that were not built."
            )
        records, position = self._where[image_id]
        return self._images[records][position]

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.question(index)
        return (self.image(int(example["image_id"])) if self._images else {}) | example


def open_vqa(config: Any, split: str) -> VqaSource:
    """Opens the questions of `split` with the images of all `config.image_splits`.

    Args:
      config: `config.data`: `dir`, `questions` and `images` (parts such as "vqa_v2/features"; empty for none),
        `image_splits` (names joined by "+"; empty for all that the part has), `limit`.
      split: question splits, joined by "+".
    """
    images = []
    if config.images:
        splits = config.image_splits
        if not splits:
            info = json.loads((_newest_version(config.images, data_dir(config.dir)) / "dataset_info.json").read_text())
            splits = "+".join(s["name"] for s in info["splits"])
        images = [Records(config.images, name, config.dir) for name in splits.split("+")]
    return VqaSource(Records(config.questions, split, config.dir), images, limit=config.limit)
