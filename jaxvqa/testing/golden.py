"""Runs golden cases: python -m jaxvqa.testing.golden PATH…

A PATH is a folder (all cases below it), a manifest (`NAME.manifest.json`, or `NAME.json` where its checkpoint is another
manifest's), its results (`NAME.npz`), or a file of text or metric cases (`….json`). For a manifest the weights are rebuilt by
the recipe, saved as the original saves them, read and converted, and the model's outputs are compared with those that the
original computed. Prints one line for each output and exits with 1 if any misses its limit, is unknown to the system's module,
or has no result to compare with.

A system adds one module beside this file and one row for each of its manifests' `model` names below.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from jaxvqa.convert import files
from jaxvqa.errors import UserError, run_command
from jaxvqa.inputs import user_path
from jaxvqa.models.sysu import BACKBONES
from jaxvqa.testing import weights

MODELS = {
    "rwsan": "jaxvqa.testing.rwsan",
    "cmsa": "jaxvqa.testing.cmsa",
    "ban": "jaxvqa.testing.mevf",
    "mevf_ban": "jaxvqa.testing.mevf",
    "mevf_san": "jaxvqa.testing.mevf",
    "mevf_published": "jaxvqa.testing.mevf",
    "mtpt_segment": "jaxvqa.testing.mtpt",
    "mtpt_classify": "jaxvqa.testing.mtpt",
    "preprocess224": "jaxvqa.testing.cmsa_images",
    **dict.fromkeys(
        ("PerceiverResampler", "GatedCrossAttentionBlock", "FlamingoModule", "FlamingoPaLM"), "jaxvqa.testing.flamingo"
    ),
    "GPT2LMHeadModel": "jaxvqa.testing.towers",
    "BertModel": "jaxvqa.testing.towers",
    "CLIPVisionModelWithProjection": "jaxvqa.testing.towers",
    "VisionTransformer (CLIP, original key names)": "jaxvqa.testing.towers",
    **dict.fromkeys((*BACKBONES, "resnest", "RepVGG", "densenet"), "jaxvqa.testing.sysu"),
}
"""A manifest's `model` -> the module that runs it, with `run(case) -> list of Row`."""

SECTIONS = ("jaxvqa.testing.rwsan", "jaxvqa.testing.cmsa_text", "jaxvqa.testing.metrics")
"""Modules with `SECTIONS`: name of a case file's section -> its checks; none for one that is not supported yet."""

FILES = dict.fromkeys(
    ("losses.json", "ensemble_cases.json", "reading.json", "preprocess.json"), "jaxvqa.testing.sysu_rules"
)
"""A case file with files beside it -> the module that runs it, with `run_file(path) -> list of Row`."""

COMMENTS = ("about", "note")
"""Sections of case files that hold no cases."""

Check = Callable[[Any], Iterable[tuple[str, Any, Any]] | str]
"""A section's check: its content to (label, ours, expected), or to the reason for which it is skipped."""

Sections = Mapping[str, tuple[Check, ...]]
"""Name of a case file's section -> its checks."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
      case: the file.
      output: what was compared.
      passed: whether it is within its limit; None when it was skipped.
      error: the relative difference, where one was taken.
      limit: the largest one allowed.
      note: counts, reasons.
    """

    case: str
    output: str
    passed: bool | None
    error: float | None = None
    limit: float | None = None
    note: str = ""


@dataclasses.dataclass
class Case:
    """One manifest with its results.

    Attributes:
      name: the case's name.
      manifest: the manifest.
      inputs: name -> array, without `in_`.
      expected: name -> array that the original computed, without `out_`.
      arrays: all arrays of the results' file under their own names.
    """

    name: str
    manifest: dict[str, Any]
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, manifest: Path) -> "Case":
        """Reads a manifest and the results beside it; inputs that are not stored are made from their seeds.

        A manifest with a `base` beside it, or another `manifest`, has that one's checkpoint, model and options and, besides its
        own, its inputs.
        """
        content = json.loads(manifest.read_text(encoding="utf-8"))
        name = manifest.name.removesuffix(".json").removesuffix(".manifest")
        with np.load(manifest.with_name(f"{name}.npz"), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        specs = content.get("inputs", ())
        if isinstance(specs, Mapping):  # by name; a text says that the input is stored, or in what form
            specs = [
                {"name": key.removeprefix("in_"), **spec} for key, spec in specs.items() if isinstance(spec, Mapping)
            ]
        inputs = {s["name"]: weights.make_input(s) for s in specs if f"in_{s['name']}" not in arrays}
        inputs |= {key.removeprefix("in_"): value for key, value in arrays.items() if key.startswith("in_")}
        # A case with one result may call it `out`.
        expected = {key.removeprefix("out_"): value for key, value in arrays.items() if f"{key}_".startswith("out_")}
        if other := content.get("base", content.get("manifest")):
            base = cls.read(manifest.with_name(other))
            content = {key: base.manifest[key] for key in ("model", "options")} | content
            content["tensors"] = base.manifest["tensors"]
            inputs = base.inputs | inputs
        return cls(name, content, inputs, expected, arrays)

    def checkpoint(self) -> dict[str, np.ndarray]:
        """The original's tensors, by the recipe."""
        return weights.checkpoint(self.manifest["tensors"])

    def compare(
        self,
        output: str,
        ours: Any,
        limit: float,
        *,
        entrywise: bool = False,
        only: Sequence[bool] | np.ndarray | None = None,
    ) -> Row:
        """Compares one output with the original's.

        Args:
          output: its name, without `out_`.
          ours: our value.
          limit: the largest relative difference allowed.
          entrywise: take each row's difference relative to that row's own scale, not to that of the whole array.
          only: rows to compare; all by default.
        """
        ours, expected = np.asarray(ours), self.expected[output]
        if ours.shape != expected.shape:
            note = f"shape {list(ours.shape)}, expected {list(expected.shape)}"
            return Row(self.name, output, False, None, limit, note)
        note = ""
        if only is not None:
            ours, expected = ours[np.asarray(only)], expected[np.asarray(only)]
            note = f"{len(ours)} of {len(only)} rows"
        if entrywise:
            pairs = zip(ours, expected, strict=True)
            error = max((relative_difference(a, b) for a, b in pairs), default=0.0)
        else:
            error = relative_difference(ours, expected)
        return Row(self.name, output, bool(error <= limit), error, limit, note)


def relative_difference(ours: Any, expected: Any) -> float:
    """Returns max |ours − expected| / max |expected|; where all is expected to be 0, max |ours|; NaN counts as infinite."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    if ours.size == 0:
        return 0.0
    difference = float(np.max(np.abs(ours - expected)))
    scale = float(np.max(np.abs(expected)))
    error = difference / scale if scale > 0 else difference
    return error if np.isfinite(error) else float("inf")


def through_file(
    tensors: Mapping[str, np.ndarray],
    extra: Mapping[str, Any] | None,
    read: Callable[[Path], Any],
    weights_entry: str = "state_dict",
) -> Any:
    """Saves tensors with `torch.save`, in the original's outer layout when `extra` has its other entries, and reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pkl"
        extra = None if extra is None else dict(extra)
        files.write(path, files.TorchFile(dict(tensors), extra=extra, weights_entry=weights_entry))
        return read(path)


def run(path: Path) -> list[Row]:
    """Runs the case or cases at `path`."""
    if path.is_dir():
        found = find(path)
        if not found:
            return [Row(str(path), "", False, note="no golden cases: expected *.manifest.json or *cases.json")]
        return [row for file in found for row in run(file)]
    if not path.exists():
        return [Row(str(path), "", False, note="no such file")]
    try:
        if path.with_suffix(".json").name in FILES:
            path = path.with_suffix(".json")
            return importlib.import_module(FILES[path.name]).run_file(path)
        if path.suffix == ".npz":
            beside = path.with_suffix(".json")
            return _run_manifest(beside if _has_manifest(beside) else path.with_name(f"{path.stem}.manifest.json"))
        is_manifest = path.name.endswith(".manifest.json") or _has_manifest(path)
        return _run_manifest(path) if is_manifest else _run_sections(path)
    except (UserError, OSError, ValueError, KeyError) as error:
        # One broken case shall not hide the others' results.
        return [Row(path.name, "", False, note=f"{type(error).__name__}: {error}")]


def find(folder: Path) -> list[Path]:
    """Lists the cases below a folder: manifests, case files, and results that neither belongs to."""
    manifests = sorted(folder.rglob("*.manifest.json"))
    known = {m.with_name(m.name.removesuffix(".manifest.json") + ".npz") for m in manifests}
    manifests += sorted(path for path in folder.rglob("*.json") if _has_manifest(path))
    alone = [npz for npz in sorted(folder.rglob("*.npz")) if npz not in known and not npz.with_suffix(".json").exists()]
    cases = {*folder.rglob("*cases.json"), *(file for name in FILES for file in folder.rglob(name))}
    return [*manifests, *sorted(cases), *alone]


def _has_manifest(path: Path) -> bool:
    """Whether a file is of a case with results beside it and a checkpoint that another manifest lists."""
    if path.suffix != ".json" or not path.exists() or not path.with_suffix(".npz").exists():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "manifest" in content


def _run_manifest(path: Path) -> list[Row]:
    case = Case.read(path)
    model = case.manifest["model"]
    if model not in MODELS:
        known = ", ".join(MODELS)
        return [Row(case.name, "", False, note=f"no system here runs the model {model!r}; there is {known}")]
    rows = importlib.import_module(MODELS[model]).run(case)
    unknown = case.expected.keys() - {row.output for row in rows}
    rows += [Row(case.name, name, False, note="the runner does not know this output") for name in sorted(unknown)]
    if not case.expected:
        rows.append(Row(case.name, "", False, note="the file has no out_… array"))
    return rows


def _run_sections(path: Path) -> list[Row]:
    content = json.loads(path.read_text(encoding="utf-8"))
    sections = {k: v for k, v in content.items() if k not in COMMENTS} if isinstance(content, dict) else {}
    tables: list[Sections] = [importlib.import_module(name).SECTIONS for name in SECTIONS]
    # Several systems' files have sections of the same name, so one module has to know all of them.
    table = next((t for t in tables if sections and sections.keys() <= t.keys()), None)
    if table is None:
        nearest_table = max(tables, key=lambda t: len(t.keys() & sections.keys()))
        unknown = ", ".join(name for name in sections if name not in nearest_table) or "no sections"
        return [Row(path.name, "", False, note=f"not a case file of a system that is here: {unknown}")]
    rows = [Row(path.name, name, None, note="not supported yet") for name in sections if not table[name]]
    return rows + [_run_section(path, name, c, content) for name, content in sections.items() for c in table[name]]


def _run_section(path: Path, name: str, check: Check, content: Any) -> Row:
    try:
        results = check(content)
        if isinstance(results, str):
            return Row(path.name, name, None, note=results)
        return counted(path.name, name, results)
    except (UserError, KeyError, ValueError) as error:
        return Row(path.name, name, False, note=f"{type(error).__name__}: {error}")


def counted(case: str, output: str, results: Iterable[tuple[str, Any, Any]]) -> Row:
    """Returns one line for many (label, ours, expected): passed if all are equal, and there are any."""
    results = list(results)
    misses = [(label, ours, expected) for label, ours, expected in results if ours != expected]
    note = f"{len(results) - len(misses)}/{len(results)}"
    if misses:
        note += "; first miss: {}: {!r}, expected {!r}".format(*misses[0])
    return Row(case, output, bool(results) and not misses, note=note)


def table(rows: Sequence[Row]) -> rich.table.Table:
    """The rows as a table for the terminal."""
    result = rich.table.Table("case", "output", "max rel. difference", "limit", "result", "")
    for row in rows:
        word = {True: "pass", False: "[bold red]FAIL[/]", None: "[yellow]skipped[/]"}[row.passed]
        error, limit = ("" if x is None else f"{x:.1e}" for x in (row.error, row.limit))
        result.add_row(row.case, row.output, error, limit, word, rich.markup.escape(row.note))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 when everything passed, 1 otherwise."""
    return run_command("jaxvqa.testing.golden", lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxvqa.testing.golden", description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=user_path, metavar="PATH", help="folder, manifest, .npz or case file")
    arguments = parser.parse_args(argv)
    start = time.monotonic()
    rows = [row for path in arguments.paths for row in run(path)]
    console = rich.console.Console() if sys.stdout.isatty() else rich.console.Console(width=200)
    console.print(table(rows))
    counts = [sum(row.passed is kind for row in rows) for kind in (True, False, None)]
    console.print("{} passed, {} failed, {} skipped in {:.1f} s".format(*counts, time.monotonic() - start))
    # Skipping everything proves nothing.
    return 0 if counts[1] == 0 and counts[0] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
