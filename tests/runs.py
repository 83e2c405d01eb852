"""Tiny runs for tests: a config over the tiny phantoms, and the program in a process of its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from jaxvqa import checkpoints, configs, sharding, tasks
from jaxvqa.data.data_set import DataSet
from jaxvqa.runs import Run
from jaxvqa.state import TrainState
from jaxvqa.step import Program, make_program
from tests.made_up import made_up

ROOT = Path(__file__).parent.parent


RWSAN = "configs/rwsan.py:small"
SHALLOW = {"model.encoder_passes": 1, "model.decoder_passes": 1, "optim.schedule.name": "constant"}
"""Compiling is most of the time that a tiny run takes: passes are written out in the program, and so is the length of a run
unless its rate is constant."""


def tiny_changes(phantoms: Path, config: str = RWSAN) -> dict[str, Any]:
    """Changes that make a config's small variant a run of seconds over the tiny phantoms."""
    return (SHALLOW if config == RWSAN else {}) | {
        "data.dir": str(phantoms),
        "data.examples": "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.answers.min_count": 1,
        "data.limit": 64,
        "batch_size": 16,
        "total": "6 steps",
        "log_every": "1 steps",
        "checkpoint.every": "2 steps",
        "evals.val.every": "6 steps",
        "evals.val.batch_size": 24,
        "report": False,
    }


def tiny_config(phantoms: Path, **changes: Any) -> ml_collections.ConfigDict:
    """The config of a tiny run; `changes` are dotted names with __ for a dot."""
    config = configs.load(RWSAN)
    everything = tiny_changes(phantoms) | {name.replace("__", "."): value for name, value in changes.items()}
    configs.override(config, [(name, str(value)) for name, value in everything.items()])
    return config


def one_program() -> Callable[..., Program]:
    """A `make_program` that compiles for the first run alone: for runs of one recipe, in one process."""
    made: list[Program] = []

    def once(*args: Any, **sizes: Any) -> Program:
        if not made:
            made.append(make_program(*args, **sizes))
        return made[0]

    return once


def write(
    config: ml_collections.ConfigDict, workdir: Path, step: int = 0, **notes: Any
) -> tuple[tasks.Task, TrainState]:
    """Writes the folder that a run leaves after `step` steps, with made-up numbers and notes; nothing is compiled for it."""
    task = tasks.make_task(config, DataSet(config.data))
    source = DataSet(config.data).split(config.data.train_split)
    mesh = sharding.make_mesh(config.mesh)
    program = make_program(config, task, mesh, data_size=len(source), total_steps=step + 1)
    # Every integer of a state counts steps.
    state = jax.tree.map(
        lambda x, s: jax.device_put(x if jnp.issubdtype(x.dtype, jnp.floating) else x + step, s.sharding),
        made_up(program.shapes),
        program.shapes,
    )
    position = {"examples": config.data.examples, "split": config.data.train_split, "size": len(source)}
    run = Run.start(workdir, config)
    with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
        run.save(saved, state, task.assets, position, **notes)
    return task, state


SYSU = "configs/sysu_hcp.py:small,mixup,resnet18"
"""A run with batch statistics and pictures that are mixed at random."""


def command(phantoms: Path, workdir: Path, config: str = RWSAN, **changes: Any) -> list[str]:
    """The command line of a tiny run."""
    everything = tiny_changes(phantoms, config) | {name.replace("__", "."): value for name, value in changes.items()}
    return [
        sys.executable, "-m", "jaxvqa.main", f"--config={config}", f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in everything.items()),
    ]  # fmt: skip


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process with that many simulated devices, without PyTorch, with these tests' compiled programs."""
    kept = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_") or key in kept}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests/core_install"), *filter(None, [env.get("PYTHONPATH")])])
    return env | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "TPU_SKIP_MDS_QUERY": "1"}


def run(arguments: list[str], *, devices: int = 1, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=timeout, check=False
    )


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a command without waiting for it."""
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def final_step(workdir: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(folder.name) for folder in (workdir / checkpoints.FOLDER).iterdir() if folder.name.isdecimal())


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, optimiser included, by path."""
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    step = saved.latest_step()
    arrays = {}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for item in ("model", "optimizer"):
        with ocp.StandardCheckpointer() as reader:
            folder = saved.folder / str(step) / item
            shapes = reader.metadata(folder).item_metadata.tree
            tree = reader.restore(
                folder, jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shapes)
            )
        arrays |= {
            f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
    saved.close()
    return arrays
