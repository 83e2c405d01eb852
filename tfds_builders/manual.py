"""The files a user has to put into `manual_dir`: what is missing, where it is downloaded, where it belongs.

Names are compared without regard to case, as macOS and Windows do: archives come back from there as `synpic1.JPG`.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxvqa.errors import DataError

_MOST_SHOWN = 20


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
        """Returns the first of `paths` that exists under `manual_dir`, or None; the case of a file's name does not matter.

        Raises:
          DataError: Two files differ by the case of their names only.
        """
        for pattern in self.paths:
            found = sorted(Path(manual_dir).glob(any_case(pattern)))
            if found:
                by_name(found)
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


PICTURE_ENDINGS = (".jpg", ".jpeg")
"""Endings of a JPEG file, in lower case: one name with either is one picture."""


def any_case(pattern: str) -> str:
    """Returns a glob pattern whose last part matches in any case."""
    folder, slash, name = pattern.rpartition("/")
    either = re.sub(
        r"\[[^]]*\]|[a-zA-Z]", lambda m: m[0] if m[0][0] == "[" else f"[{m[0].lower()}{m[0].upper()}]", name
    )
    return folder + slash + either


def plain(name: str) -> str:
    """Returns a file's name as names are compared: in lower case, `.jpg` for `.jpeg`."""
    name = name.lower()
    return f"{name.removesuffix('.jpeg')}.jpg" if name.endswith(".jpeg") else name


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Returns files by `plain` name.

    Raises:
      DataError: Two files of a folder have the same; names all of them.
    """
    found: dict[tuple[Path, str], Path] = {}
    faults = []
    for path in paths:
        first = found.setdefault((path.parent, plain(path.name)), path)
        if first != path:
            faults.append(f"{first} and {path.name}")
    if faults:
        raise DataError(
            "Files whose names differ by case or by the spelling of their ending only, of which one alone can be meant:\n  "
            + "\n  ".join(faults[:_MOST_SHOWN])
            + (f"\n  and {len(faults) - _MOST_SHOWN} more" if len(faults) > _MOST_SHOWN else "")
            + "\nMove the wrong ones away."
        )
    return {name: path for (_, name), path in found.items()}


def find_file(path: Path) -> Path:
    """Returns the file of this name, else the one whose name differs by case or spelling of its ending, else `path` itself.

    Raises:
      DataError: There are several such.
    """
    if path.exists() or not path.parent.is_dir():
        return path
    alike = [other for other in sorted(path.parent.iterdir()) if plain(other.name) == plain(path.name)]
    return by_name(alike).get(plain(path.name), path)


def find_files(names: Iterable[str], folder: Path, places: Sequence[str] = (".",)) -> dict[str, Path]:
    """Returns the files of many names, compared as `plain` does; each folder is listed once.

    Args:
      names: paths of files, relative to one of the places, or absolute.
      folder: where the places are.
      places: folders where a file may be; the first that has it counts.

    Raises:
      DataError: Files of one of the folders differ by case or spelling of their ending only.
    """
    listed: dict[Path, dict[str, Path]] = {}
    found = {}
    for name in names:
        for place in places:
            path = folder / place / name
            if path.parent not in listed:
                listed[path.parent] = by_name(sorted(path.parent.iterdir()) if path.parent.is_dir() else ())
            if file := listed[path.parent].get(plain(path.name)):
                found[name] = file
                break
    return found


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
