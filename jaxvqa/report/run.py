"""What a run was, for its report: facts, remarks, and the commands that give it again."""

import contextlib
import dataclasses
import datetime
import functools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvqa import init_from, optim
from jaxvqa.best import Best, chosen_by_test
from jaxvqa.errors import CheckpointError, ConfigError
from jaxvqa.evaluators import has_own_measures
from jaxvqa.report.numbers import duration, integer, significant
from jaxvqa.runs import Run, said_of


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as a report shows it.

    Attributes:
      run: its work directory.
      meta: what is beside its newest checkpoint's state; empty without a checkpoint.
      parameters: how many numbers the model has; 0 when unknown.
      called: what it is called in curves and columns; empty: as its config says.
    """

    run: Run
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    called: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Reads a work directory.

        Raises:
          CheckpointError: it is not one.
          DataError: its config or its metrics are damaged.
        """
        run, meta, parameters = Run.open(folder), {}, 0
        assert run.metrics is not None
        # Reading a checkpoint waits for all processes of a job, and only the first of them writes the report.
        if jax.process_count() == 1:
            with contextlib.suppress(
                CheckpointError
            ):  # the other files still say a lot; the examples say what is wrong
                meta = run.meta
                parameters = run.parameters
        return cls(run, meta, parameters)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """The run's config as nested dicts."""
        return self.run.config.to_dict()

    @property
    def data(self) -> Mapping[str, Any]:
        """The config's fields of the data."""
        return self.config.get("data", {})

    @property
    def evals(self) -> Mapping[str, Mapping[str, Any]]:
        """The rows of the config's evaluations."""
        return self.config.get("evals", {})

    @property
    def label(self) -> str:
        """What it is called in curves and columns."""
        named = str(self.config.get("name") or self.run.folder.name)
        return self.called or ("question only" if self.run.blind else named)

    @property
    def main(self) -> str:
        """The evaluation that the report is about: `config.main_eval`, or the only one."""
        name = str(self.config.get("main_eval", ""))
        return name if name in self.evals else next(iter(self.evals), "val")

    @property
    def converted(self) -> bool:
        """Whether the weights come from another program and were not trained on here."""
        return self.meta.get("converted") is not None and not self.run.metrics

    @property
    def ended_early(self) -> bool:
        """Whether the patience of `config.best` ended the run before its last step."""
        best = Best(**self.config.get("best", {}))
        for row in self.run.metrics:
            best.add(row["step"], row)
        return best.is_enough

    @property
    def step(self) -> int:
        """The last step that was written down."""
        return max((row["step"] for row in self.run.metrics), default=0)

    @property
    def total_steps(self) -> int | None:
        """The step that the config asks for; None when that needs the size of a data set that no checkpoint knows."""
        total, batch = str(self.config.get("total", "")), int(self.config.get("batch_size", 1))
        size = self.meta.get("data", {}).get("size")
        if not total or (size is None and "epoch" in total):
            return None
        return optim.in_steps(total, data_size=size or batch, batch_size=batch)

    @property
    def training_seconds(self) -> float:
        """Time spent in training steps, compilation included; evaluations, saving and interruptions left out."""
        pairs = [pair for pair in zip(*self.series("train/examples_per_second"), strict=True) if pair[1]]
        steps = np.diff([0, *(step for step, _ in pairs)])
        return float(
            sum(n / rate for n, (_, rate) in zip(steps, pairs, strict=True)) * self.config.get("batch_size", 0)
        )

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values of a metric."""
        pairs = [(row["step"], float(row[name])) for row in self.run.metrics if name in row]
        return [step for step, _ in pairs], [value for _, value in pairs]

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """The newest value of each metric."""
        return {key: float(value) for row in self.run.metrics for key, value in row.items()}


def check_comparable(ours: Record, theirs: Record) -> None:
    """Checks that two runs answer the same questions.

    Raises:
      ConfigError: lists where their data differ.
    """

    def data(record: Record) -> dict[str, Any]:
        splits = {f"evals.{name}.split": row.get("split") for name, row in record.evals.items()}
        return {f"data.{name}": record.data.get(name) or 0 for name in ("examples", "limit")} | splits

    mine, others = data(ours), data(theirs)
    faults = [
        f"{name}: {mine[name]!r} in {ours.run.folder}, {others[name]!r} in {theirs.run.folder}"
        for name in mine
        if name in others and mine[name] != others[name]
    ]
    if faults:
        raise ConfigError("The baseline answers other questions than the run:\n  " + "\n  ".join(faults))


def facts(record: Record) -> list[tuple[str, str]]:
    """What a run was, in (name, value)."""
    config, data, run, total = record.config, record.data, record.run, record.total_steps
    size = record.meta.get("data", {}).get("size")
    steps = integer(record.step) + (f" of {integer(total)}" if total and total != record.step else "")
    rates = [rate for rate in record.series("train/examples_per_second")[1] if rate]
    waits = record.series("train/data_wait")[1]
    ends = [row["time"] for row in run.metrics if "time" in row]
    finished = (total and record.step >= total) or record.ended_early
    lines = [
        ("Model", config.get("model", {}).get("name", "")),
        ("Parameters", integer(record.parameters) if record.parameters else ""),
        ("Questions", data.get("examples", "")),
        ("Images", "not shown to the model" if run.blind else run.images),
        ("Trained on", data.get("train_split", "") + (f" ({integer(size)} questions)" if size else "")),
        ("Members", ", ".join(run.members)),
        ("Vote", str(config.get("vote", ""))),
        ("Steps", "" if run.members or record.converted else f"{steps}, {config.get('batch_size')} questions each"),
        ("Length", "" if record.converted else str(config.get("total", ""))),
        ("Training time", duration(record.training_seconds) if rates else ""),
        ("Speed", f"{significant(float(np.median(rates)))} questions/s" if rates else ""),
        ("Waiting for data", f"{100 * float(np.median(waits)):.1f} % of the time" if waits else ""),
        ("Device", str(record.meta.get("device", ""))),
        ("Precision", str(config.get("dtype", ""))),
        ("Seed", str(config.get("seed", ""))),
        ("Finished" if finished else "Last row", date(ends[-1]) if ends else ""),
    ]
    return [(name, value) for name, value in lines if value]


def date(seconds: float) -> str:
    """A time since the epoch, in the local time zone."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def notes(record: Record, baseline: Record | None = None) -> Iterator[str]:
    """What a reader should know before the numbers, a sentence or two each."""
    run, best, name, total = record.run, record.config.get("best", {}), record.main, record.total_steps
    rows, step, predictions = run.metrics, record.step, run.predictions(name)[1]
    saved_at = record.meta.get("data", {}).get("step") or 0
    if record.converted:
        yield (
            "These weights were converted from another program's file, and not trained on here: there are no curves."
            + ("" if predictions else " --mode=eval evaluates them.")
        )
    elif not rows and saved_at:
        yield f"This folder holds the state of a run at step {integer(saved_at)} alone, such as its best: no curves."
    elif not rows:
        yield "No metrics have been written yet: the run has not finished its first steps."
    elif record.ended_early:
        yield (
            f"This run ended at step {integer(step)}, since {best['metric']} had not got better in {best['patience']} "
            "evaluations."
        )
    elif total and step < total:
        yield (
            f"This run is not finished: step {integer(step)} of {integer(total)}. "
            "The same command goes on with it; the numbers below are those so far."
        )
    elif total is None and not run.members:
        yield (
            f"It is not known whether this run is finished: it has reached step {integer(step)}, and no checkpoint says how "
            "long an epoch is."
        )
    kind = record.evals.get(name, {}).get("type")
    measured = any(f"{name}/{m}" in record.values for m in ("accuracy", "bleu")) or (
        has_own_measures(kind) and any(key.startswith(f"{name}/") for key in record.values)
    )
    if rows and not measured and predictions:
        yield f"The evaluation {name!r} has predictions, but no accuracy: its split has no annotated answers."
    elif rows and not measured:
        yield "There is no evaluation in this run yet, so there are no accuracies to show."
    if split := chosen_by_test(record.config):
        yield (
            f"The best state is chosen by {best['metric']}, on the split {split!r} that it is tested on: its scores there are "
            "too good."
        )
    if not record.converted:
        yield from _missing_starts(record)
    if record.meta.get("fresh") and run.untrained:
        yield f"{said_of(run.untrained)}."
    if baseline and baseline.total_steps and baseline.step < baseline.total_steps:
        yield f"The baseline is not finished: step {integer(baseline.step)} of {integer(baseline.total_steps)}."
    if baseline and not baseline.series(f"{name}/accuracy")[0] and not baseline.run.predictions(name)[1]:
        yield f"The baseline {baseline.run.folder} has no evaluation {name!r}, so nothing is compared."


def _missing_starts(record: Record) -> Iterator[str]:
    """A sentence for each reason why parts of the model should have come from other runs, and did not."""
    reasons: dict[str, list[str]] = {}
    rows = {name: row for name, row in record.config.get("init_from", {}).items() if isinstance(row, Mapping)}
    for name, without in init_from.missing_starts(rows).items():
        reasons.setdefault(without, []).append(f"config.init_from.{name}")
    for reason, names in reasons.items():
        yield f"Not given: {', '.join(names)}. {reason[0].upper()}{reason[1:]}"


def commands(record: Record, baseline: Record | None) -> list[tuple[str, str]]:
    """What to type to get this run again and to look further: (what it does, command)."""
    data, run = record.data, record.run
    folder = f" --data_dir={shlex.quote(data['dir'])}" if data.get("dir") else ""
    parts = [part.partition("/") for part in (data.get("examples"), data.get("images")) if part]
    lines = []
    for name in dict.fromkeys(name for name, _, _ in parts):
        chosen = ",".join(dict.fromkeys(config for n, _, config in parts if n == name))
        lines.append(("Build the data", f"python -m tfds_builders.build {name} --config={chosen}{folder}"))
    workdir = shlex.quote(str(run.folder))
    if run.command:
        folder_is = "--to" if run.command.startswith("python -m jaxvqa.convert") else "--workdir"
        lines.append(("Make it again", f"{run.command} {folder_is}={workdir}-again"))
    lines.append(("Evaluate again", f"python -m jaxvqa.main --mode=eval --workdir={workdir}"))
    if not run.members:
        explain = f"python -m jaxvqa.explain --workdir={workdir} --count=24 --output={workdir}/explain"
        lines.append(("Explain more answers", explain))
    against = f" --baseline={shlex.quote(str(baseline.run.folder))}" if baseline else ""
    lines.append(("Write this report again", f"python -m jaxvqa.report --workdir={workdir}{against}"))
    return lines
