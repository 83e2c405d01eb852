"""The same numbers on every mesh, and with several processes."""

import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from jaxvqa import logs
from tests import runs

ALL_AXES = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
MESHES = {
    "data=2 x fsdp=4": {"mesh__data": 2, "mesh__fsdp": 4},
    "fsdp=4 x tensor=2": {"mesh__data": 1, "mesh__fsdp": 4, "mesh__tensor": 2},
}


@pytest.fixture(scope="module")
def one_device(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("one")
    done = runs.run(runs.command(phantoms, workdir))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def eight_devices(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a mesh that has two devices along each axis."""
    workdir = tmp_path_factory.mktemp("eight")
    done = runs.run(runs.command(phantoms, workdir, **ALL_AXES), devices=8)
    assert done.returncode == 0, done.stderr
    return workdir


# Gradients that are zero in exact arithmetic, since a softmax ignores what is added to all scores: Adam turns their
# rounding into steps of full size.
ROUNDING_ONLY = re.compile(r"\['key'\]\['bias'\]|\['score'\]\['(up|down)'\]\['bias'\]")


def assert_close(workdir: Path, reference: Path) -> None:
    """Losses, parameters and predictions agree to float32 rounding."""
    ours, theirs = ([row for row in logs.read_metrics(w) if "train/loss" in row] for w in (workdir, reference))
    np.testing.assert_allclose(
        [row["train/loss"] for row in ours], [row["train/loss"] for row in theirs], rtol=2e-5, err_msg="losses"
    )
    ours, theirs = runs.final_arrays(workdir), runs.final_arrays(reference)
    assert ours.keys() == theirs.keys()
    for path in ours:
        followed = any(name in path for name in ("params", "batch_stats", "momentum", "queue"))
        if followed and not ROUNDING_ONLY.search(path):
            scale = np.abs(theirs[path]).max() + 1e-6
            assert np.abs(ours[path] - theirs[path]).mean() / scale < 1e-3, path
    if not (workdir / "predictions" / "val_6.jsonl").exists():  # of a run that answers nothing
        return
    predictions = [
        [json.loads(line)["answer"] for line in (w / "predictions" / "val_6.jsonl").read_text().splitlines()]
        for w in (workdir, reference)
    ]
    assert predictions[0] == predictions[1]


def test_eight_devices_give_the_numbers_of_one(one_device, eight_devices):
    assert_close(eight_devices, one_device)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_may_be_cut_along_any_axis(phantoms, one_device, tmp_path, mesh):
    done = runs.run(runs.command(phantoms, tmp_path, **MESHES[mesh]), devices=8)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path, one_device)


@pytest.mark.slow
def test_eight_devices_take_the_statistics_of_the_whole_batch(phantoms, tmp_path):
    # As published: Adam's first steps are of full size where a gradient is hardly more than its rounding.
    sgd = {"optim__name": "sgd", "optim__nesterov": True, "optim__lr": 1e-3}
    for name, mesh, devices in (("one", {}, 1), ("eight", MESHES["data=2 x fsdp=4"], 8)):
        done = runs.run(runs.command(phantoms, tmp_path / name, runs.SYSU, **sgd, **mesh), devices=devices)
        assert done.returncode == 0, done.stderr
    assert any("batch_stats" in path for path in runs.final_arrays(tmp_path / "one"))
    assert_close(tmp_path / "eight", tmp_path / "one")


BLIP = "configs/blip_pretrain.py:published,small"
"""A run with momentum copies and queues; it evaluates nothing, which would take as long to compile as the rest."""

BLIP_CHANGES = {
    "data__examples": "phantom_vqa/tiny_captions",
    "loss__groups": 2,
    "loss__negatives__choice": "hardest",  # a draw may turn on the last bit of a weight
    "optim__name": "sgd",  # of Adam's first steps rounding decides too much
    "optim__lr": 1e-2,
    "optim__schedule__name": "constant",
    "total": "2 steps",  # the second reads what the first wrote
}


@pytest.fixture(scope="module")
def blip_one_device(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("blip_one")
    done = runs.run(blip_command(phantoms, workdir))
    assert done.returncode == 0, done.stderr
    assert {"momentum", "queue"} <= {name for path in runs.final_arrays(workdir) for name in path.split("'")}
    return workdir


# The steps take half a minute to compile for each mesh.
@pytest.mark.parametrize("mesh", ["data=2 x fsdp=4", pytest.param("fsdp=4 x tensor=2", marks=pytest.mark.slow)])
def test_momentum_and_queues_are_the_same_on_eight_devices(phantoms, blip_one_device, tmp_path, mesh):
    done = runs.run(blip_command(phantoms, tmp_path, **MESHES[mesh]), devices=8)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path, blip_one_device)


@pytest.mark.slow
def test_images_and_texts_find_each_other_alike_on_eight_devices(phantoms, tmp_path):
    evaluated = {"config": "configs/blip_pretrain.py:small", "data__vocabulary_parts": (), "total": "3 steps"}
    for name, devices in (("one", 1), ("eight", 8)):  # the latter as data=8
        done = runs.run(blip_command(phantoms, tmp_path / name, **evaluated), devices=devices)
        assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "eight", tmp_path / "one")
    assert_as_retrieved(tmp_path / "eight", tmp_path / "one")


@pytest.mark.slow
def test_pairs_of_images_are_judged_alike_on_eight_devices(phantoms, tmp_path):
    # Rounding decides too much of Adam's first steps.
    pairs = {"data__examples": "phantom_vqa/tiny_pairs", "data__vocabulary_parts": (), "total": "3 steps"}
    pairs |= {"optim__name": "sgd", "optim__lr": 1e-2, "optim__schedule__name": "constant"}
    pairs |= {"evals__val__every": "3 steps", "checkpoint__every": "3 steps"}
    for name, mesh, devices in (("one", {}, 1), ("eight", MESHES["data=2 x fsdp=4"], 8)):
        done = runs.run(nlvr_command(phantoms, tmp_path / name, **pairs, **mesh), devices=devices)
        assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "eight", tmp_path / "one")
    ours, theirs = (
        {
            name: value
            for row in logs.read_metrics(tmp_path / run)
            for name, value in row.items()
            if name.startswith("val")
        }
        for run in ("eight", "one")
    )
    assert "val/accuracy" in ours
    assert ours == theirs


def nlvr_command(phantoms: Path, workdir: Path, **changes: object) -> list[str]:
    """The command line of a tiny run that judges sentences about pairs."""
    words = runs.command(phantoms, workdir, "configs/blip_nlvr.py:small", **changes)
    return [word for word in words if not word.startswith("--config.data.answers")]


def assert_as_retrieved(workdir: Path, reference: Path) -> None:
    """Images and texts found each other alike, but for the few whose scores rounding may exchange."""
    ours, theirs = (logs.read_metrics(w)[-1] for w in (workdir, reference))
    assert ours["val/matching/loss"] == pytest.approx(theirs["val/matching/loss"], rel=1e-4)
    ranks = [
        [
            (row["text_rank"], row["image_rank"])
            for row in map(json.loads, (w / "predictions" / "val_3.jsonl").read_text().splitlines())
        ]
        for w in (workdir, reference)
    ]
    assert len(ranks[0]) == len(ranks[1]) == 16
    assert sum(a == b for a, b in zip(*ranks, strict=True)) >= 14


def blip_command(phantoms: Path, workdir: Path, config: str = BLIP, **changes: object) -> list[str]:
    """The command line of a tiny run of BLIP."""
    words = runs.command(phantoms, workdir, config, **(BLIP_CHANGES | changes))
    absent = ("--config.data.answers", *(("--config.evals",) if config == BLIP else ()))
    return [word for word in words if not word.startswith(absent)]


def test_a_checkpoint_moves_to_another_mesh(phantoms, one_device, eight_devices, tmp_path):
    moved = shutil.copytree(eight_devices, tmp_path / "moved")
    shutil.rmtree(moved / "checkpoints" / "6")
    done = runs.run(runs.command(phantoms, moved))
    assert done.returncode == 0, done.stderr
    assert "going on from step 4" in done.stderr
    assert_close(moved, one_device)


@pytest.mark.slow  # tests/test_step.py has the same of a toy
def test_microbatches_add_up(phantoms, one_device, tmp_path):
    """Two halves of a batch give the gradients of the whole (there is no dropout)."""
    done = runs.run(runs.command(phantoms, tmp_path, microbatches=2))
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path, one_device)


def test_two_processes_give_the_numbers_of_one(phantoms, one_device, tmp_path):
    in_two_processes(runs.command(phantoms, tmp_path))
    assert_close(tmp_path, one_device)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # process 0 alone writes
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_two_processes_have_the_momentum_and_queues_of_one(phantoms, blip_one_device, tmp_path):
    in_two_processes(blip_command(phantoms, tmp_path))
    assert_close(tmp_path, blip_one_device)


def in_two_processes(command: list[str]) -> None:
    """Runs a command in two processes of one device each, which are one job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        runs.start([*command, "--distributed"], runs.environment(2) | job | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=480)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
