"""Random access to the records of one part of a built data set, a TFDS builder's config."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxvqa.errors import DataError, choose, first_line
from jaxvqa.inputs import user_path


def data_dir(folder: str = "") -> Path:
    """Where built data sets lie: `folder`, or TFDS's own place (`TFDS_DATA_DIR`, else ~/tensorflow_datasets).

    Where XDG_DATA_HOME is set and there is no ~/tensorflow_datasets, the folder of that name is there.
    """
    if folder:
        return user_path(folder)
    own, home = user_path(os.fspath(tfds.core.constants.DATA_DIR)), os.environ.get("XDG_DATA_HOME", "")
    if home.startswith("/") and not os.environ.get("TFDS_DATA_DIR") and not own.exists():
        return Path(home, own.name)
    return own


class Records:
    """The records of one part of a data set ("phantom_vqa/questions"), over one or several splits ("train+val").

    Texts come as str. Images stay encoded: a transform decodes them where their size is known.
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
          DataError: when it is not built (says the command that builds it), is damaged, is stored in a format without random
            access, or has no such split.
        """
        self.part, self.splits = part, splits
        check_built([part], folder)
        self.path = newest_version(part, data_dir(folder))
        try:
            builder = tfds.builder_from_directory(self.path)
            self.metadata: Mapping[str, Any] = builder.info.metadata or {}
        except Exception as error:  # its JSON and protocol buffers have errors of their own
            raise DataError(
                f"What describes {part} in {self.path} (dataset_info.json, features.json, metadata.json) cannot be read: "
                f"{first_line(error)}. Move the folder away, and build it anew: "
                f"python -m tfds_builders.build {part.partition('/')[0]}"
            ) from error
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(
                f"{self.path} is stored as {builder.info.file_format.value}, which cannot be read in any order; expected "
                f"array_record. Build it anew: python -m tfds_builders.build {part.split('/')[0]} --overwrite, or "
                "tfds build --file_format=array_record"
            )
        known = sorted(builder.info.splits)
        for split in splits.split("+"):
            if split.partition("[")[0] not in known:
                raise DataError(f"{part} has no split {split!r}{choose(split, known)}")
        decoders = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._texts = {name for name, feature in builder.info.features.items() if _is_text(feature)}
        self._source = builder.as_data_source(splits, decoders=decoders)
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


def check_built(parts: Sequence[str], folder: str = "") -> None:
    """Checks that parts such as "vqa_v2/features" are built in a folder (see `data_dir`).

    Raises:
      DataError: says the commands that build what is missing, then what there is.
    """
    place = data_dir(folder)
    missing = [part for part in dict.fromkeys(parts) if not any((place / part).glob("*/dataset_info.json"))]
    if not missing:
        return
    from tfds_builders.build import build_command  # only here: it brings the builders' dependencies along

    configs: dict[str, list[str]] = {}
    for part in missing:
        name, _, config = part.partition("/")
        configs.setdefault(name, []).append(config)
    commands = [build_command(name, list(filter(None, of)), place) for name, of in configs.items()]
    built = sorted({str(p.parent.parent.relative_to(place)) for p in place.glob("*/*/*/dataset_info.json")})
    raise DataError(
        f"The {'data set' if len(missing) == 1 else 'data sets'} {' and '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not built. Build:\n  "
        + "\n  ".join(commands)
        + f"\nBuilt in {place}: {', '.join(built) or 'nothing'}."
    )


def newest_version(part: str, folder: Path) -> Path:
    """The folder of the newest built version of a part, which has to be built."""
    versions = [info.parent for info in (folder / part).glob("*/dataset_info.json")]
    return max(versions, key=lambda path: tuple(int(n) if n.isdigit() else -1 for n in path.name.split(".")))


def _is_text(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), tfds.features.Text)


def _decode_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else [item.decode() for item in value]
