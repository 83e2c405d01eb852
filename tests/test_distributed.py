"""Several processes: what each launcher gives them, how they stop together, and how they say that one did not come."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxvqa import distributed, logs, main
from jaxvqa.errors import ConfigError
from launch.local import free_port
from tests import runs

# --- what is passed to JAX ---------------------------------------------------------------------------------------------

EIGHT = "0,1,2,3,4,5,6,7"


def slurm(local_rank: int, tasks_per_node: str, nodes: int = 1, node: int = 0, **more: str) -> dict[str, str]:
    """What srun sets, of a job whose nodes have eight GPUs each."""
    each = int(tasks_per_node.partition("(")[0])
    return {
        "SLURM_JOB_ID": "71", "SLURM_STEP_NODELIST": f"node[1-{nodes}]" if nodes > 1 else "node1",
        "SLURM_NTASKS": str(each * nodes), "SLURM_PROCID": str(each * node + local_rank), "SLURM_LOCALID": str(local_rank),
        "SLURM_NODEID": str(node), "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
    } | more  # fmt: skip


def mpi(local_rank: int, here: int, nodes: int = 1, node: int = 0, **more: str) -> dict[str, str]:
    """What OpenMPI 4 sets."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(here * nodes), "OMPI_COMM_WORLD_RANK": str(here * node + local_rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(here),
    } | more  # fmt: skip


def by_hand(rank: int, count: int, host: str = "node1", **more: str) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"{host}:9876", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(rank),
    } | more  # fmt: skip


LAYOUTS: dict[str, tuple[dict[str, str], list[int] | None]] = {
    "srun, every task sees all": (slurm(5, "8", CUDA_VISIBLE_DEVICES=EIGHT), [5]),
    "srun, the same told by SLURM": (slurm(5, "8", CUDA_VISIBLE_DEVICES=EIGHT, SLURM_GPUS_ON_NODE="8"), [5]),
    "srun, second node": (slurm(3, "8(x2)", 2, 1, CUDA_VISIBLE_DEVICES=EIGHT), [3]),
    "srun --gpus-per-task=1": (slurm(5, "8", CUDA_VISIBLE_DEVICES="0", SLURM_GPUS_ON_NODE="8"), [0]),
    "srun --gpus-per-task=1, not renumbered": (slurm(5, "8", CUDA_VISIBLE_DEVICES="5"), [0]),
    "srun --gpus-per-task=4": (
        slurm(1, "2", CUDA_VISIBLE_DEVICES="0,1,2,3", SLURM_GPUS_ON_NODE="8"),
        [0, 1, 2, 3],
    ),
    "srun, one task a node": (slurm(0, "1(x2)", 2, 1, CUDA_VISIBLE_DEVICES="0,1,2,3"), [0, 1, 2, 3]),
    "srun, GPUs by name": (slurm(1, "2", CUDA_VISIBLE_DEVICES="GPU-8932f937,GPU-3a23"), [1]),
    "srun, no GPU": (slurm(1, "2", CUDA_VISIBLE_DEVICES="NoDevFiles"), None),
    "srun, on CPU beside GPUs": (slurm(1, "2", CUDA_VISIBLE_DEVICES=EIGHT, JAX_PLATFORMS="cpu"), None),
    "srun, GPUs chosen by hand": (slurm(1, "2", CUDA_VISIBLE_DEVICES=EIGHT, JAX_LOCAL_DEVICE_IDS="4,5"), None),
    "mpirun, every process sees all": (mpi(2, 4, 2, 1, CUDA_VISIBLE_DEVICES="0,1,2,3"), [2]),
    "mpirun, one each": (mpi(2, 4, CUDA_VISIBLE_DEVICES="2"), [0]),
    "mpirun, one process a node": (mpi(0, 1, 2, 1, CUDA_VISIBLE_DEVICES="0,1"), [0, 1]),
    "by hand, one process a machine": (by_hand(1, 2, CUDA_VISIBLE_DEVICES="0,1"), None),
    "by hand, all on this machine": (by_hand(1, 2, "127.0.0.1", CUDA_VISIBLE_DEVICES="0,1"), [1]),
    "by hand, one GPU each": (by_hand(1, 2, "localhost", CUDA_VISIBLE_DEVICES="1"), [0]),
    "TPU pod": ({}, None),
}


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the program with `--distributed` in an environment, up to `jax.distributed.initialize`, and gives its arguments."""
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "OMPI_", "CUDA_", "HIP_", "ROCR_", "JAXVQA_")):
            monkeypatch.delenv(name)

    class ReachedError(Exception):
        pass

    def join(environment: dict[str, str], gpus_of_machine: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def initialize(**arguments: Any) -> None:
            found.update(arguments)
            raise ReachedError

        listing = "".join(f"GPU {i}: H200 (UUID: GPU-{i})\n" for i in range(gpus_of_machine))
        monkeypatch.setattr(distributed.shutil, "which", lambda _: "nvidia-smi" if gpus_of_machine else None)
        monkeypatch.setattr(
            distributed.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, listing, "")
        )
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        with pytest.raises(ConfigError) as caught:
            main._run(["--config=configs/rwsan.py:small", "--distributed", "--workdir=nowhere"])
        if not found:
            raise caught.value
        return found

    return join


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_process_takes_its_gpus(joined, layout):
    environment, expected = LAYOUTS[layout]
    arguments = joined(environment)
    assert arguments["local_device_ids"] == expected
    if "JAX_PROCESS_ID" in environment:
        assert arguments["process_id"] == int(environment["JAX_PROCESS_ID"])
        assert arguments["num_processes"] == int(environment["JAX_NUM_PROCESSES"])
        assert arguments["coordinator_address"] == environment["JAX_COORDINATOR_ADDRESS"]
    else:  # found by JAX
        assert not {"process_id", "num_processes", "coordinator_address"} & arguments.keys()


def test_an_address_alone_leaves_the_rest_to_the_launcher(joined):
    arguments = joined(slurm(3, "8(x2)", 2, 1, JAX_COORDINATOR_ADDRESS="login:9876", JAX_PLATFORMS="cpu"))
    assert arguments["coordinator_address"] == "login:9876"
    assert (arguments["num_processes"], arguments["process_id"]) == (16, 11)


def test_openmpi_5_asks_mpi_for_the_address(joined):
    environment = mpi(1, 2, CUDA_VISIBLE_DEVICES="0,1")
    del environment["OMPI_MCA_orte_hnp_uri"]
    arguments = joined(environment)
    assert arguments["cluster_detection_method"] == "mpi4py"
    assert (arguments["num_processes"], arguments["process_id"], arguments["local_device_ids"]) == (2, 1, [1])


@pytest.mark.parametrize(
    ("environment", "gpus_of_machine", "words"),
    [
        (
            slurm(0, "2", CUDA_VISIBLE_DEVICES=EIGHT),
            8,
            ["2 processes", "8 GPUs", "--ntasks-per-node=8", "--gres=gpu:8"],
        ),
        (slurm(1, "8", CUDA_VISIBLE_DEVICES="0", SLURM_GPUS_ON_NODE="1"), 8, ["8 processes", "1 GPU", "shared"]),
        (slurm(0, "1", CUDA_VISIBLE_DEVICES="0", SLURM_GPUS_ON_NODE="8"), 8, ["1 process", "8 of the node", "idle"]),
        (slurm(1, "4", CUDA_VISIBLE_DEVICES="0,1,2"), 8, ["4 processes", "3 GPUs"]),
        (mpi(1, 4), 1, ["4 processes", "1 GPU"]),
        (mpi(1, 2), 8, ["2 processes", "8 GPUs", "JAX_LOCAL_DEVICE_IDS"]),
        (by_hand(1, 4, "127.0.0.1"), 2, ["4 processes", "2 GPUs", "JAX_PLATFORMS=cpu"]),
    ],
)
def test_gpus_that_would_be_idle_or_shared_are_an_error(joined, environment, gpus_of_machine, words):
    with pytest.raises(ConfigError) as caught:
        joined(environment, gpus_of_machine)
    for word in words:
        assert word in str(caught.value)


def test_gpus_of_the_machine_are_counted_where_no_variable_says_them(joined):
    assert joined(mpi(3, 4), gpus_of_machine=4)["local_device_ids"] == [3]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "node1:9876"}, ["JAX_NUM_PROCESSES is not set", "JAX_PROCESS_ID is not set"]),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, ["JAX_COORDINATOR_ADDRESS is not set"]),
        (by_hand(0, 2) | {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "-1"}, ["'two'", "'-1'", "whole number"]),
        (by_hand(0, 2) | {"JAX_COORDINATOR_ADDRESS": "node1", "JAX_PROCESS_ID": ""}, ["'node1'", "HOST:PORT", "''"]),
        (by_hand(0, 2) | {"JAX_COORDINATOR_ADDRESS": "node1:70000"}, ["node1:70000"]),
        (by_hand(0, 0), ["JAX_NUM_PROCESSES is '0'"]),
        (by_hand(4, 4), ["process 4", "from 0 to 3"]),
        (slurm(0, "2", SLURM_NTASKS="a lot"), ["SLURM_NTASKS is 'a lot'"]),
        (by_hand(0, 2, JAXVQA_WAIT_SECONDS="soon"), ["JAXVQA_WAIT_SECONDS is 'soon'"]),
    ],
)
def test_all_faults_of_the_environment_are_listed_at_once(joined, environment, words):
    with pytest.raises(ConfigError) as caught:
        joined(environment)
    for word in words:
        assert word in str(caught.value)


def test_processes_without_a_common_folder_are_an_error():
    with pytest.raises(ConfigError, match="--distributed needs --workdir"):
        main._run(["--config=configs/rwsan.py:small", "--distributed"])


def test_outside_a_job_the_launches_are_named(monkeypatch):
    def initialize(**_: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match=r"srun or mpirun"), distributed.job(join=True):
        pass


def test_a_port_that_is_in_use_is_said(joined):
    with distributed.socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port}.*Choose another port"):
            joined(by_hand(0, 2) | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"})


# --- waiting for a process that does not come --------------------------------------------------------------------------


def start(code: str, rank: int, port: int) -> subprocess.Popen[str]:
    """One of two processes of a job, which runs `code` after joining and does not wait long."""
    program = (
        f"import time; from jaxvqa import distributed, errors\ndef main():\n with distributed.job(True):\n  {code}"
    )
    program += "\nimport sys\ntry: main()\nexcept errors.UserError as error: print(error); sys.exit(error.exit_code)"
    environment = runs.environment() | by_hand(rank, 2) | {"JAXVQA_WAIT_SECONDS": "3"}
    environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=runs.ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_process_that_never_joins_ends_the_wait_with_a_message():
    waiting = [start("pass", rank, free_port()) for rank in (0, 1)]  # at two addresses
    for rank, process in enumerate(waiting):
        words = process.communicate(timeout=60)[0]
        assert process.returncode == 2, words
        assert f"process {rank} waited 3 s to join" in words
        assert "firewall" in words
        assert "Check failure" not in words


def test_a_barrier_that_one_process_does_not_reach_names_itself():
    port = free_port()
    late = start("time.sleep(60)", 1, port)
    try:
        process = start("distributed.barrier('start of runs/a')", 0, port)
        words = process.communicate(timeout=60)[0]
    finally:
        late.kill()
        late.communicate()
    assert process.returncode == 75, words
    assert "Process 0 of 2 waited 3 s for the others at 'start of runs/a'; missing: 1" in words


# --- stopping together -------------------------------------------------------------------------------------------------


STEPS = 60  # enough that all processes know of a signal before the last


def local(phantoms: Path, workdir: Path) -> subprocess.Popen[str]:
    """Two processes of a run that is long enough to be stopped, in a process group of their own as in a terminal."""
    changes = dict.fromkeys(("total", "checkpoint__every", "evals__val__every"), f"{STEPS} steps")
    arguments = runs.command(phantoms, workdir, **changes)[3:]
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--", *arguments]
    return subprocess.Popen(
        command, cwd=runs.ROOT, env=runs.environment(), text=True, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What the process said, at its end."""
    try:
        return process.communicate(timeout=300)[1]
    finally:
        while process.poll() is None:  # the second ends its children too
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)


@pytest.mark.slow
def test_ctrl_c_saves_in_all_processes(phantoms, tmp_path):
    """That the same command goes on from there is another, slow test."""
    stopped = local(phantoms, tmp_path)
    deadline = time.monotonic() + 240
    while not logs.read_metrics(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGINT)
    words = finish(stopped)
    assert stopped.returncode == 75, words
    assert "Stopped by a signal" in words
    assert "Traceback" not in words
    assert 0 < runs.final_step(tmp_path) < STEPS


@pytest.mark.slow
def test_processes_that_were_stopped_end_with_the_bits_of_those_that_were_not(phantoms, tmp_path):
    stopped = local(phantoms, tmp_path / "stopped")
    while not logs.read_metrics(tmp_path / "stopped") and stopped.poll() is None:
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGINT)
    finish(stopped)
    saved = runs.final_step(tmp_path / "stopped")
    for name in ("stopped", "whole"):
        process = local(phantoms, tmp_path / name)
        words = finish(process)
        assert process.returncode == 0, words
        assert (f"going on from step {saved}" in words) == (name == "stopped")
        steps = [row["step"] for row in logs.read_metrics(tmp_path / name) if "train/loss" in row]
        assert steps == list(range(1, STEPS + 1))  # none is logged twice or left out
    ours, theirs = (runs.final_arrays(tmp_path / name) for name in ("stopped", "whole"))
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_a_second_ctrl_c_ends_all_processes_at_once(phantoms, tmp_path):
    process = local(phantoms, tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 2:
        time.sleep(0.01)  # they have not joined yet when they are there, and there is nothing to save
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert process.returncode in (130, 143)
    assert not list((tmp_path / "checkpoints").glob("*"))
