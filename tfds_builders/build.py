"""Builds data sets without TensorFlow: `python -m tfds_builders.build NAME [NAME ...]`.

Builds every config of `tfds_builders/NAME/NAME_dataset_builder.py`, or of a builder of your own at `package.module:Name`,
as ArrayRecord files in the folder that TFDS reads from (`--data_dir`, else `TFDS_DATA_DIR`, else ~/tensorflow_datasets, or
where XDG_DATA_HOME is set and that folder is not there, XDG_DATA_HOME/tensorflow_datasets). What is built already is
verified, not built again; a build that was interrupted leaves nothing that counts as built, and is cleared away by the next.

Besides what TFDS asks of it, a builder class may declare

- `DEFAULT_CONFIGS`: names of the configs that are built when none is named (default: all);
- `EXPECTED_COUNTS`: {config: {split: records}}, checked after building (a config or split not named is not checked);
- `OPTIONAL_SPLITS`: {config: splits} that may be left out, whatever their expected count;
- `manual_files(self) -> Iterable[ManualFile]`: what the chosen config needs in `manual_dir`, checked before building;
- `workers`: the build command sets it to the number of processes or threads the builder may start (--workers);
- `partial`: the build command sets it to whether a part of the official release is meant to be built (--partial);
- `PARTS`: what else builds a part, for the message that says that something is missing;
- `OFFERS_BEAM = True`: on `--beam`, the attribute `use_beam` is set to True, and the builder may return
  Beam transforms.

Exit codes: 0 built or verified, 2 a wrong name, option or file, 74 no room or right to write (see `jaxvqa.errors`).
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from jaxvqa.data import records
from jaxvqa.errors import DataError, choose, first_line, install, os_errors, run_command
from jaxvqa.inputs import user_path
from jaxvqa.named import OWN, Named
from tfds_builders.manual import require_files


def builder_names() -> list[str]:
    """Returns the names of the data sets that can be built."""
    folders = Path(__file__).parent.glob("*/*_dataset_builder.py")
    return sorted(path.parent.name for path in folders if path.name == f"{path.parent.name}_dataset_builder.py")


def builder_class(name: str) -> Any:
    """Returns the builder class of a data set.

    Args:
      name: Folder name, as in `builder_names()`; or the place of a builder in a user's own package, "package.module" or
        "package.module:Name", whose data set is called as the class's `name` says.

    Raises:
      DataError: names the known ones, or says what is wrong with the user's own.
    """
    named = Named(
        "a builder",
        {known: f"tfds_builders.{known}.{known}_dataset_builder:Builder" for known in builder_names()},
        "a class of tensorflow_datasets.core.DatasetBuilder",
        lambda found: isinstance(found, type) and issubclass(found, tfds.core.DatasetBuilder),
        default="Builder",
        error=DataError,
    )
    if name not in named.table and not named.is_own(name):
        raise DataError(f"No data set {name!r}{choose(name, named.table)} {OWN}")
    return named.get(name, "The data set")


def config_names(name: str, configs: Sequence[str] = ()) -> list[str | None]:
    """Returns the configs to build: those asked for, else the builder's default ones; [None] if it has none at all.

    Raises:
      DataError: The builder does not have one of `configs`.
    """
    cls = builder_class(name)
    known = [config.name for config in cls.BUILDER_CONFIGS]
    for config in configs:
        if config not in known:
            raise DataError(f"{name} has no config {config!r}{choose(config, known)}")
    return list(configs) or list(getattr(cls, "DEFAULT_CONFIGS", known)) or [None]


def build_command(name: str, configs: Sequence[str], data_dir: Path) -> str:
    """Returns the command that builds configs of a data set, with `--manual_dir=DIR` where it needs files from there."""
    command = f"python -m tfds_builders.build {name}" + (f" --config={','.join(configs)}" if configs else "")
    needed = False
    with contextlib.suppress(DataError):  # another's data set; or a package that is missing, which the command will say
        cls = builder_class(name)
        known = {config.name for config in cls.BUILDER_CONFIGS}
        builders = [cls(config=config, data_dir=data_dir) for config in configs if config in known]
        needed = any(getattr(builder, "manual_files", list)() for builder in builders)
    return f"{command}{' --manual_dir=DIR' * needed} --data_dir={shlex.quote(str(data_dir))}"


def verify(builder: tfds.core.DatasetBuilder, *, partial: bool = False) -> dict[str, int]:
    """Counts the records in the files of a built data set.

    Args:
      builder: A builder whose data set is on disk.
      partial: Whether counts may differ from the builder's `EXPECTED_COUNTS`.

    Returns:
      Records of each split.

    Raises:
      DataError: Files are missing or unreadable, or counts differ from dataset_info.json or from the builder's
        `EXPECTED_COUNTS`; one message names all of them.
    """
    from array_record.python import array_record_module

    config = builder.builder_config.name if builder.builder_config else None
    expected = getattr(builder, "EXPECTED_COUNTS", {}).get(config, {})
    counts, faults = {}, []
    for split, info in builder.info.splits.items():
        counts[split] = 0
        for path, stated in zip(info.filepaths, info.shard_lengths, strict=True):
            try:
                reader = array_record_module.ArrayRecordReader(os.fspath(path))
                records = reader.num_records()
                reader.close()
            except (RuntimeError, ValueError, OSError) as error:
                faults.append(f"{path}: cannot be read ({str(error).splitlines()[0]})")
                continue
            if records != stated:
                faults.append(f"{path}: {records} records, dataset_info.json states {stated}")
            counts[split] += records
    optional = getattr(builder, "OPTIONAL_SPLITS", {}).get(config, ())
    if faults:
        raise DataError(
            f"{builder.info.full_name} in {builder.data_path} is not whole:\n  "
            + "\n  ".join(faults)
            + "\nBuild it again with --overwrite."
        )
    for split, number in expected.items():
        if counts.get(split) != number and (split in counts or split not in optional):
            faults.append(
                f"split {split}: {counts.get(split, 0)} records, expected {number} as in the official release"
            )
    if faults and not partial:
        raise DataError(
            f"{builder.info.full_name} is not the official release:\n  "
            + "\n  ".join(faults)
            + "\nAdd what is missing and build with --overwrite, or build what there is: --partial (results of a part are not "
            "those of the literature)." + (f" {builder.PARTS}" if hasattr(builder, "PARTS") else "")
        )
    return counts


@contextlib.contextmanager
def _only_one_build(folder: Path) -> Iterator[None]:
    """Holds a lock on `folder` and clears away what interrupted builds left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".build.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"Another process is building into {folder}. Wait for it, or stop it.") from None
        except OSError:
            pass  # a file system without locks: two builds at once are then the user's to avoid
        # Under the lock nobody else writes here: what is incomplete is left over. TFDS renames whole folders into
        # place, so anything not renamed never counts as built.
        for leftover in folder.glob("incomplete.*"):
            print(f"removing what an interrupted build left: {leftover}", file=sys.stderr)
            shutil.rmtree(leftover)
        yield


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[None]:
    """Moves `folder` aside, and back if what is built in its place fails or is refused: that never counts as built."""
    before = folder.parent / f"incomplete.replaced_{folder.name}"
    if folder.exists():
        folder.rename(before)
    try:
        yield
    except BaseException:
        if folder.exists():
            shutil.rmtree(folder)
        if before.exists():
            before.rename(folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _beam_options(builder: tfds.core.DatasetBuilder, pipeline_options: str) -> Any:
    """Returns Beam's PipelineOptions from "name=value,name=value"; checks that Beam can be used at all."""
    if not getattr(builder, "OFFERS_BEAM", False):
        raise DataError(f"{builder.name} does not offer Apache Beam: build it without --beam.")
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise DataError(f"--beam needs the package apache-beam: {install('beam')}") from None
    return PipelineOptions(flags=[f"--{option}" for option in pipeline_options.split(",") if option])


def build(
    name: str,
    config: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    num_shards: int | None = None,
    workers: int = 1,
    partial: bool = False,
    beam_pipeline_options: str | None = None,
) -> dict[str, Any]:
    """Builds one config of a data set, or verifies it if it is built already.

    Args:
      name: Data set, as of `builder_class`.
      config: One of its configs; None if it has none.
      data_dir: Folder of all data sets; None for that of `jaxvqa.data.records.data_dir`.
      manual_dir: Folder of files downloaded by hand; None for DATA_DIR/downloads/manual.
      overwrite: Whether to build again what is built.
      num_shards: Files per split; None lets TFDS choose by size.
      workers: Processes a builder may start; more than 1 only under a main module guarded by `__name__ == "__main__"`.
      partial: Build what there is of an official release, without the splits and questions that lack their files.
      beam_pipeline_options: Not None builds by Apache Beam: "" with its own defaults, else "name=value,name=value".

    Returns:
      `name`, `config`, `splits` ({split: {"records", "bytes"}}), `seconds`, `folder`, `built` (False: was there).

    Raises:
      DataError: Unknown names, missing files, Beam not available, or counts that are not as they should be.
      StorageError: The disk is full or not writable.
    """
    start = time.monotonic()
    cls = builder_class(name)
    config_names(name, [config] if config else [])
    name = cls.name
    data_dir = records.data_dir(os.fspath(data_dir or ""))
    make = {"data_dir": data_dir, "config": config, "file_format": "array_record"}
    try:
        builder = cls(**make)
    except Exception as error:  # its JSON and protocol buffers have errors of their own
        place = data_dir / name / (config or "")
        if not any(place.glob("*/dataset_info.json")):  # nothing is built that it could have read
            raise
        raise DataError(
            f"What describes the data set in {place} cannot be read: {first_line(error)}. Move the folder away, and build it "
            "anew."
        ) from error
    folder = Path(builder.data_path)
    with os_errors(folder), _only_one_build(folder.parent):
        build_now = overwrite or not folder.exists()
        if build_now:
            builder.partial = partial  # a part may need fewer files
            # Checked before anything is written or, on --overwrite, deleted.
            options = None if beam_pipeline_options is None else _beam_options(builder, beam_pipeline_options)
            manual = Path(manual_dir or Path(builder.data_path.parents[1 + (config is not None)], "downloads/manual"))
            if hasattr(builder, "manual_files"):
                require_files(name, manual, builder.manual_files())
            with _replacing(folder):
                builder = cls(**make)  # a builder reads what is on disk when it is made
                builder.use_beam, builder.workers, builder.partial = options is not None, workers, partial
                print(f"building {builder.info.full_name} in {folder}", file=sys.stderr)
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(
                        manual_dir=manual, num_shards=num_shards, beam_options=options, try_download_gcs=False
                    )
                )
                counts = verify(builder, partial=partial)
        else:
            counts = verify(builder, partial=partial)
    splits = {
        split: {"records": counts[split], "bytes": sum(os.path.getsize(path) for path in info.filepaths)}
        for split, info in builder.info.splits.items()
    }
    seconds = time.monotonic() - start
    return {"name": name, "config": config, "splits": splits, "seconds": seconds, "folder": folder, "built": build_now}


def _table(results: Sequence[dict[str, Any]]) -> str:
    """Returns one line per split, then one line per folder."""
    rows = [("data set", "split", "records", "MB", "seconds", "")]
    for result in results:
        full_name = "/".join(filter(None, (result["name"], result["config"])))
        for i, (split, numbers) in enumerate(result["splits"].items()):
            state = "built" if result["built"] else "verified"
            last = (f"{result['seconds']:.1f}", state) if i == 0 else ("", "")
            rows.append((full_name, split, f"{numbers['records']:,}", f"{numbers['bytes'] / 1e6:.1f}", *last))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = [
        "  ".join(
            c.ljust(w) if i in (0, 1, 5) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines + [str(result["folder"]) for result in results])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
      argv: Arguments without the program's name; None for those of the process.
    """
    return run_command("tfds_builders.build", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tfds_builders.build",
        description="Builds data sets as ArrayRecord files, without TensorFlow.",
        epilog=f"Data sets: {', '.join(builder_names())}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="data set, or NAME/CONFIG; package.module:Name is a builder of your own",
    )
    parser.add_argument("--config", default="", help="configs to build, comma separated (default: see its README)")
    parser.add_argument(
        "--data_dir", type=user_path, help="where to build (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)"
    )
    parser.add_argument(
        "--manual_dir", type=user_path, help="files downloaded by hand (default: DATA_DIR/downloads/manual)"
    )
    parser.add_argument("--overwrite", action="store_true", help="build again what is built")
    parser.add_argument(
        "--partial", action="store_true", help="build what there is of a release, though records are missing"
    )
    parser.add_argument("--num_shards", type=int, help="files per split (default: by size)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes or threads (default: one per core)"
    )
    parser.add_argument("--beam", action="store_true", help="build by Apache Beam, for builders that offer it")
    parser.add_argument("--beam_pipeline_options", help="NAME=VALUE,… for Beam, such as runner=DataflowRunner")
    args = parser.parse_args(argv)
    beam = args.beam_pipeline_options
    if beam is None and args.beam:
        beam = ""

    # Bars in a log file are noise.
    tfds.display_progress_bar(sys.stderr.isatty() and os.environ.get("JAXVQA_LOG") != "quiet")
    for option in ("num_shards", "workers"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise DataError(f"--{option}: expected a positive number, got {value}")
    jobs = []  # all names are checked before the first is built
    for name in args.names:
        name, _, config = name.partition("/")
        wanted = [*filter(None, [config]), *filter(None, args.config.split(","))]
        jobs += [(name, each) for each in config_names(name, wanted)]
    results = [
        build(
            name,
            config,
            data_dir=args.data_dir,
            manual_dir=args.manual_dir,
            overwrite=args.overwrite,
            num_shards=args.num_shards,
            workers=args.workers,
            partial=args.partial,
            beam_pipeline_options=beam,
        )
        for name, config in jobs
    ]
    print(_table(results))


if __name__ == "__main__":
    sys.exit(main())
