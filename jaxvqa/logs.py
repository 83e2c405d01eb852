"""What a run writes down: metrics as JSON lines and TensorBoard events (process 0 only), and its words on the terminal."""

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import absl.logging
import jax
import rich.console
import rich.logging
import rich.progress

from jaxvqa.errors import os_errors

log = logging.getLogger("jaxvqa")


def setup() -> None:
    """Sends the program's words to stderr: process 0 from INFO on, the others from WARNING on."""
    console = rich.console.Console(stderr=True)
    log.handlers = [
        rich.logging.RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S", show_level=False)
        if console.is_terminal
        else logging.StreamHandler()
    ]
    log.propagate = False
    absl.logging.set_verbosity(absl.logging.ERROR)  # orbax and grain warn of things that are meant
    log.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)


class MetricWriter:
    """Appends rows to WORKDIR/metrics.jsonl and to TensorBoard event files under WORKDIR/tensorboard.

    A row is {"step", "time" (seconds since the epoch), name: value, …}. Every process may call it; process 0 writes.
    """

    def __init__(self, workdir: Path, first_step: int):
        """Args: the run's folder, and the step it starts from: rows after it, left by a run cut off, are dropped."""
        self._active = jax.process_index() == 0
        self._file = workdir / "metrics.jsonl"
        if not self._active:
            return
        with os_errors(workdir):
            if self._file.exists():
                kept = [row for row in read_metrics(workdir) if row["step"] <= first_step]
                partial = self._file.with_suffix(".partial")
                partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
                os.replace(partial, self._file)
        self._first_step = first_step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row, at once readable by others."""
        if not self._active or not values:
            return
        with os_errors(self._file.parent):
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | dict(values)) + "\n")
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    @functools.cached_property
    def _events(self) -> Any:
        # At the first row, not sooner: where PyTorch is installed, tensorboardX imports it, which takes seconds, and a run
        # shall make its first step before.
        import tensorboardX

        purge = self._first_step + 1 if self._first_step else None
        return tensorboardX.SummaryWriter(str(self._file.parent / "tensorboard"), purge_step=purge)

    def close(self) -> None:
        """Closes the event file."""
        if "_events" in self.__dict__:
            self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of WORKDIR/metrics.jsonl, none without such a file; a last line that was cut off is left out."""
    file = workdir / "metrics.jsonl"
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class Progress:
    """A live bar on a terminal, or a line now and then elsewhere: loss, accuracy, examples/s, time left, wait for data."""

    def __init__(self, first_step: int, total_steps: int):
        """Args: the step that the run starts from, and its last one."""
        self._total = total_steps
        self._bar: rich.progress.Progress | None = None
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("[bold]step {task.completed}/{task.total}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[words]}"),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task("train", total=total_steps, completed=first_step, words="compiling …")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Shows the newest averages."""
        shares = {name: values.get(f"train/{name}") for name in ("accuracy", "compatibility")}
        words = (
            f"loss {values['train/loss']:.4g}  "
            + "".join(f"{name} {100 * share:.1f} %  " for name, share in shares.items() if share is not None)
            + f"{values['train/examples_per_second']:.0f} examples/s  data wait {100 * values['train/data_wait']:.1f} %"
        )
        if self._bar:
            self._bar.update(self._task, completed=step, words=words)
        else:
            minutes, seconds = divmod(round(seconds_left), 60)
            log.info("step %d/%d  %s  left %d:%02d", step, self._total, words, minutes, seconds)
