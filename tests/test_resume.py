"""Stopping and going on changes nothing: bit-identical parameters and optimiser, whenever and however a run was stopped."""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from jaxvqa import logs
from tests import runs


@pytest.fixture(scope="module")
def whole(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    done = runs.run(runs.command(phantoms, workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def stopped_at(phantoms: Path, workdir: Path, step: int, number: int, *config: str) -> int:
    """Starts a run, sends it a signal once it has logged `step`, and returns its exit code."""
    command = runs.command(phantoms, workdir, *config)
    process = subprocess.Popen(command, cwd=runs.ROOT, env=runs.environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    try:
        while process.poll() is None and time.monotonic() < deadline:
            rows = logs.read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
            if any(row["step"] >= step for row in rows):
                process.send_signal(number)
                break
            time.sleep(0.002)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode in (75, -number, 0), error
    return process.returncode


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = runs.final_arrays(one), runs.final_arrays(other)
    assert ours.keys() == theirs.keys()
    assert any("opt_state" in path for path in ours)
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, 3)])
def test_stopped_run_ends_like_one_that_was_not(phantoms, whole, tmp_path, number, step):
    code = stopped_at(phantoms, tmp_path, step, number)
    if number != signal.SIGKILL:
        assert code in (75, 0)  # 0: it was at its end before the signal came
    # The continuation reads with other threads and in smaller prefetches, which must not matter.
    again = runs.run(runs.command(phantoms, tmp_path, data__readers__threads=1, data__readers__prefetch_mib=0.1))
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path, whole)
    steps = [row["step"] for row in logs.read_metrics(tmp_path) if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]  # no step is logged twice or left out


def test_same_command_on_a_finished_run_changes_nothing(phantoms, whole):
    before = runs.final_arrays(whole)
    again = runs.run(runs.command(phantoms, whole))
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stderr
    after = runs.final_arrays(whole)
    assert all(np.array_equal(before[path], after[path]) for path in before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_stopped_at_any_step(phantoms, whole, tmp_path, number, step):
    stopped_at(phantoms, tmp_path, step, number)
    again = runs.run(runs.command(phantoms, tmp_path))
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_a_run_that_mixes_pictures_and_keeps_statistics_ends_the_same(phantoms, tmp_path):
    for name in ("whole", "stopped"):
        if name == "stopped":
            stopped_at(phantoms, tmp_path / name, 3, signal.SIGTERM, runs.SYSU)
        done = runs.run(runs.command(phantoms, tmp_path / name, runs.SYSU))
        assert done.returncode == 0, done.stderr
    assert any("batch_stats" in path for path in runs.final_arrays(tmp_path / "whole"))
    assert_same(tmp_path / "stopped", tmp_path / "whole")
