"""What people see while they wait."""

import io
import logging
import re
import time
import warnings
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import pytest
import rich.console

from jaxvqa import logs, monitor
from jaxvqa.errors import ConfigError


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch):
    """What is logged where there is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(logs.sys, "stderr", stream)
    logs._console.cache_clear()
    logs.setup()
    yield lambda: stream.getvalue().splitlines()
    logs._console.cache_clear()
    logs.log.handlers = []
    logs.log.propagate = True
    logs.log.setLevel(logging.NOTSET)


LONG = {
    "train/loss": 12.34567, "train/accuracy": 0.98765, "train/examples_per_second": 123456.0, "train/data_wait": 0.123,
}  # fmt: skip


def rendered(width: int, *tasks: tuple[str, int, int, str], seconds: float = 10.0) -> list[str]:
    now = [0.0]
    console = rich.console.Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    bars = logs.live_bars(console)
    bars.get_time = lambda: now[0]
    for what, done, total, words in tasks:
        task = bars.add_task(what, total=total, words=words)
        for part in range(1, 5):
            now[0] += seconds
            bars.update(task, completed=done * part // 4)
    console.print(bars.get_renderable())
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 60, 200])
def test_a_bar_keeps_the_time_left_in_one_line(width):
    tasks = [("step", 12345, 99999, logs.training_words(LONG)), ("evaluating val", 7, 1000, "")]
    lines = rendered(width, *tasks)
    assert len(lines) == len(tasks)
    for line, (what, done, total, _) in zip(lines, tasks, strict=True):
        assert len(line) <= width
        assert f"{what} {done}/{total}" in line
        assert re.search(r"\d+:\d\d", line)
    assert "loss 12.35" in lines[0] or width < 80


def test_lines_have_the_time_and_come_every_ten_seconds(clock, lines):
    with logs.Progress("evaluating val", 100) as progress:
        for _ in progress.each(range(100)):
            clock[0] += 1.0
    found = lines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in found)
    assert found[0].endswith("evaluating val: 0 of 100 …")
    assert found[1].endswith("evaluating val 10/100  left 1:30")
    assert len(found) == 1 + 10


def test_slow_steps_are_shown_before_they_are_averaged(clock, lines):
    with logs.Progress("step", 4, 0, "compiling the training step") as progress:
        assert "compiling the training step" in lines()[-1]
        progress.update(1)
        clock[0] += 30
        assert progress.is_due
        progress.update(2, "loss 1.5")
        assert not progress.is_due
    assert lines()[-1].endswith("step 2/4  loss 1.5  left 1:00")


def test_the_newest_steps_that_are_done_are_averaged_without_a_flush():
    meter = monitor.Meter(8)
    assert meter.latest() == {}
    for step, loss in ((1, 2.0), (2, 4.0)):
        meter.add(step, {"loss": (jnp.asarray(loss), jnp.asarray(1.0))})
    deadline = time.monotonic() + 10
    while len(meter.latest()) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter.latest()["train/loss"] == 3.0
    assert meter.flush(None)["train/loss"] == 3.0  # nothing was taken from it
    assert meter.latest() == {}


def test_few_steps_are_under_way_at_a_time(monkeypatch):
    waited = []
    monkeypatch.setattr(monitor.jax, "block_until_ready", lambda metrics: waited.append(int(metrics["loss"][0])))
    meter = monitor.Meter(8)
    for step in range(10):
        meter.add(step, {"loss": (jnp.asarray(float(step)), jnp.asarray(1.0))})
        assert step - max(waited, default=-1) <= 4
    assert max(waited) == 5


def test_libraries_warnings_are_not_shown_and_their_errors_are(lines, monkeypatch):
    monkeypatch.setattr(logs.sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        logs.setup()
        for module in ("orbax.checkpoint.manager", "grain.dataset", "jaxvqa.train"):
            warnings.warn_explicit("a folder is read-only", UserWarning, f"{module}.py", 1, module=module)
        absl.logging.warning("Given directory is read only")
        absl.logging.error("a checkpoint is gone")
    assert [Path(warning.filename).stem for warning in shown] == ["jaxvqa.train"]
    assert absl.logging.get_verbosity() == absl.logging.ERROR
    assert not any("read" in line for line in lines())


def test_quiet_leaves_warnings_alone(monkeypatch, capsys):
    monkeypatch.setenv("JAXVQA_LOG", "quiet")
    logs.setup()
    logs.log.info("reading")
    with logs.Progress("step", 10) as progress:
        progress.update(1, "loss 3", line=True)
    logs.log.warning("the disk is slow")
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == ["the disk is slow"]


def test_quiet_shows_no_bar_on_a_terminal(monkeypatch, lines):
    monkeypatch.setattr(logs, "on_terminal", lambda: True)
    for loudness, shown in (("quiet", False), ("", True)):
        monkeypatch.setenv("JAXVQA_LOG", loudness)
        logs.setup()
        with logs.Progress("step", 10):
            assert (logs.Progress._live is not None) == shown


def test_verbose_says_what_libraries_note_and_what_is_compiled(monkeypatch, capsys):
    monkeypatch.setenv("JAXVQA_LOG", "verbose")
    before = jax.config.jax_log_compiles
    try:
        logs.setup()
        logs.log.debug("in detail")
        assert [line[9:] for line in capsys.readouterr().err.splitlines()] == ["in detail"]
        assert absl.logging.get_verbosity() == absl.logging.INFO
        assert jax.config.jax_log_compiles
    finally:
        jax.config.update("jax_log_compiles", before)


def test_another_loudness_is_one_message(monkeypatch):
    monkeypatch.setenv("JAXVQA_LOG", "quite")
    with pytest.raises(ConfigError, match=r"JAXVQA_LOG=quite: choose quiet or verbose\. Did you mean 'quiet'"):
        logs.setup()
