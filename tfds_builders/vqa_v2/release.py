"""Where the files of VQA v2 may lie in `manual_dir`, and how they are read: folders, tar and zip archives, JSON."""

import dataclasses
import functools
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxvqa.errors import DataError
from tfds_builders.checks import read_bytes
from tfds_builders.manual import PICTURE_ENDINGS, ManualFile, by_name, plain

UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
"""What reading of an archive's member raises: it is cut off, damaged, encrypted, or packed in a way that is not known."""

_VQA_URL = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
_FEATURES_URL = "https://github.com/MILVLG/mcan-vqa#prerequisites"
_FEATURES_NOTE = "bottom-up region features, one .npz a picture; RWSAN and MCAN use the same files"


def _json_file(name: str, archive: str) -> ManualFile:
    """Describes an official JSON file: RWSAN's place, the folder itself, or the zip it is published in."""
    return ManualFile((f"vqa/{name}", name, f"vqa/{archive}", archive), f"{_VQA_URL}{archive}")


def _visual_genome_file(name: str) -> ManualFile:
    return ManualFile((f"vqa/{name}", name), _FEATURES_URL, "Visual Genome questions in VQA form")


def _feature_folder(name: str, *more: str) -> ManualFile:
    suffixes = (".tar.gz", ".tgz", ".tar", ".zip")
    packed = [f"coco_extract/{name}{suffix}" for suffix in suffixes] + [f"{name}{suffix}" for suffix in suffixes[:3]]
    return ManualFile((f"coco_extract/{name}", *packed, f"{name}/*.npz", *more), _FEATURES_URL, _FEATURES_NOTE)


def _image_folder(name: str) -> ManualFile:
    places = [f"{folder}{name}{suffix}" for folder in ("images/", "coco/") for suffix in ("", ".zip")]
    url = f"http://images.cocodataset.org/zips/{name}.zip"
    return ManualFile((*places, f"{name}.zip", f"{name}/*.jpg", f"{name}/*.jpeg"), url, "COCO pictures (JPEG)")


QUESTIONS = {
    "train": _json_file("v2_OpenEnded_mscoco_train2014_questions.json", "v2_Questions_Train_mscoco.zip"),
    "val": _json_file("v2_OpenEnded_mscoco_val2014_questions.json", "v2_Questions_Val_mscoco.zip"),
    "test": _json_file("v2_OpenEnded_mscoco_test2015_questions.json", "v2_Questions_Test_mscoco.zip"),
    "test_dev": _json_file("v2_OpenEnded_mscoco_test-dev2015_questions.json", "v2_Questions_Test_mscoco.zip"),
    "vg": _visual_genome_file("VG_questions.json"),
}
"""Question file of each split."""

ANNOTATIONS = {
    "train": _json_file("v2_mscoco_train2014_annotations.json", "v2_Annotations_Train_mscoco.zip"),
    "val": _json_file("v2_mscoco_val2014_annotations.json", "v2_Annotations_Val_mscoco.zip"),
    "vg": _visual_genome_file("VG_annotations.json"),
}
"""Annotation file of each split that has one."""

FEATURES = {
    "train": _feature_folder("train2014", "region_features_36"),
    "val": _feature_folder("val2014"),
    "test": _feature_folder("test2015"),
}
"""Folder or archive of region features of each picture split. The other splits use pictures of these."""

IMAGES = {"train": _image_folder("train2014"), "val": _image_folder("val2014"), "test": _image_folder("test2015")}
"""Folder or archive of pictures of each picture split."""

SUBSETS = "splits.json"
"""Optional file {split: [question ids of train]} that divides the train questions."""


def find_json(manual_dir: str | os.PathLike[str], file: ManualFile) -> Path | None:
    """Returns where a JSON file lies: its own path, or that of a zip that holds it; None if it is not there."""
    name = Path(file.paths[0]).name
    for place in file.paths:
        path = ManualFile((place,), file.url).find(manual_dir)
        if path and path.is_file() and (path.suffix.lower() != ".zip" or _member(path, name) is not None):
            return path
    return None


def find_pictures(manual_dir: str | os.PathLike[str], file: ManualFile) -> Path | None:
    """Returns the folder or archive of a picture split; None if it is not there."""
    found = file.find(manual_dir)
    return found.parent if found is not None and found.suffix.lower() in (".npz", *PICTURE_ENDINGS) else found


def _member(archive: Path, name: str) -> str | None:
    """Returns the full name of the member of a zip file whose last part is `name`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return next((each for each in opened.namelist() if plain(each.split("/")[-1]) == plain(name)), None)
    except UNREADABLE as error:
        raise DataError(f"{archive} is cut off or damaged ({error}); download it again.") from error


def read_json(manual_dir: str | os.PathLike[str], file: ManualFile) -> Any:
    """Reads a JSON file, out of its zip if it lies in one.

    Raises:
        DataError: it is not there, damaged, or not JSON.
    """
    path = find_json(manual_dir, file)
    name = Path(file.paths[0]).name
    if path is None:
        raise DataError(f"{name} is not in {manual_dir}.")
    try:
        if path.suffix.lower() != ".zip":
            return json.loads(read_bytes(path))
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(_member(path, name) or name))
    except (ValueError, RecursionError, *UNREADABLE) as error:
        raise DataError(f"{path}: {name} cannot be read ({error}); download it again.") from error


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a folder or a zip archive, which any process can open by itself.

    Attributes:
        path: the file, or the archive it lies in.
        name: its name in the archive; empty for a plain file.
    """

    path: Path
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    def read(self) -> bytes:
        """Returns the file's bytes.

        Raises:
            DataError: it cannot be read, or its archive is damaged.
        """
        if not self.name:
            return read_bytes(self.path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.name)
        except UNREADABLE as error:
            raise DataError(f"{self} cannot be read ({error})") from error


def list_members(source: Path, suffixes: tuple[str, ...]) -> list[Member]:
    """Lists the files of a folder or zip archive whose names end in one of `suffixes`, in any case, sorted by name.

    Raises:
        DataError: `source` is a tar archive, which can only be read from front to end, or a damaged zip archive; or names
            differ by case only.
    """
    if source.is_dir():
        members = {path: Member(path) for path in sorted(source.rglob("*")) if _is_wanted(path.name, suffixes)}
    elif source.suffix.lower() != ".zip":
        raise DataError(f"{source}: a tar archive cannot be read in parallel. Unpack it, or build without --beam.")
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                names = [name for name in sorted(archive.namelist()) if _is_wanted(name, suffixes)]
        except UNREADABLE as error:
            raise DataError(f"{source} is cut off or damaged ({error}); download it again.") from error
        members = {source / name: Member(source, name) for name in names}
    by_name(members)
    return list(members.values())


def read_members(source: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the name and a reader of each file whose name ends in one of `suffixes`: sorted, or in a tar's own order.

    A reader returns the file's bytes, or raises a DataError that names it.

    Raises:
        DataError: the archive is cut off or damaged, or there is no such file.
    """
    count = 0
    try:
        if source.is_dir():
            for member in list_members(source, suffixes):
                count += 1
                yield str(member), member.read
        elif source.suffix.lower() == ".zip":
            members = list_members(source, suffixes)
            with zipfile.ZipFile(source) as archive:  # once: to open it for each member takes its whole list each time
                for member in members:
                    count += 1
                    yield str(member), _read_now(str(member), functools.partial(archive.read, member.name))
        else:
            with tarfile.open(source, "r|*") as tar:  # a stream: seeking in a packed tar starts over each time
                for info in tar:
                    if info.isfile() and _is_wanted(info.name, suffixes):
                        count += 1
                        content = (tar.extractfile(info) or io.BytesIO()).read()
                        yield f"{source}:{info.name}", functools.partial(bytes, content)
    except UNREADABLE as error:
        raise DataError(f"{source} is cut off or damaged ({error}); download it again.") from error
    if not count:
        raise DataError(f"{source}: holds no {' or '.join(suffixes)} file")


def _read_now(name: str, read: Callable[[], bytes]) -> Callable[[], bytes]:
    """Returns a reader of what is read before its archive is closed."""
    try:
        content = read()
    except UNREADABLE as error:
        fault = DataError(f"{name} cannot be read ({error})")

        def refuse() -> bytes:
            raise fault

        return refuse
    return functools.partial(bytes, content)


def _is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    """Tells whether a file counts; macOS adds "._NAME" companions to archives."""
    base = name.split("/")[-1]
    return base.lower().endswith(suffixes) and not base.startswith("._")
