"""The files a user has to put into `manual_dir`: what is missing, where it is downloaded, where it belongs."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from jaxvqa.errors import DataError


@dataclasses.dataclass(frozen=True)
class ManualFile:
    """One file or folder that a builder needs.

    Attributes:
      paths: Where it may lie, relative to `manual_dir`, the preferred place first; glob patterns are allowed. One that
        exists is enough: `("vqa/questions.json", "v2_Questions_Train_mscoco.zip")`.
      url: Where it is downloaded.
      note: What else to know, such as a licence to accept or a size.
    """

    paths: tuple[str, ...]
    url: str
    note: str = ""

    def find(self, manual_dir: str | os.PathLike[str]) -> Path | None:
        """Returns the first of `paths` that exists under `manual_dir`, or None."""
        for pattern in self.paths:
            found = sorted(Path(manual_dir).glob(pattern))
            if found:
                return found[0]
        return None

    def require(self, manual_dir: str | os.PathLike[str]) -> Path:
        """Returns the first of `paths` that exists under `manual_dir`.

        Raises:
          DataError: There is none.
        """
        path = self.find(manual_dir)
        if path is None:
            raise DataError(f"There is no {self.paths[0]} in {manual_dir}: {self.url}")
        return path


def missing_files(manual_dir: str | os.PathLike[str], files: Iterable[ManualFile]) -> list[ManualFile]:
    """Returns those of `files` of which no path exists under `manual_dir`."""
    return [file for file in files if file.find(manual_dir) is None]


def require_files(name: str, manual_dir: str | os.PathLike[str], files: Iterable[ManualFile]) -> None:
    """Checks that every one of `files` is there.

    Args:
      name: The data set's name, for the message.
      manual_dir: Folder the files belong into.
      files: What the builder needs.

    Raises:
      DataError: Files are missing; one message names all of them, their addresses and their places.
    """
    missing = missing_files(manual_dir, files)
    if not missing:
        return
    lines = [f"{name}: {len(missing)} needed {'file is' if len(missing) == 1 else 'files are'} missing."]
    for file in missing:
        place = " or ".join(str(Path(manual_dir) / path) for path in file.paths)
        lines.append(f"  {place}\n      from {file.url}" + (f"\n      {file.note}" if file.note else ""))
    lines.append(f"Put them there, or name the folder that holds them: --manual_dir=DIR (now {manual_dir}).")
    raise DataError("\n".join(lines))
