"""Writes WORKDIR/report.html: what came out of a run, in one file that opens anywhere, without a network.

    python -m jaxvqa.report --workdir=DIR [--baseline=DIR | --no-baseline]

It reads files alone: config.json, run.json, metrics.jsonl, predictions/ and, where they are there, the newest checkpoint and
the data set (for the example answers with attention). `--baseline` is the folder of another run on the same data, such as
the question-only one of `configs/rwsan.py:blind`; the two are compared question by question, in later reports too,
until `--no-baseline`.
"""

import dataclasses
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import jinja2

from jaxvqa import configs
from jaxvqa.ensembles.evaluation import member_table
from jaxvqa.errors import ConfigError, os_errors
from jaxvqa.evaluators import tables
from jaxvqa.inputs import read_json
from jaxvqa.logs import write_whole
from jaxvqa.report import examples, numbers, results
from jaxvqa.report.charts import VARIABLES, accuracy_chart, charts
from jaxvqa.report.run import Record, check_comparable, commands, date, facts, notes

TASKS = {"multi_task_pretraining": "Multi-task pre-training", "text_generation": "Answers and captions in words"}
"""Tasks that are not called visual question answering."""


def write(workdir: Path, baseline: Path | None = None, *, alone: bool = False) -> Path:
    """Writes WORKDIR/report.html and returns its path.

    Args:
      workdir: the run's folder.
      baseline: the folder of a run on the same data to compare with; by default that of the last report, if it is still there.
      alone: with no baseline, and none in later reports.

    Raises:
      CheckpointError: a folder is not a work directory.
      ConfigError: the two runs have other data.
      StorageError: the file cannot be written.
    """
    workdir = Path(workdir)
    kept = None if alone or baseline else _kept_baseline(workdir)
    gone = kept is not None and not (kept / "config.json").is_file()
    record, other = read_records(workdir, baseline or (None if gone else kept))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(numbers, name) for name in ("percent", "integer", "points", "duration")}
    shown = content(record, other)
    if gone:
        shown["notes"].append(f"The baseline of the last report, {kept}, is not there any more: nothing is compared.")
    page = environment.get_template("report.html").render(shown)
    path = workdir / "report.html"
    with os_errors(workdir):
        write_whole(path, page)
        if other:
            relative = os.path.relpath(other.run.folder.resolve(), workdir.resolve())
            write_whole(workdir / "report.json", json.dumps({"baseline": relative}) + "\n")
        elif alone:
            (workdir / "report.json").unlink(missing_ok=True)
    return path


def _kept_baseline(workdir: Path) -> Path | None:
    """The baseline of the run's last report, which WORKDIR/report.json keeps relative to the folder; None without one."""
    file = workdir / "report.json"
    if not file.is_file():
        return None
    return Path(os.path.normpath(workdir / read_json(file, "what a report keeps", {"baseline": str})["baseline"]))


def read_records(workdir: Path, baseline: Path | None) -> tuple[Record, Record | None]:
    """Reads a run and the one to compare it with; two of one name are called by their folders; errors as of `write`."""
    record = Record.read(Path(workdir))
    if baseline is None:
        return record, None
    other = Record.read(Path(baseline))
    check_comparable(record, other)
    if record.label == other.label:
        record, other = (dataclasses.replace(r, called=r.run.folder.resolve().name) for r in (record, other))
    return record, other


def write_curve(path: Path, workdir: Path, baseline: Path | None = None) -> None:
    """Writes the curve of accuracy alone, an SVG file that needs no page around it.

    Raises:
      ConfigError: the run has no evaluation yet; others as of `write`.
    """
    record, other = read_records(workdir, baseline)
    chart = accuracy_chart(record, other, record.main)
    if not chart:
        raise ConfigError(f"{workdir} holds no evaluation to draw: let the run reach its first one.")
    drawing = chart["svg"].replace("<svg", '<svg style="background: white; font-family: sans-serif"', 1)
    style = (Path(__file__).parent / "report.html").read_text()
    for variable in VARIABLES.values():
        colour = re.search(rf"{variable}: ([^;]+);", style)  # the first is that of the light page
        assert colour
        drawing = drawing.replace(f"var({variable})", colour[1])
    with os_errors(path.parent):
        write_whole(path, drawing)


def content(record: Record, baseline: Record | None = None) -> dict[str, Any]:
    """Everything that the template shows."""
    name, run = record.main, record.run
    predictions = run.predictions(name)[1]
    base_scored = [row for row in baseline.run.predictions(name)[1] if "accuracy" in row] if baseline else []
    scored = [row for row in predictions if "accuracy" in row]
    answers = [row for row in predictions if "answer" in row]  # an evaluation of scores alone has none
    scored_answers = [row for row in answers if "accuracy" in row]
    before = {row["id"]: row["accuracy"] for row in base_scored}
    chosen, mistakes = examples.choose_examples(answers), examples.confident_mistakes(scored_answers)
    explained, no_images = examples.explanations(record, name, [*chosen, *mistakes])
    cards = {row["id"]: examples.card(row, explained.get(row["id"])) for row in [*chosen, *mistakes]}
    others = [other for other in record.evals if other != name and record.series(f"{other}/accuracy")[0]]
    return {
        "run": run,
        "title": record.config.get("name") or run.folder.name,
        "questions": record.data.get("examples", "unknown data"),
        "baseline": baseline,
        "name": name,
        "task": TASKS.get(record.config.get("task", ""), "Visual question answering"),
        "split": record.evals.get(name, {}).get("split", name),
        "notes": list(notes(record, baseline)),
        "result": results.result(record, name, scored),
        "baseline_result": results.result(baseline, name, base_scored) if baseline else None,
        "difference": results.difference(scored, before),
        "other_results": [(other, results.result(record, other, [])) for other in others],
        "scores": [row for other in record.evals for row in results.scores(record, other)],
        "tables": [*member_table(name, record.values), *tables(name, run.config, record.values)],
        "facts": facts(record),
        "versions": record.meta.get("versions", {}),
        # The members of an ensemble answer once.
        "charts": [] if run.members else charts(record, baseline, name, results.curves(record, name)),
        "groups": list(results.groups(scored, before)) or list(results.groups_from_metrics(record, baseline, name)),
        "calibration": results.calibration(scored_answers),
        "examples": [cards[row["id"]] for row in chosen],
        "mistakes": [cards[row["id"]] for row in mistakes],
        "attention": {
            "words": any(weight for item in cards.values() for _, weight in item["spans"]),
            "image": any(item["maps"] for item in cards.values()),
        },
        "no_images": no_images,
        "probabilities": examples.probability_words(record, name),
        "config": configs.flatten(record.config),
        "commands": commands(record, baseline),
        "written": date(time.time()),
    }
