"""Runs golden cases: python -m jaxvqa.golden PATH…

A PATH is a folder (all cases below it), a manifest (its results lie beside it: `NAME.manifest.json` or `NAME.json`, and
`NAME.npz`), its results, or a file of text, rule or metric cases. What a file is follows from what it holds, not from its name.
For a manifest the weights are rebuilt by the recipe, saved as the original saves them, read and converted, and the model's
outputs are compared with those that the original computed. Prints one line for each output and exits with 1 if any misses its
limit, raises an error, is unknown to the system's module, or has no result to compare with. Lines for information
(`jaxvqa.golden.training`) and skipped ones do not count, but something must have passed.

A system adds one module beside this file and one row for each of its manifests' `model` names below.
"""

import argparse
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rich.console
import rich.markup
import rich.table

from jaxvqa import logs
from jaxvqa.errors import choose, run_command
from jaxvqa.golden.cases import COMMENTS, Case, Results, Row, kept, results_of
from jaxvqa.inputs import user_path
from jaxvqa.logs import log
from jaxvqa.models.sysu_hcp import BACKBONES

MODELS = {
    "rwsan": "jaxvqa.golden.rwsan",
    "cmsa": "jaxvqa.golden.cmsa",
    "ban": "jaxvqa.golden.mevf",
    "mevf_ban": "jaxvqa.golden.mevf",
    "mevf_san": "jaxvqa.golden.mevf",
    "mevf_published": "jaxvqa.golden.mevf",
    "mtpt_segment": "jaxvqa.golden.mtpt",
    "mtpt_classify": "jaxvqa.golden.mtpt",
    "preprocess224": "jaxvqa.golden.cmsa_images",
    **dict.fromkeys(
        ("PerceiverResampler", "GatedCrossAttentionBlock", "FlamingoModule", "FlamingoPaLM"), "jaxvqa.golden.flamingo"
    ),
    "GPT2LMHeadModel": "jaxvqa.golden.towers",
    "BertModel": "jaxvqa.golden.towers",
    "CLIPVisionModelWithProjection": "jaxvqa.golden.towers",
    "VisionTransformer (CLIP, original key names)": "jaxvqa.golden.towers",
    **dict.fromkeys(
        (
            *("VisionTransformer", "BertModel + BertLMHeadModel (MED), not tied to each other"),
            *("BLIP_Pretrain", "BLIP_Retrieval", "BLIP_ITM", "BLIP_ITM with Grad-CAM", "BLIP_Base (feature extractor)"),
        ),
        "jaxvqa.golden.blip",
    ),
    **dict.fromkeys(("BLIP_Decoder", "BLIP_VQA", "BLIP_NLVR"), "jaxvqa.golden.blip_answers"),
    **dict.fromkeys((*BACKBONES, "resnest", "RepVGG", "densenet"), "jaxvqa.golden.sysu_hcp"),
}
"""A manifest's `model` -> the module that runs it, with `run(case) -> list of Row`."""

SECTIONS = ("jaxvqa.golden.rwsan", "jaxvqa.golden.cmsa_text", "jaxvqa.golden.blip_data", "jaxvqa.golden.metrics")
"""Modules with `SECTIONS`: name of a case file's section -> its checks; none for one that is not supported yet."""

RULES = ("jaxvqa.golden.sysu_hcp_rules", "jaxvqa.golden.blip", "jaxvqa.golden.blip_data", "jaxvqa.golden.medvl")
"""Modules of case files with others beside them: `RUNNERS`, rows (recognises its content, makes the rows of a case)."""

Run = Callable[[Case], Iterable[Row]]


@dataclass(frozen=True)
class Check:
    """A check of a case file's section.

    Attributes:
      fields: what it reads of the section, or of each entry of one that is a list. Sections of several systems share a name:
        the fields say which one's it is. A section without any of them is not checked.
      run: the section's content, and with `of_case` the case, to (label, ours, expected).
      of_case: whether `run` takes the case too, for files that lie beside it.
    """

    fields: frozenset[str]
    run: Callable[..., Results]
    of_case: bool = False

    @classmethod
    def of(cls, run: Callable[..., Results], *fields: str, of_case: bool = False) -> "Check":
        """A check with these fields."""
        return cls(frozenset(fields), run, of_case)


Sections = Mapping[str, tuple[Check, ...]]
"""Name of a case file's section -> its checks."""


def run(path: Path) -> list[Row]:
    """Runs the case or cases at `path`."""
    if path.is_dir():
        found = find(path)
        if not found:
            return [Row(str(path), "", False, note="no golden cases: expected manifests or files of cases")]
        with logs.Progress("golden case", len(found)) as progress:
            return [row for file in progress.each(found) for row in run(file)]
    if not path.exists():
        return [Row(str(path), "", False, note="no such file")]
    log.info("%s …", path)
    if path.suffix == ".npz":
        beside = [file for file in _manifests_of(path) if file.exists()]
        if not beside:
            return [Row(path.name, "", False, note=f"no {path.stem}.manifest.json or {path.stem}.json beside it")]
        path = beside[0]
    case = Case(path.name, {}, {}, {}, {}, path.parent)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        how = _how(content)
        if how in (None, _sections):
            case.manifest = content if isinstance(content, dict) else {}
            how = _sections
        else:
            case = Case.read(path)
            case.name = case.name if how is _manifest else path.name
        rows = list(kept(case, how(case)))
    except Exception as error:  # one broken case must not hide the others' results
        return [case.failed("", error)]
    if not rows:
        rows.append(Row(case.name, "", None, note="empty"))
    rest = sorted(case.expected.keys() - {row.output for row in rows})
    stop = next((row for row in rows if row.output == ""), None)
    if stop and stop.passed is False and len(rows) == 1:  # nothing of it was run
        return rows
    note = "not compared: the case stopped at an error" if stop else "the runner does not know this output"
    if stop and stop.passed is None and rest:  # what is skipped is each of its results
        rows.remove(stop)
        return rows + [Row(case.name, name, None, note=stop.note) for name in rest]
    return rows + [Row(case.name, name, False, note=note) for name in rest]


def find(folder: Path) -> list[Path]:
    """Lists the cases below a folder: manifests, case files, and results that none of them belongs to.

    Any other JSON file is data of a case beside it, unless it calls itself a case: by its name, by results beside
    it, or by being broken.
    """
    kinds: dict[Path, Run | None] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            kinds[path] = _how(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            kinds[path] = _sections
    manifests = [path for path, how in kinds.items() if how is _manifest]
    cases = [path for path, how in kinds.items() if how not in (None, _manifest) or _calls_itself_a_case(path)]
    alone = [path for path in sorted(folder.rglob("*.npz")) if not any(file.exists() for file in _manifests_of(path))]
    return [*manifests, *(path for path in cases if path not in manifests), *alone]


def _manifests_of(results: Path) -> list[Path]:
    return [results.with_name(results.stem + suffix) for suffix in (".json", ".manifest.json")]


def _calls_itself_a_case(path: Path) -> bool:
    return "cases" in path.stem or path.name.endswith(".manifest.json") or results_of(path).exists()


def _how(content: Any) -> Run | None:
    """What runs a file, by what it holds; None for one that is not a case."""
    if not isinstance(content, dict):
        return None
    if content.keys() & {"tensors", "manifest", "base"}:  # before rules: it may also have images and inputs
        return _manifest
    rules = [row for name in RULES for row in importlib.import_module(name).RUNNERS]
    if found := next((runner for recognises, runner in rules if recognises(content)), None):
        return found
    return _sections if any(_checks(name, part) is not None for name, part in content.items()) else None


def _manifest(case: Case) -> Iterator[Row]:
    model = case.manifest.get("model")
    if isinstance(model, str):  # a model on several processes is that model
        model = re.sub(r" on \d+ process(es)?$", "", model)
    if model not in MODELS:
        yield Row(case.name, "", False, note=f"no system here runs the model {model!r}{choose(model, MODELS)}")
        return
    case.need_arrays()
    yield from importlib.import_module(MODELS[model]).run(case)
    if not case.expected and "runs" not in case.manifest:
        yield Row(case.name, "", False, note="the file has no out_… array")


def _checks(name: str, content: Any) -> tuple[Check, ...] | None:
    """The checks of a section, of the module whose fields fit best; None if no module knows it."""
    tables: list[Sections] = [importlib.import_module(module).SECTIONS for module in SECTIONS]
    fields = _fields(content)
    known = [table[name] for table in tables if name in table]
    return max(known, key=lambda checks: len(fields & _read_by(checks)), default=None)


def _fields(content: Any) -> set[str]:
    """The names in a section, or in the entries of one that is a list."""
    parts = content if isinstance(content, list) else [content]
    return {name for part in parts if isinstance(part, dict) for name in part}


def _read_by(checks: Iterable[Check]) -> frozenset[str]:
    return frozenset().union(*(check.fields for check in checks))


def _sections(case: Case) -> Iterator[Row]:
    sections = {name: part for name, part in case.manifest.items() if name not in COMMENTS}
    if not sections:
        yield Row(case.name, "", False, note="not a file of cases: it has no sections")
    for name, part in sections.items():
        yield from _section(case, name, part)


def _section(case: Case, name: str, content: Any) -> Iterator[Row]:
    checks = _checks(name, content)
    if checks is None:
        yield Row(case.name, name, False, note="no system here has a section of this name")
    elif not checks or not content:
        yield Row(case.name, name, None, note="empty" if checks else "not supported yet")
    else:
        fields = _fields(content)
        if isinstance(content, dict):
            yield from case.unknown(content, _read_by(checks), name, "{}.{}")
        chosen = [check for check in checks if check.fields & fields or not check.fields]
        if not chosen and not isinstance(content, dict):
            yield Row(case.name, name, False, note="nothing in it that the runner knows")
        for check in chosen:
            yield case.attempt(name, partial(_checked, case, name, check, content))


def _checked(case: Case, name: str, check: Check, content: Any) -> Row:
    return case.counted(name, check.run(content, case) if check.of_case else check.run(content))


WORDS = {True: "pass", False: "[bold red]FAIL[/]", None: "[yellow]skipped[/]"}


def table(rows: Sequence[Row]) -> rich.table.Table:
    """The rows as a table for the terminal."""
    result = rich.table.Table("case", "output", "computed in", "max rel. difference", "limit", "result", "")
    for row in rows:
        word = WORDS[row.passed] if row.decides else "[dim]shown[/]"
        error, limit = ("" if x is None else f"{x:.1e}" for x in (row.error, row.limit))
        result.add_row(row.case, row.output, row.precision, error, limit, word, rich.markup.escape(row.note))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 when everything passed, 1 otherwise."""
    return run_command("jaxvqa.golden", lambda: _command(argv))


def _command(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxvqa.golden", description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=user_path, metavar="PATH", help="folder, manifest, .npz or case file")
    arguments = parser.parse_args(argv)
    logs.setup()
    start = time.monotonic()
    rows = [row for path in arguments.paths for row in run(path)]
    console = rich.console.Console() if sys.stdout.isatty() else rich.console.Console(width=200)
    console.print(table(rows))
    counts = [sum(row.passed is kind and row.decides for row in rows) for kind in (True, False, None)]
    shown = sum(not row.decides for row in rows)
    parts = "{} passed, {} failed, {} skipped, {} for information in {:.1f} s"
    console.print(parts.format(*counts, shown, time.monotonic() - start))
    # Skipping everything proves nothing.
    return 0 if counts[1] == 0 and counts[0] > 0 else 1
