"""What a run writes down: metrics as JSON lines and TensorBoard events (process 0 only), and its words on the terminal."""

import functools
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import absl.logging
import jax
import rich.console
import rich.logging
import rich.progress
import rich.table

from jaxvqa.errors import ConfigError, choose, os_errors
from jaxvqa.inputs import check_form, read_json_lines

log = logging.getLogger("jaxvqa")

Part = TypeVar("Part")

LEVELS = {"": logging.INFO, "quiet": logging.WARNING, "verbose": logging.DEBUG}
"""JAXVQA_LOG -> the least that is said."""


def setup() -> None:
    """Sends the program's words to stderr, each at once and with the time: process 0 from INFO on, the others from WARNING on.

    What libraries warn of or note is not for people who use a program: their errors are shown. JAXVQA_LOG=quiet leaves warnings
    and results alone, without bars; JAXVQA_LOG=verbose shows what libraries say too, and what JAX compiles.

    Raises:
      ConfigError: JAXVQA_LOG is something else.
    """
    loudness = os.environ.get("JAXVQA_LOG", "")
    if loudness not in LEVELS:
        raise ConfigError(f"JAXVQA_LOG={loudness}{choose(loudness, [name for name in LEVELS if name])}")
    elsewhere = logging.StreamHandler()
    elsewhere.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [
        rich.logging.RichHandler(
            console=_console(), show_path=False, log_time_format="%H:%M:%S", show_level=False, omit_repeated_times=False
        )
        if on_terminal()
        else elsewhere
    ]
    log.propagate = False
    verbose = loudness == "verbose"
    absl.logging.set_verbosity(absl.logging.INFO if verbose else absl.logging.ERROR)
    if verbose:
        jax.config.update("jax_log_compiles", True)
    elif not sys.warnoptions:  # those who ask for warnings, by python -W or PYTHONWARNINGS, get them
        warnings.filterwarnings(
            "ignore", module=r"(orbax|grain|etils|absl|tensorflow_datasets|tensorboardX|google)\b.*"
        )
    log.setLevel(LEVELS[loudness] if _is_first() else logging.WARNING)


def on_terminal() -> bool:
    """Whether a person watches stderr as it is written."""
    return _console().is_terminal


@functools.cache
def _console() -> rich.console.Console:
    return rich.console.Console(stderr=True)


def _is_first() -> bool:
    # A single process should not start JAX's devices for this.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


class MetricWriter:
    """Appends rows to WORKDIR/metrics.jsonl and to TensorBoard event files under WORKDIR/tensorboard.

    A row is {"step", "time" (seconds since the epoch), name: value, …}. Values named `train/…` are means of the steps since the
    last such row, as the task gives them: accuracies and the wait for data are shares from 0 to 1. Those of an evaluation,
    `NAME/…`, are percent, but for losses, `perplexity` and `cider`. No evaluation may be called train, so that a key has one
    unit. Every process may call it; process 0 writes.
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
                write_whole(self._file, "".join(json.dumps(row) + "\n" for row in kept))
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
    """The rows of WORKDIR/metrics.jsonl, none without such a file; a last line that was cut off is left out.

    Raises:
      DataError: another line is damaged.
    """
    file, expected = workdir / "metrics.jsonl", "a step and its metrics in each line, as a run writes them"
    if not file.exists():
        return []
    rows = read_json_lines(file, expected, {str: math.nan}, cut=True)
    check_form(rows, [{"step": int}], file, expected)
    return rows


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name first, so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


BAR_SECONDS, LINE_SECONDS = 1.0, 10.0
"""How often a bar's words, or lines where there is no terminal, say how far something is."""


class Progress:
    """How far something is: a bar on a terminal, else a line at its start and every ten seconds. Process 0 shows it.

    Bars may be opened within each other, as that of an evaluation within that of a training.
    """

    _live: rich.progress.Progress | None = None

    def __init__(self, what: str, total: int, done: int = 0, words: str = ""):
        """Args: what is done, as in "evaluating val"; how many parts it has; how many are done; what to say beside it."""
        self._what, self._total, self._first, self._words = what, total, done, words
        self._shown, self._began = time.monotonic(), 0.0
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> "Progress":
        if _is_first() and on_terminal() and log.isEnabledFor(logging.INFO):
            self._outermost = Progress._live is None
            if Progress._live is None:
                Progress._live = live_bars(_console())
                Progress._live.start()
            self._task = Progress._live.add_task(
                self._what, total=self._total, completed=self._first, words=self._words
            )
        else:
            log.info("%s: %d of %d%s …", self._what, self._first, self._total, self._words and f", {self._words}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None or Progress._live is None:
            return
        if self._outermost:
            Progress._live.stop()
            Progress._live = None
        else:
            Progress._live.remove_task(self._task)

    @property
    def is_due(self) -> bool:
        """Whether what was last said is a second old on a terminal, or ten elsewhere."""
        return time.monotonic() - self._shown >= (BAR_SECONDS if self._task is not None else LINE_SECONDS)

    def update(self, done: int, words: str | None = None, *, line: bool = False) -> None:
        """Notes how many parts are done.

        Args:
          done: how many.
          words: what to say beside it from now on; as before by default.
          line: says it now where there is no terminal, and not only after ten seconds.
        """
        if words is not None:
            self._words = words
        if not self._began:  # the first part is compiled, which says nothing of the others
            self._began, self._first = time.monotonic(), done
        if self._task is not None and Progress._live is not None:
            Progress._live.update(self._task, completed=done, words=self._words)
        elif line or self.is_due:
            log.info(
                "%s %d/%d%s%s", self._what, done, self._total, self._words and f"  {self._words}", self._left(done)
            )
        else:
            return
        if words is not None or self._task is None:
            self._shown = time.monotonic()

    def _left(self, done: int) -> str:
        if done <= self._first:
            return ""
        seconds = (self._total - done) * (time.monotonic() - self._began) / (done - self._first)
        return "  left {}:{:02d}".format(*divmod(round(seconds), 60))

    def each(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yields the parts, and counts each as done when the next is asked for."""
        for done, part in enumerate(parts, start=self._first + 1):
            yield part
            self.update(done)


def live_bars(console: rich.console.Console) -> rich.progress.Progress:
    """The bars: what is said beside one is cut where the terminal is narrow, the time left is not."""
    words = rich.table.Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.description} {task.completed}/{task.total}"),
        rich.progress.BarColumn(bar_width=8),
        rich.progress.TimeRemainingColumn(compact=True),
        rich.progress.TextColumn("{task.fields[words]}", table_column=words),
        console=console,
        expand=True,
    )


def training_words(values: Mapping[str, float]) -> str:
    """What is said beside a training's steps: averages by their names in metrics.jsonl."""
    shares = {name: values.get(f"train/{name}") for name in ("accuracy", "compatibility")}
    return (
        f"loss {values['train/loss']:.4g}  "
        + "".join(f"{name} {100 * share:.1f} %  " for name, share in shares.items() if share is not None)
        + f"{values['train/examples_per_second']:.0f} examples/s  data wait {100 * values['train/data_wait']:.1f} %"
    )
