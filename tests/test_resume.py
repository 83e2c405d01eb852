"""Stopping and going on changes nothing: bit-identical parameters and optimiser, whenever and however a run was stopped."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxvqa import logs, main, monitor, train
from tests import runs

STEPS = 12  # long enough to be stopped twice
LENGTH = {"total": f"{STEPS} steps", "evals__val__every": f"{STEPS} steps"}


@pytest.fixture(scope="module", autouse=True)
def one_program() -> Iterator[None]:
    """Compiles the training step once for all runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_program", runs.one_program())
        yield


@pytest.fixture(scope="module")
def whole(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main.main(runs.command(phantoms, workdir, **LENGTH)[3:]) == 0
    return workdir


def stopped_at(phantoms: Path, workdir: Path, step: int, number: int, *config: str) -> int:
    """Starts a run, sends it a signal once it has logged `step`, and returns its exit code."""
    command = runs.command(phantoms, workdir, *config, **LENGTH)
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


def assert_ended(workdir: Path, whole: Path) -> None:
    assert_same(workdir, whole)
    steps = [row["step"] for row in logs.read_metrics(workdir) if "train/loss" in row]
    assert steps == list(range(1, STEPS + 1))  # no step is logged twice or left out


def test_a_process_that_was_stopped_and_killed_ends_like_one_that_was_not(phantoms, whole, tmp_path):
    assert stopped_at(phantoms, tmp_path, 1, signal.SIGTERM) == 75
    assert stopped_at(phantoms, tmp_path, runs.final_step(tmp_path) + 1, signal.SIGKILL) == -signal.SIGKILL
    assert runs.final_step(tmp_path) < STEPS
    # The continuation reads with other threads and in smaller prefetches, which must not matter.
    readers = {"data__readers__threads": 1, "data__readers__prefetch_mib": 0.1}
    again = runs.run(runs.command(phantoms, tmp_path, **LENGTH, **readers))
    assert again.returncode == 0, again.stderr
    assert_ended(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(phantoms, whole, tmp_path, monkeypatch, number):
    asked, requested = [], monitor.StopSignal.requested

    def with_a_signal(self: monitor.StopSignal, step: int) -> bool:
        if step == 3 and not asked:
            asked.append(step)
            signal.raise_signal(number)
        return requested(self, step)

    monkeypatch.setattr(monitor.StopSignal, "requested", with_a_signal)
    command = runs.command(phantoms, tmp_path, **LENGTH)[3:]
    assert main.main(command) == 75
    assert runs.final_step(tmp_path) == 3
    assert main.main(command) == 0
    assert_ended(tmp_path, whole)


def test_same_command_on_a_finished_run_changes_nothing(phantoms, whole, capsys):
    before = runs.final_arrays(whole)
    assert main.main(runs.command(phantoms, whole, **LENGTH)[3:]) == 0
    assert "finished" in capsys.readouterr().err
    after = runs.final_arrays(whole)
    assert all(np.array_equal(before[path], after[path]) for path in before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_stopped_at_any_step(phantoms, whole, tmp_path, number, step):
    stopped_at(phantoms, tmp_path, step, number)
    again = runs.run(runs.command(phantoms, tmp_path, **LENGTH))
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_a_run_that_mixes_pictures_and_keeps_statistics_ends_the_same(phantoms, tmp_path):
    for name in ("whole", "stopped"):
        if name == "stopped":
            stopped_at(phantoms, tmp_path / name, 3, signal.SIGTERM, runs.SYSU)
        done = runs.run(runs.command(phantoms, tmp_path / name, runs.SYSU, **LENGTH))
        assert done.returncode == 0, done.stderr
    assert any("batch_stats" in path for path in runs.final_arrays(tmp_path / "whole"))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_queues_and_momentum_go_on_where_they_were(phantoms, tmp_path):
    """A run of BLIP that is killed between two writes of its queue ends with the same bits: copies, queue, place and all."""
    changes = {
        "data__examples": "phantom_vqa/tiny_captions",
        "data__vocabulary_parts": (),
        "evals__val__every": "9 steps",
    }
    config = "configs/blip_pretrain.py:small"

    def command(name):
        words = runs.command(phantoms, tmp_path / name, config, **changes)
        return [word for word in words if not word.startswith("--config.data.answers")]

    done = runs.run(command("whole"))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(command("killed"), cwd=runs.ROOT, env=runs.environment(), stderr=subprocess.DEVNULL)
    written = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if written.exists() and any(row["step"] >= 3 for row in logs.read_metrics(tmp_path / "killed")):
            process.kill()
        time.sleep(0.002)
    process.wait()
    again = runs.run(command("killed"))
    assert again.returncode == 0, again.stderr
    assert any("queue" in path for path in runs.final_arrays(tmp_path / "whole"))
    assert_same(tmp_path / "killed", tmp_path / "whole")
