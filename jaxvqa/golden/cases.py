"""A golden case: what it holds, how ours is compared with it, and the rows that come of it."""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvqa.convert import files
from jaxvqa.golden import weights

COMMENTS = frozenset(
    {"about", "note", "notes", "size", "parameter_count", "n_tensors", "n_parameters", "lr_at_step_1"}
    | {"made_with", "caption_postprocess"}
)
"""Entries of a case that hold nothing to compare."""

LIMIT = 1e-4
"""Largest difference of an output, relative to its own scale: the golden cases' rule, for every system."""

COUNTED = 1
"""What the recipe gives for each counter of batch normalisation."""

Results = Iterable[tuple[str, Any, Any]]
"""(label, ours, expected)."""


class Skipped(Exception):  # noqa: N818 (nothing is wrong)
    """Why something cannot be compared here."""


class Read(dict[str, Any]):
    """A map, and those in it, that know which of their entries were asked for."""

    def __init__(self, content: Mapping[str, Any], asked: Iterable[str] = ()):
        """Args: the map, and what was asked for before."""
        super().__init__({key: Read(value) if isinstance(value, dict) else value for key, value in content.items()})
        self.asked = set(asked)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The entry, or the default."""
        self.asked.add(key)
        return super().get(key, default)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
      case: the file.
      output: what was compared.
      passed: whether it is within its limit; None when it was skipped, or decides nothing.
      error: the relative difference, where one was taken.
      limit: the largest one allowed.
      note: counts, reasons.
      precision: what ours was computed in, where a case is computed in several.
      decides: False for a row that is only shown.
    """

    case: str
    output: str
    passed: bool | None
    error: float | None = None
    limit: float | None = None
    note: str = ""
    precision: str = ""
    decides: bool = True


@dataclasses.dataclass
class Case:
    """One file of cases with the arrays beside it.

    Attributes:
      name: the case's name.
      manifest: what the file holds.
      inputs: name -> array, without `in_`.
      expected: name -> array that the original computed, without `out_`.
      arrays: all arrays of the results' file under their own names.
      folder: where it lies, for files beside it.
    """

    name: str
    manifest: dict[str, Any]
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    folder: Path = Path()

    @classmethod
    def read(cls, path: Path) -> "Case":
        """Reads a manifest and the results beside it; inputs that are not stored are made from their seeds.

        A manifest with a `base` beside it, or another `manifest`, has that one's checkpoint, model and options and, besides its
        own, its inputs.
        """
        content = Read(json.loads(path.read_text(encoding="utf-8")))
        arrays: dict[str, np.ndarray] = {}
        if results_of(path).exists():
            with np.load(results_of(path), allow_pickle=False) as stored:
                arrays = dict(stored)
        specs = content.get("inputs", ())
        if isinstance(specs, Mapping):  # by name
            specs = [{"name": key, **spec} for key, spec in specs.items() if isinstance(spec, Mapping)]
        # Only what has a seed is a recipe; the rest says in what form an input is stored.
        recipes = {spec["name"].removeprefix("in_"): spec for spec in specs if {"seed", "shape"} <= spec.keys()}
        inputs = {name: weights.make_input(spec) for name, spec in recipes.items() if f"in_{name}" not in arrays}
        inputs |= {key.removeprefix("in_"): value for key, value in arrays.items() if key.startswith("in_")}
        # A case with one result may call it `out`.
        expected = {key.removeprefix("out_"): value for key, value in arrays.items() if f"{key}_".startswith("out_")}
        if other := content.get("base", content.get("manifest")):
            base = cls.read(path.with_name(other))
            given = {key: base.manifest[key] for key in ("model", "options")} | content
            content = Read(given | {"tensors": base.manifest["tensors"]}, content.asked)
            inputs = base.inputs | inputs
        return cls(results_of(path).stem, content, inputs, expected, arrays, path.parent)

    def need_arrays(self) -> None:
        """Raises FileNotFoundError where the case has no results beside it."""
        if not self.arrays:
            raise FileNotFoundError(f"no arrays in a file {results_of(self.folder / self.name).name} beside the case")

    def checkpoint(self) -> dict[str, np.ndarray]:
        """The original's tensors, by the recipe."""
        return weights.checkpoint(self.manifest["tensors"])

    def beside(self, data: str, *names: str) -> list[Path]:
        """Files in the case's own folder, or else in the folder `data` below the one that JAXVQA_DATA names.

        Raises:
          Skipped: a file is missing.
        """
        found = [_in_folders(self.folder, data, name) for name in names]
        if None in found:
            missing = " and ".join(name for name, path in zip(names, found, strict=True) if path is None)
            raise Skipped(f"needs {missing} beside the case, or in {data} below JAXVQA_DATA")
        return [path for path in found if path is not None]

    def beside_by_content(self, what: str, recognises: Callable[[Any], bool]) -> Path:
        """The first JSON file in the case's folder that holds what is wanted, whatever its name is.

        Raises:
          Skipped: there is none.
        """
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(ValueError):  # broken files are other cases' concern
                if recognises(json.loads(path.read_text(encoding="utf-8"))):
                    return path
        raise Skipped(f"needs {what} beside the case")

    def compare(
        self,
        output: str,
        ours: Any,
        limit: float = LIMIT,
        *,
        entrywise: bool = False,
        only: Sequence[bool] | np.ndarray | None = None,
    ) -> Row:
        """Compares one output with the original's; a miss too where ours, a function, raises an error.

        Args:
          output: its name, without `out_`.
          ours: our value, or what gives it.
          limit: the largest relative difference allowed; none is where the original's are whole numbers.
          entrywise: take each row's difference relative to that row's own scale, not to that of the whole array.
          only: rows to compare; all by default.
        """

        def row() -> Row:
            found, expected = ours() if callable(ours) else ours, self.expected[output]
            largest = 0.0 if np.issubdtype(expected.dtype, np.integer) else limit
            if np.shape(found) != expected.shape:
                note = f"shape {list(np.shape(found))}, expected {list(expected.shape)}"
                return Row(self.name, output, False, None, largest, note)
            errors = differences(found, expected, entrywise=entrywise, only=only)
            error = float(np.max(errors, initial=0.0))
            note = "" if only is None else f"{np.count_nonzero(only)} of {len(only)} rows"
            return Row(self.name, output, error <= largest, error, largest, note)

        return self.attempt(output, row)

    def counted(self, output: str, results: Results) -> Row:
        """One row for many (label, ours, expected): passed if all are equal; skipped if there are none."""

        def row() -> Row:
            found = list(results)
            misses = [(label, ours, expected) for label, ours, expected in found if ours != expected]
            note = f"{len(found) - len(misses)}/{len(found)}" if found else "empty"
            if misses:
                note += "; first miss: {}: {!r}, expected {!r}".format(*misses[0])
            return Row(self.name, output, not misses if found else None, note=note)

        return self.attempt(output, row)

    def attempt(self, output: str, row: Callable[[], Row]) -> Row:
        """The row that is made, or a miss with the message of an error: whatever it is, the others go on."""
        try:
            return row()
        except Exception as error:
            return self.failed(output, error)

    def failed(self, output: str, error: Exception) -> Row:
        """The row of what raised an error: a miss, or skipped."""
        if isinstance(error, Skipped):
            return Row(self.name, output, None, note=str(error))
        return Row(self.name, output, False, note=f"{type(error).__name__}: {error}")

    def unknown(
        self, given: Mapping[str, Any], known: Collection[str], where: str = "", form: str = "({}.{})"
    ) -> Iterator[Row]:
        """A miss for each entry that the runner does not know: to pass over it would compare something else."""
        for name in given.keys() - {*known, *COMMENTS}:
            note = f"the runner does not know this: {given[name]!r:.60}"
            yield Row(self.name, form.format(where, name) if where else name, False, note=note)

    def unread(self, *parts: str) -> Iterator[Row]:
        """A miss for each entry of the manifest's parts ("manifest" is the whole) that nothing has asked for."""
        for part in parts:
            held: Any = self.manifest
            for name in () if part == "manifest" else part.split("."):
                held = held.get(name, {})
            yield from self.unknown(held, getattr(held, "asked", ()), part)

    def back_again(self, tensors: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], output: str = "") -> Row:
        """Whether writing gives the checkpoint that was read: keys, order, types, bits.

        Of several names of one tensor, `tied` groups or an `alias_of` in the manifest, the last one's value counts.
        """
        wanted = dict(tensors)
        for group in self.manifest.get("tied", ()):
            wanted |= dict.fromkeys(group, tensors[group[-1]])
        wanted |= {t["alias_of"]: tensors[t["key"]] for t in self.manifest["tensors"] if t.get("alias_of") in tensors}
        wrong = [
            key
            for key, value in wanted.items()
            if key not in ours or ours[key].dtype != value.dtype or ours[key].tobytes() != value.tobytes()
        ]
        note = f"{len(tensors)} tensors" + "".join(f", not {key}" for key in wrong[:1])
        return Row(self.name, output or "(checkpoint and back)", list(ours) == list(tensors) and not wrong, note=note)

    def sizes_read_off(self, sizes: Mapping[str, Any], config: Mapping[str, Any]) -> Row:
        """Whether what a converter reads off a checkpoint's shapes is what the config says."""
        known = {name: value for name, value in sizes.items() if name in config}
        misses = [f"{name} {value}, not {config[name]}" for name, value in known.items() if value != config[name]]
        return Row(self.name, "(sizes read off)", bool(known) and not misses, note=", ".join(misses or known))

    @staticmethod
    def through_file(
        tensors: Mapping[str, np.ndarray],
        extra: Mapping[str, Any] | None,
        read: Callable[[Path], Any],
        weights_entry: str = "state_dict",
    ) -> Any:
        """Saves tensors with `torch.save`, where `extra` has the file's other entries as the original does, and reads them."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pkl"
            extra = None if extra is None else dict(extra)
            files.write(path, files.TorchFile(dict(tensors), extra=extra, weights_entry=weights_entry))
            return read(path)


def results_of(path: Path) -> Path:
    """The file of a case's arrays: NAME.npz beside NAME.json or NAME.manifest.json."""
    return path.with_name(path.name.removesuffix(".json").removesuffix(".manifest") + ".npz")


def below_data(path: str) -> Path:
    """A file or folder below the one that JAXVQA_DATA names.

    Raises:
      Skipped: it is not there.
    """
    found = Path(os.environ.get("JAXVQA_DATA", "")) / path
    if "JAXVQA_DATA" not in os.environ or not found.exists():
        raise Skipped(f"needs {path} under the folder that JAXVQA_DATA names")
    return found


def _in_folders(folder: Path, data: str, name: str) -> Path | None:
    folders = [folder, *([Path(os.environ["JAXVQA_DATA"]) / data] if "JAXVQA_DATA" in os.environ else [])]
    return next((path / name for path in folders if (path / name).is_file()), None)


def kept(case: Case, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, up to an error, which is one more."""
    try:
        yield from rows
    except Exception as error:
        yield case.failed("", error)


def differences(
    ours: Any, expected: Any, *, entrywise: bool = False, only: Sequence[bool] | np.ndarray | None = None
) -> np.ndarray:
    """Relative differences: one of the whole array, or one of each row."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    if only is not None:
        ours, expected = ours[np.asarray(only)], expected[np.asarray(only)]
    if not entrywise:
        return np.asarray([relative_difference(ours, expected)])
    return np.asarray([relative_difference(a, b) for a, b in zip(ours, expected, strict=True)])


def relative_difference(ours: Any, expected: Any) -> float:
    """Returns max |ours − expected| / max |expected|; where all is expected to be 0, max |ours|; NaN counts as infinite."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if ours.size == 0:
        return 0.0
    difference = float(np.max(np.abs(ours - expected)))
    scale = float(np.max(np.abs(expected)))
    error = difference / scale if scale > 0 else difference
    return error if np.isfinite(error) else float("inf")
