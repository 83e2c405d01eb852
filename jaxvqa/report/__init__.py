"""Writes WORKDIR/report.html: what came out of a run, in one file that opens anywhere, without a network.

    python -m jaxvqa.report --workdir=DIR [--baseline=DIR | --no-baseline]

It reads files alone: config.json, metrics.jsonl, predictions/ and, where they are there, the newest checkpoint and the data
set (for the example answers with attention). `--baseline` is the folder of another run on the same data, such as
the question-only one of `configs/rwsan.py:blind`; the two are compared question by question, in later reports too,
until `--no-baseline`.
"""

import base64
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import re
import runpy
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np

from jaxvqa import checkpoints, configs, fields, logs, optim
from jaxvqa.best import Best, chosen_by_test
from jaxvqa.errors import CheckpointError, ConfigError, DataError, UserError, os_errors
from jaxvqa.evaluators.context import write_whole
from jaxvqa.explain import overlay
from jaxvqa.explain.attention import Explanation, explain, question_spans, show
from jaxvqa.inputs import read_json, read_json_lines
from jaxvqa.metrics.bootstrap import confidence_interval
from jaxvqa.report import protocols
from jaxvqa.report.charts import VARIABLES, accuracy_chart, calibration_chart, charts
from jaxvqa.report.numbers import duration, integer, percent, points, significant

EXAMPLES = 12
WRONG_EXAMPLES = 4
"""Of the examples, how many are wrong answers where there are enough: mistakes teach more than their share."""
MISTAKES = 6
BINS = 10
MOST_VARIANTS = 3
"""How many variants of a config are tried together to find the command of a run."""
MOST_SELECTIONS = 4
"""How many selections of variants, the nearest, are tried with one more."""

Row = dict[str, Any]

PREDICTION = {
    **{"id": int, "image_id?": int, "question?": str, "answer?": str, "probability?": float, "accuracy?": float},
    "annotators?": [str],
}
"""What a line of a predictions file holds."""
CONFIG = {
    **{"name?": str, "task?": str, "total?": str, "batch_size?": int, "members?": str},
    **{"data?": {"blind?": bool, "examples?": str, "images?": str}, "model?": {"name?": str}},
    **{"evals?": {str: {"type?": str, "split?": str, "predict?": str}}, "optim?": {}, "best?": {"metric?": str}},
}
"""What a run's config.json holds, of what a report says."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a work directory say.

    Attributes:
      workdir: the folder.
      config: config.json.
      rows: metrics.jsonl.
      meta: the newest checkpoint's `meta`; empty without a checkpoint.
      parameters: how many numbers the model has; 0 when unknown.
      called: what it is called in curves and columns; empty: as its config says.
    """

    workdir: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    meta: Mapping[str, Any]
    parameters: int
    called: str = ""

    @property
    def blind(self) -> bool:
        """Whether the model sees the questions alone."""
        data = self.config.get("data", {})
        return bool(data.get("blind")) or not self.pictures

    @property
    def pictures(self) -> str:
        """The part of the data with the pictures; in a pre-training each example has one."""
        data = self.config.get("data", {})
        return data.get("images") or (data.get("examples", "") if data.get("question_list") else "")

    @property
    def members(self) -> list[str]:
        """The folders of runs that answer together (`jaxvqa.ensemble`); none for a run that is trained."""
        return [folder for folder in str(self.config.get("members", "")).split(",") if folder]

    @property
    def label(self) -> str:
        """What it is called in curves and columns."""
        return self.called or ("question only" if self.blind else str(self.config.get("name") or self.workdir.name))

    @property
    def converted(self) -> bool:
        """Whether the weights come from another program and were not trained on here."""
        return self.meta.get("converted") is not None and not self.rows

    @property
    def ended_early(self) -> bool:
        """Whether the patience of `config.best` ended the run before its last step."""
        best = Best(**self.config.get("best", {}))
        for row in self.rows:
            best.add(row["step"], row)
        return best.is_enough

    @property
    def step(self) -> int:
        """The last step that was written down."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def total_steps(self) -> int | None:
        """The step that the config asks for; None when that needs the size of a data set that no checkpoint tells."""
        total, batch = str(self.config.get("total", "")), int(self.config.get("batch_size", 1))
        size = self.meta.get("data", {}).get("size")
        if not total or (size is None and "epoch" in total):
            return None
        return optim.in_steps(total, data_size=size or batch, batch_size=batch)

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps, compilation included; evaluations, saving and interruptions left out."""
        batch, seconds, before = int(self.config.get("batch_size", 0)), 0.0, 0
        for row in self.rows:
            if row.get("train/examples_per_second"):
                seconds += (row["step"] - before) * batch / row["train/examples_per_second"]
                before = row["step"]
        return seconds

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values of a metric."""
        pairs = [(row["step"], float(row[name])) for row in self.rows if name in row]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def predictions(self, name: str) -> tuple[int, list[Row]]:
        """The newest predictions of an evaluation and their step; (0, []) when there are none."""
        found = {
            int(match[1]): path
            for path in (self.workdir / "predictions").glob("*.jsonl")
            if (match := re.fullmatch(rf"{re.escape(name)}_(\d+)\.jsonl", path.name))
        }
        if not found:
            return 0, []
        step = max(found)
        return step, read_json_lines(found[step], "predictions, as --mode=predict writes them", PREDICTION)


def read_run(workdir: Path) -> Run:
    """Reads a work directory.

    Raises:
      ConfigError: it is none.
      DataError: its config or its metrics are damaged.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise ConfigError(f"{workdir} is no work directory of a run: it has no config.json.")
    config = read_json(file, "the config of a run, as --mode=train writes it", CONFIG)
    rows = logs.read_metrics(workdir)
    meta: Mapping[str, Any] = {}
    parameters = 0
    # Reading a checkpoint waits for all processes of a job, and only the first of them writes the report.
    if (workdir / checkpoints.FOLDER).is_dir() and jax.process_count() == 1:
        saved = checkpoints.Checkpoints(workdir, read_only=True)
        try:
            if saved.latest_step() is not None:
                meta = saved.read_json()[1]
                parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(saved.model_shapes()["params"]))
        except CheckpointError:
            pass  # the other files still say a lot; the examples say why they have no pictures
        finally:
            saved.close()
    return Run(workdir, config, rows, meta, parameters)


def kept_baseline(workdir: Path) -> Path | None:
    """The baseline of the run's last report, which WORKDIR/report.json keeps relative to the folder; None without one."""
    file = workdir / "report.json"
    if not file.is_file():
        return None
    return Path(os.path.normpath(workdir / read_json(file, "what a report keeps", {"baseline": str})["baseline"]))


def read_runs(workdir: Path, baseline: Path | None) -> tuple[Run, Run | None]:
    """Reads a run and the one to compare it with; two of one name are called by their folders.

    Raises:
      ConfigError: a folder is no work directory, or the two runs have other data.
    """
    run = read_run(Path(workdir))
    if baseline is None:
        return run, None
    other = read_run(Path(baseline))
    _check_comparable(run, other)
    if run.label == other.label:
        run, other = (dataclasses.replace(r, called=r.workdir.resolve().name) for r in (run, other))
    return run, other


def write(workdir: Path, baseline: Path | None = None, *, alone: bool = False) -> Path:
    """Writes WORKDIR/report.html and returns its path.

    Args:
      workdir: the run's folder.
      baseline: the folder of a run on the same data to compare with; by default that of the last report, if it is still there.
      alone: with no baseline, and none in later reports.

    Raises:
      ConfigError: a folder is no work directory, or the two runs have other data.
      StorageError: the file cannot be written.
    """
    kept = None if alone or baseline else kept_baseline(Path(workdir))
    gone = kept is not None and not (kept / "config.json").is_file()
    run, other = read_runs(workdir, baseline or (None if gone else kept))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "integer": integer, "points": points, "duration": duration}
    shown = content(run, other)
    if gone:
        shown["notes"].append(f"The baseline of the last report, {kept}, is not there any more: nothing is compared.")
    page = environment.get_template("report.html").render(shown)
    path = run.workdir / "report.html"
    with os_errors(run.workdir):
        write_whole(path, page)
        if other:
            relative = os.path.relpath(other.workdir.resolve(), run.workdir.resolve())
            write_whole(run.workdir / "report.json", json.dumps({"baseline": relative}) + "\n")
        elif alone:
            (run.workdir / "report.json").unlink(missing_ok=True)
    return path


def write_curve(path: Path, workdir: Path, baseline: Path | None = None) -> None:
    """Writes the curve of accuracy alone, an SVG file that needs no page around it.

    Raises:
      ConfigError: a folder is no work directory, the two runs have other data, or the run has no evaluation yet.
      StorageError: the file cannot be written.
    """
    run, other = read_runs(workdir, baseline)
    chart = accuracy_chart(run, other, main_evaluation(run))
    if not chart:
        raise ConfigError(f"{workdir} holds no evaluation to draw: let the run reach its first one.")
    picture = chart["svg"].replace("<svg", '<svg style="background: white; font-family: sans-serif"', 1)
    style = (Path(__file__).parent / "report.html").read_text()
    for variable in VARIABLES.values():
        colour = re.search(rf"{variable}: ([^;]+);", style)  # the first is that of the light page
        assert colour
        picture = picture.replace(f"var({variable})", colour[1])
    with os_errors(path.parent):
        write_whole(path, picture)


def content(run: Run, baseline: Run | None = None) -> dict[str, Any]:
    """Everything that the template shows."""
    name = main_evaluation(run)
    _, predictions = run.predictions(name)
    _, base_predictions = baseline.predictions(name) if baseline else (0, [])
    scored = [row for row in predictions if "accuracy" in row]
    answers = [row for row in predictions if "answer" in row]  # an evaluation of scores alone has none
    before = {row["id"]: row["accuracy"] for row in base_predictions if "accuracy" in row}
    notes = _notes(run, baseline, name)
    scored_answers = [row for row in answers if "accuracy" in row]
    examples, mistakes = choose_examples(answers), confident_mistakes(scored_answers)
    explained, why_not = _explanations(run, name, predictions, [*examples, *mistakes])
    cards = {row["id"]: card(row, explained.get(row["id"])) for row in [*examples, *mistakes]}
    return {
        "run": run,
        "baseline": baseline,
        "name": name,
        "task": TASKS.get(run.config.get("task", ""), "Visual question answering"),
        "split": run.config.get("evals", {}).get(name, {}).get("split", name),
        "notes": notes,
        "result": result(run, name, scored),
        "baseline_result": result(baseline, name, [r for r in base_predictions if "accuracy" in r])
        if baseline
        else None,
        "difference": difference(scored, before),
        "other_results": [
            (other, result(run, other, []))
            for other in evaluations(run)
            if other != name and run.series(f"{other}/accuracy")[0]
        ],
        "scores": [row for other in evaluations(run) for row in scores(run, other)],
        "tables": protocols.tables(run, name),
        "facts": facts(run),
        "versions": run.meta.get("versions", {}),
        "charts": []
        if run.members  # they answer once
        else charts(run, baseline, name, curves(run, name)),
        "groups": groups(scored, before) or groups_from_metrics(run, baseline, name),
        "calibration": calibration(scored_answers),
        "examples": [cards[row["id"]] for row in examples],
        "mistakes": [cards[row["id"]] for row in mistakes],
        "attention": {
            "words": any(weight for item in cards.values() for _, weight in item["spans"]),
            "picture": any(item["overlay"] for item in cards.values()),
        },
        "no_pictures": why_not,
        "probabilities": probability_words(run, name),
        "config": checkpoints.flatten_config(run.config),
        "commands": commands(run, baseline),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    }


# --- numbers -------------------------------------------------------------------------------------------------------------


def evaluations(run: Run) -> list[str]:
    """The names of the run's evaluations, in the config's order."""
    return list(run.config.get("evals", {}))


def main_evaluation(run: Run) -> str:
    """The evaluation that the report is about: `config.main_eval`; of a run from before that, the first with an accuracy."""
    names = evaluations(run)
    if run.config.get("main_eval") in names:
        return run.config["main_eval"]
    with_accuracy = [name for name in names if run.series(f"{name}/accuracy")[0]]
    return (with_accuracy or names or ["val"])[0]


def result(run: Run, name: str, scored: Sequence[Row]) -> dict[str, Any] | None:
    """The last accuracy of an evaluation in percent with its interval, from the metrics, else from the predictions."""
    steps, values = run.series(f"{name}/accuracy")
    if steps:
        row = next(row for row in reversed(run.rows) if f"{name}/accuracy" in row)
        low, high = row.get(f"{name}/accuracy/low"), row.get(f"{name}/accuracy/high")
        return {"accuracy": values[-1], "low": low, "high": high, "step": steps[-1], "questions": len(scored) or None}
    if not scored:
        return None
    accuracies = [row["accuracy"] for row in scored]
    low, high = confidence_interval(accuracies, _images(scored))
    return {
        "accuracy": 100 * float(np.mean(accuracies)),
        "low": 100 * low,
        "high": 100 * high,
        "step": run.predictions(name)[0],
        "questions": len(scored),
    }


def scores(run: Run, name: str) -> list[tuple[str, dict[str, Any]]]:
    """What an evaluation gives beside an accuracy of answers, such as "test/iou": the last value and its interval."""
    rows = [row for row in run.rows if any(key.startswith(f"{name}/") for key in row)]
    if not rows or run.config.get("evals", {}).get(name, {}).get("type") != "scores":
        return []
    found = []
    for key, value in rows[-1].items():
        if key.count("/") == 1 and key.startswith(f"{name}/"):
            low, high = rows[-1].get(f"{key}/low"), rows[-1].get(f"{key}/high")
            found.append((key, {"value": value, "low": low, "high": high, "step": rows[-1]["step"]}))
    return found


def curves(run: Run, name: str) -> list[str]:
    """Metrics in percent beside the accuracy whose curves are worth drawing: scores, and how well captions are written."""
    found = [score for score, _ in scores(run, name) if score != f"{name}/accuracy"]
    return found or [f"{name}/{measure}" for measure in ("bleu", "bleu_4") if not run.series(f"{name}/accuracy")[0]]


def _images(rows: Sequence[Row]) -> list[int]:
    return [row["image_id"] for row in rows]


def difference(scored: Sequence[Row], before: Mapping[int, float]) -> dict[str, Any] | None:
    """The mean difference in accuracy on the questions that both answered, in points, with its paired interval."""
    both = [row for row in scored if row["id"] in before]
    if not both:
        return None
    pairs = [row["accuracy"] - before[row["id"]] for row in both]
    low, high = confidence_interval(pairs, _images(both), paired=True)
    return {"points": 100 * float(np.mean(pairs)), "low": 100 * low, "high": 100 * high, "questions": len(pairs)}


TASKS = {"multi_task_pretraining": "Multi-task pre-training", "text_generation": "Answers and captions in words"}
"""Tasks that are not called visual question answering."""

_APART = "Each answer has a probability of its own: they need not add up to 100 %."
_TOGETHER = "The probabilities of all answers add up to 100 %; the most probable are shown."
_OF_TEXTS = "A text's probability is the product of those of its tokens: longer texts have smaller ones."
PROBABILITIES = {
    "answer_classification": _APART,
    "radiology_vqa": _APART,
    "image_classification": _TOGETHER,
    "text_generation": _OF_TEXTS,
}
"""What the probabilities of a task's answers are: sigmoids, a softmax, or those of tokens."""


def probability_words(run: Run, name: str) -> str:
    """What the probabilities of an evaluation's answers are, in a sentence; members that vote are classifiers of images."""
    predict = run.config.get("evals", {}).get(name, {}).get("predict", "")
    if run.members or predict.startswith(("classes", "ranked")):
        return _TOGETHER
    return PROBABILITIES.get(run.config.get("task", ""), "")


GROUP_TITLES = {
    "question_type": "Question type",
    "answer_type": "Answer type",
    "open_closed": "Open or closed",
    "phrase_type": "Phrase type",
    "organ": "Organ",
}
"""Question features that predictions may carry -> title of their table, in the page's order."""


def groups(scored: Sequence[Row], before: Mapping[int, float]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Accuracy by type: (title, rows), a row with name, questions, accuracy, low, high, baseline, difference (percent)."""
    tables = []
    for group in GROUP_TITLES:
        members = defaultdict(list)
        for row in scored:
            if row.get(group):
                members[row[group]].append(row)
        lines = []
        for name, rows in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
            accuracies = [row["accuracy"] for row in rows]
            low, high = confidence_interval(accuracies, _images(rows))
            both = [row for row in rows if row["id"] in before]
            base = 100 * float(np.mean([before[row["id"]] for row in both])) if both else None
            ours = 100 * float(np.mean(accuracies))
            lines.append(
                {
                    "name": name,
                    "questions": len(rows),
                    "accuracy": ours,
                    "low": 100 * low,
                    "high": 100 * high,
                    "baseline": base,
                    "difference": None if base is None else 100 * float(np.mean([r["accuracy"] for r in both])) - base,
                }
            )
        if lines:
            tables.append((GROUP_TITLES[group], lines))
    return tables


def groups_from_metrics(run: Run, baseline: Run | None, name: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """The same without predictions: the last accuracies by type that the metrics hold, without counts."""
    tables = []
    for group in GROUP_TITLES:
        prefix = f"{name}/{group}/"
        members = sorted({key for row in run.rows for key in row if key.startswith(prefix)})
        lines = []
        for key in members:
            accuracy = run.series(key)[1][-1]
            base = next(reversed(baseline.series(key)[1]), None) if baseline else None
            lines.append(
                {
                    "name": key.removeprefix(prefix),
                    "questions": None,
                    "accuracy": accuracy,
                    "low": None,
                    "high": None,
                    "baseline": base,
                    "difference": None if base is None else accuracy - base,
                }
            )
        if lines:
            tables.append((GROUP_TITLES[group], lines))
    return tables


def calibration(scored: Sequence[Row]) -> dict[str, Any] | None:
    """Probability against accuracy in ten bins, and the expected calibration error (Guo et al. 2017) in points."""
    if not scored:
        return None
    probability = np.array([row["probability"] for row in scored])
    accuracy = np.array([row["accuracy"] for row in scored])
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    bins = []
    for i in range(BINS):
        inside = which == i
        if inside.any():
            bins.append((float(probability[inside].mean()), float(accuracy[inside].mean()), int(inside.sum())))
    error = 100 * sum(n * abs(p - a) for p, a, n in bins) / len(scored)
    excess = 100 * float(probability.mean() - accuracy.mean())
    verdict = "about as sure as it is right" if abs(excess) < 1 else "too sure" if excess > 0 else "not sure enough"
    return {
        "error": error,
        "probability": 100 * float(probability.mean()),
        "accuracy": 100 * float(accuracy.mean()),
        "verdict": verdict,
        "chart": calibration_chart(bins),
    }


def facts(run: Run) -> list[tuple[str, str]]:
    """What a run was, in (name, value)."""
    config, total = run.config, run.total_steps
    data = config.get("data", {})
    size = run.meta.get("data", {}).get("size")
    trained_on = f"{data.get('train_split', '')} ({integer(size)} questions)" if size else data.get("train_split", "")
    steps = integer(run.step) + (f" of {integer(total)}" if total and total != run.step else "")
    rates = [rate for rate in run.series("train/examples_per_second")[1] if rate]
    waits = run.series("train/data_wait")[1]
    ends = [row["time"] for row in run.rows if "time" in row]
    lines = [
        ("Model", config.get("model", {}).get("name", "")),
        ("Parameters", integer(run.parameters) if run.parameters else ""),
        ("Questions", data.get("examples", "")),
        ("Pictures", "not shown to the model" if run.blind else run.pictures),
        ("Trained on", trained_on),
        ("Members", ", ".join(run.members)),
        ("Vote", str(config.get("vote", ""))),
        ("Steps", "" if run.members or run.converted else f"{steps}, {config.get('batch_size')} questions each"),
        ("Length", "" if run.converted else str(config.get("total", ""))),
        ("Training time", duration(run.training_seconds) if rates else ""),
        ("Speed", f"{significant(float(np.median(rates)))} questions/s" if rates else ""),
        ("Waiting for data", f"{100 * float(np.median(waits)):.1f} % of the time" if waits else ""),
        ("Device", str(run.meta.get("device", ""))),
        ("Precision", str(config.get("dtype", ""))),
        ("Seed", str(config.get("seed", ""))),
        (
            "Finished" if (total and run.step >= total) or run.ended_early else "Last row",
            _date(ends[-1]) if ends else "",
        ),
    ]
    return [(name, value) for name, value in lines if value]


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _notes(run: Run, baseline: Run | None, name: str) -> list[str]:
    notes = []
    total = run.total_steps
    saved_at = run.meta.get("data", {}).get("step") or 0
    if run.converted:
        notes.append(
            "These weights were converted from another program's file, and not trained on here: there are no curves."
            + ("" if run.predictions(name)[1] else " --mode=eval evaluates them.")
        )
    elif not run.rows and saved_at:
        notes.append(
            f"This folder holds the state of a run at step {integer(saved_at)} alone, such as its best: no curves."
        )
    elif not run.rows:
        notes.append("No metrics have been written yet: the run has not finished its first steps.")
    elif run.ended_early:
        notes.append(
            f"This run ended at step {integer(run.step)}, since {run.config['best']['metric']} had not got better in "
            f"{run.config['best']['patience']} evaluations."
        )
    elif total and run.step < total:
        notes.append(
            f"This run is not finished: step {integer(run.step)} of {integer(total)}. "
            "The same command goes on with it; the numbers below are those so far."
        )
    elif total is None and not run.members:
        notes.append(
            f"Whether this run is finished cannot be told: it has reached step {integer(run.step)}, and there is no "
            "checkpoint that says how long an epoch is."
        )
    if run.rows and not any(run.series(f"{name}/{m}")[0] for m in ("accuracy", "bleu")) and not scores(run, name):
        if run.predictions(name)[1]:
            notes.append(
                f"The evaluation {name!r} has predictions, but no accuracy: its split has no annotated answers."
            )
        else:
            notes.append("There is no evaluation in this run yet, so there are no accuracies to show.")
    if split := chosen_by_test(run.config):
        notes.append(
            f"The best state is chosen by {run.config['best']['metric']}, on the split {split!r} that it is tested on: its "
            "scores there are too good."
        )
    notes += [] if run.converted else protocols.missing_starts(run)
    if baseline and baseline.total_steps and baseline.step < baseline.total_steps:
        notes.append(f"The baseline is not finished: step {integer(baseline.step)} of {integer(baseline.total_steps)}.")
    if baseline and not baseline.series(f"{name}/accuracy")[0] and not baseline.predictions(name)[1]:
        notes.append(f"The baseline {baseline.workdir} has no evaluation {name!r}, so nothing is compared.")
    return notes


def _check_comparable(run: Run, baseline: Run) -> None:
    def data(r: Run) -> dict[str, Any]:
        fields = r.config.get("data", {})
        splits = {f"evals.{n}.split": row.get("split") for n, row in r.config.get("evals", {}).items()}
        return {"data.examples": fields.get("examples"), "data.limit": fields.get("limit", 0)} | splits

    ours, theirs = data(run), data(baseline)
    faults = [
        f"{name}: {ours[name]!r} in {run.workdir}, {theirs[name]!r} in {baseline.workdir}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    if faults:
        raise ConfigError("The baseline answers other questions than the run:\n  " + "\n  ".join(faults))


# --- examples ------------------------------------------------------------------------------------------------------------


def choose_examples(rows: Sequence[Row], count: int = EXAMPLES, wrong: int = WRONG_EXAMPLES) -> list[Row]:
    """A fixed random choice across question types, of right and wrong answers, each on another picture if possible."""
    if not rows:
        return []
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    missed = [row for row in shuffled if row.get("accuracy", 1) < 0.5]
    hit = [row for row in shuffled if row.get("accuracy", 1) >= 0.5]
    n_missed = min(len(missed), max(wrong, count - len(hit)))
    chosen: list[Row] = []
    for pool, n in ((missed, n_missed), (hit, count - n_missed)):
        chosen += _across_types(pool, n, {row["image_id"] for row in chosen})
    return sorted(chosen, key=lambda row: (row.get("question_type") or row.get("answer_type") or "", row["id"]))


def _across_types(rows: Sequence[Row], count: int, used: set[int]) -> list[Row]:
    """Takes rows type by type in turn, those on unused pictures first."""
    by_type = defaultdict(list)
    for row in rows:
        by_type[row.get("question_type") or row.get("answer_type") or ""].append(row)
    fresh: list[Row] = []
    repeated: list[Row] = []
    for row in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*by_type.values()))):
        (repeated if row["image_id"] in used else fresh).append(row)
        used.add(row["image_id"])
        if len(fresh) == count:
            break
    return (fresh + repeated)[:count]


def confident_mistakes(scored: Sequence[Row], count: int = MISTAKES) -> list[Row]:
    """The answers that no annotator gave, most probable first."""
    return sorted((row for row in scored if row["accuracy"] == 0), key=lambda row: (-row["probability"], row["id"]))[
        :count
    ]


def _explanations(
    run: Run, name: str, predictions: Sequence[Row], wanted: Sequence[Row]
) -> tuple[dict[int, Explanation], str]:
    """Explanations by question id, and why there are none where that is so."""
    if not wanted:
        return {}, ""
    if jax.process_count() > 1:
        return {}, "The pictures are left out in a job of several processes; write the report again in one process."
    # Predictions are written in the split's order, so a row's place is the question's.
    places = {row["id"]: place for place, row in enumerate(predictions)}
    ids = list(dict.fromkeys(row["id"] for row in wanted))
    split = run.config.get("evals", {}).get(name, {}).get("split", name)
    try:
        positions = [places[i] for i in ids]
        if run.members:  # their one answer is no model's: the pictures, then, without attention
            found = show(fields.final(configs.from_json(dict(run.config))), split=split, positions=positions)
        else:
            found = explain(run.workdir, split=split, positions=positions)
    except UserError as error:
        return {}, f"The pictures cannot be shown. {error}"
    if [e.id for e in found] != ids:
        return {}, "The pictures cannot be shown: the data set has changed since the predictions were written."
    return {e.id: e for e in found}, ""


def card(row: Row, explanation: Explanation | None) -> dict[str, Any]:
    """What the template shows of one question."""
    accuracy = row.get("accuracy")
    verdict = ""
    if accuracy is not None:
        verdict = "right" if accuracy == 1 else "wrong" if accuracy == 0 else "partly right"
    shown: dict[str, Any] = {
        "row": row,
        "verdict": verdict,
        "type": " · ".join(str(row[group]) for group in GROUP_TITLES if row.get(group)),
        "annotators": overlay.most_common(row.get("annotators", [])),
        "spans": [(row["question"], None)],
        "answers": [(row["answer"], row["probability"])],
        "picture": None,
        "overlay": None,
        "fault": "",
    }
    if explanation is None:
        return shown
    spans = question_spans(explanation.question, explanation.words, explanation.word_attention)
    top = max((weight for _, weight in spans if weight), default=0.0)
    shown["spans"] = [(text, None if w is None else (w, w / top if top else 0.0)) for text, w in spans]
    shown["answers"] = explanation.answers or shown["answers"]
    try:
        drawn = overlay.canvas(explanation)
    except DataError as error:
        return shown | {"fault": str(error)}
    if drawn is None:
        return shown
    image, boxes = drawn
    shown["picture"] = _data_url(image)
    weights = explanation.region_attention
    if len(boxes):
        shown["overlay"] = _data_url(overlay.overlay(image, boxes, weights))
        strongest = ", ".join(f"{100 * w:.0f} %" for w in sorted(weights, reverse=True)[:3])
        shown["overlay_alt"] = (
            f"The same picture with the attention over {len(boxes)} regions; the strongest: {strongest}."
        )
    shown["picture_alt"] = (
        f"Picture {explanation.image_id} of the data set."
        if explanation.image
        else f"Empty canvas in the size of picture {explanation.image_id}, which is not in the data set."
    )
    return shown


def _data_url(image: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(overlay.encode(image, "JPEG")).decode()


# --- how to reproduce ------------------------------------------------------------------------------------------------------


def commands(run: Run, baseline: Run | None) -> list[tuple[str, str]]:
    """What to type to get this run again and to look further: (what it does, command)."""
    data = run.config.get("data", {})
    folder = f" --data_dir={shlex.quote(data['dir'])}" if data.get("dir") else ""
    parts = [p.partition("/") for p in (data.get("examples"), data.get("images")) if p]
    lines = []
    for name in dict.fromkeys(name for name, _, _ in parts):
        chosen = ",".join(dict.fromkeys(config for n, _, config in parts if n == name))
        lines.append(("Build the data", f"python -m tfds_builders.build {name} --config={chosen}{folder}"))
    workdir = shlex.quote(str(run.workdir))
    train = "" if run.members else train_command(run.config)
    if train:
        lines.append(("Train again", f"{train} --workdir={workdir}-again"))
    lines.append(("Evaluate again", f"python -m jaxvqa.main --mode=eval --workdir={workdir}"))
    if not run.members:
        explain = f"python -m jaxvqa.explain --workdir={workdir} --count=24 --output={workdir}/explain"
        lines.append(("Explain more answers", explain))
    against = f" --baseline={shlex.quote(str(baseline.workdir))}" if baseline else ""
    lines.append(("Write this report again", f"python -m jaxvqa.report --workdir={workdir}{against}"))
    return lines


def train_command(config: Mapping[str, Any]) -> str:
    """The command that gives this config: the packaged config file and variants that are nearest, and the fields changed.

    Empty when no packaged config has the same fields.
    """
    wanted = checkpoints.flatten_config(config)
    found: list[list[str]] = []
    for file in sorted((Path(__file__).parent.parent.parent / "configs").glob("[a-z]*.py")):
        for chosen, flat in _nearest_configs(file, wanted):
            if flat.keys() == wanted.keys():
                argument = f"--config=configs/{file.name}{':' if chosen else ''}{','.join(chosen)}"
                changed = [f"--config.{key}={_as_text(value)}" for key, value in wanted.items() if flat[key] != value]
                found.append([argument, *changed])
    found.sort(key=lambda words: (len(words), len(words[0])))
    return " ".join(["python -m jaxvqa.main", *map(shlex.quote, found[0])]) if found else ""


def _nearest_configs(file: Path, wanted: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The selections of a config file's `VARIANTS` whose configs, flattened, are nearest to `wanted`, of every length.

    Each length adds one variant to the nearest of the length before: there are too many selections to try all.
    """
    variants = _module(file).get("VARIANTS", ())
    level: set[tuple[str, ...]] = {()}
    for _ in range(MOST_VARIANTS + 1):
        tried = [(chosen, flat) for chosen in sorted(level) if (flat := _packaged_config(file, chosen))]
        tried.sort(key=lambda row: sum(row[1].get(k) != wanted.get(k) for k in row[1].keys() | wanted.keys()))
        nearest = tried[:MOST_SELECTIONS]
        yield from nearest
        larger = ({*chosen, variant} for chosen, _ in nearest for variant in variants if variant not in chosen)
        level = {tuple(v for v in variants if v in selection) for selection in larger}


@functools.cache
def _packaged_config(file: Path, variants: tuple[str, ...]) -> Mapping[str, Any]:
    """A config that comes with the program, flattened; empty where the file has none, or the variants do not go together."""
    if "get_config" not in _module(file):
        return {}
    try:
        config = _module(file)["get_config"](",".join(variants) or None)
    except UserError:
        return {}
    return checkpoints.flatten_config(json.loads(config.to_json_best_effort()))


@functools.cache
def _module(file: Path) -> Mapping[str, Any]:
    return runpy.run_path(str(file))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
