"""Times the training step of a config at its own sizes, on random data.

    python -m benchmarks.train_step [--config=configs/rwsan.py:vqa_v2] [--config.FIELD=VALUE …] [--inference] [--steps=3]
                                    [--peer] [--passes] [--json=FILE]

Each row is a process of its own, so that its peak memory is its own. `share_of_matmul` is the number of the step's
operations in matrix products and convolutions (`benchmarks.flop`) over its time, over the rate of a large square matrix
multiplication: that rate is taken for a second or more before and after each step, since a machine that is shared holds
its best rate for moments only; of the steps' shares the median is given. `share_of_best_matmul` compares the fastest
step with the single fastest multiplication. `--peer` times the same training step in PyTorch, and `--inference` times in
place of training the answers to a batch (the predict function `answers`). `cpu_seconds` are the fastest step's, of all cores.
`--passes` times apart what a step does to the parameters alone: `optimiser_seconds`, and `momentum_seconds` where there are
momentum encoders.

A step of the published size takes gigabytes from the system and gives them back each time. Large pages
make that cheaper on Linux: `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, which `make bench` sets for both rows.
"""

import argparse
import itertools
import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvqa.errors import run_command

MATMUL = 2048  # rows and columns
MATMUL_FLOP = 2 * MATMUL**3
MATMULS = 12  # a second or more on 2 cores
PASSES = 5  # times that a pass over the parameters is timed


def timed(run: Callable[[], Any], times: int = 1) -> np.ndarray:
    """The seconds that each of `times` calls takes."""
    marks = [time.perf_counter()]
    for _ in range(times):
        run()
        marks.append(time.perf_counter())
    return np.diff(marks)


def beside_matmul(step: Callable[[], Any], matmul: Callable[[], Any], steps: int, gflop: float) -> dict[str, float]:
    """Times steps of `gflop`·10⁹ operations between runs of multiplications."""
    step(), matmul()  # whatever only a first call does
    multiplications, seconds, cpu_seconds = [timed(matmul, MATMULS)], [], []
    for _ in range(steps):
        begun = time.process_time()
        seconds.append(float(timed(step)[0]))
        cpu_seconds.append(time.process_time() - begun)
        multiplications.append(timed(matmul, MATMULS))
    rates = [MATMUL_FLOP / 1e9 / np.mean(m) for m in multiplications]
    around = [(before + after) / 2 for before, after in itertools.pairwise(rates)]
    best = MATMUL_FLOP / 1e9 / np.min(multiplications)
    return {
        "seconds": min(seconds),
        "median_seconds": float(np.median(seconds)),
        "cpu_seconds": min(cpu_seconds),
        "gflop": gflop,
        "matmul_gflop_per_second": float(np.median(rates)),
        "best_matmul_gflop_per_second": best,
        "share_of_matmul": float(np.median([gflop / s / rate for s, rate in zip(seconds, around, strict=True)])),
        "share_of_best_matmul": gflop / min(seconds) / best,
    }


def peak_mib() -> float:
    """The peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def random_batch(shapes: dict[str, Any], vocab_size: int) -> dict[str, np.ndarray]:
    """Full questions, full images, sparse soft scores, labels of the first class."""
    rng = np.random.default_rng(0)
    known: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "question": lambda shape: rng.integers(1, vocab_size, shape),
        "text": lambda shape: rng.integers(1, vocab_size, shape),
        "text_mask": np.ones,
        "answer_scores": lambda shape: rng.random(shape) < 0.002,
        "regions": lambda shape: rng.random(shape),
        "mask": np.ones,
    }

    def values(key: str, spec: Any) -> np.ndarray:
        if key.startswith("image"):
            return rng.integers(0, 256, spec.shape)
        return known.get(key, np.zeros)(spec.shape)

    return {key: np.asarray(values(key, spec)).astype(spec.dtype) for key, spec in shapes.items()}


class ParametersAlone:
    """A task whose loss is made of nothing but the parameters: what is left of its step are the passes over them."""

    def __init__(self, task: Any):
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def before(self, state: Any) -> Any:
        """The momentum encoders stay: they are timed apart."""
        return state

    def loss(self, params: Any, collections: Any, *_: Any, **__: Any) -> Any:
        """Half the squared norm, whose gradient the optimiser's own pass makes."""
        import jax
        import jax.numpy as jnp

        half = sum(jnp.vdot(leaf, leaf) / 2 for leaf in jax.tree.leaves(params))
        return half, ({"loss": (half, jnp.ones(()))}, collections)


def our_passes(config: Any, task: Any, mesh: Any, program: Any, box: list[Any], batch: Any) -> dict[str, float]:
    """The median seconds of each pass over the parameters; `box` holds the state, which each of them donates."""
    import jax

    from jaxvqa import state as states
    from jaxvqa.step import make_program

    parameters: Any = ParametersAlone(task)
    alone = make_program(config, parameters, mesh, data_size=10**6, total_steps=10**4)
    passes = {"optimiser": lambda state: alone.step(state, batch)[0]}
    if states.of_kind(program.shapes.collections, task.kinds, "mirror"):
        passes["momentum"] = jax.jit(task.before, donate_argnums=0)

    def times(function: Callable[[Any], Any]) -> float:
        def run() -> None:
            box[0] = jax.block_until_ready(function(box[0]))

        run()
        return float(np.median(timed(run, PASSES)))

    return {f"{name}_seconds": times(function) for name, function in passes.items()}


def ours(config: Any, steps: int, inference: bool, passes: bool) -> dict[str, float]:
    """Times our step; the first call's compilation apart."""
    import jax
    import jax.numpy as jnp

    from benchmarks.flop import flop
    from jaxvqa import sharding
    from jaxvqa.step import make_program
    from jaxvqa.tasks import abstract_batch, task_without_data

    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    task = task_without_data(config)
    square = jnp.ones((MATMUL, MATMUL))
    multiply = jax.jit(lambda a: a @ a)
    with jax.set_mesh(mesh):
        program = make_program(config, task, mesh, data_size=10**6, total_steps=10**4)
        state = program.init()
        shapes = abstract_batch(task, config.batch_size, task.predictions["answers"].keys if inference else ())
        host = random_batch(shapes, config.compile.get("vocab_size", 0))
        batch = {key: jax.device_put(value, sharding.batch_sharding(mesh)) for key, value in host.items()}
        function = jax.jit(_answers(task)) if inference else program.step
        start = time.perf_counter()
        traced = function.trace(program.shapes, batch)
        compiled = traced.lower().compile()
        compile_seconds = time.perf_counter() - start
        box = [state]
        del state

        def step() -> None:
            result = compiled(box[0], batch)
            if not inference:
                box[0], result = result
            jax.block_until_ready(result)

        times = beside_matmul(step, lambda: multiply(square).block_until_ready(), steps, flop(traced) / 1e9)
        times |= {"examples_per_second": config.batch_size / times["seconds"], "peak_mib": peak_mib()}
        times["compile_seconds"] = compile_seconds
        return times | (our_passes(config, task, mesh, program, box, batch) if passes else {})


def _answers(task: Any) -> Callable[[Any, Any], Any]:
    return lambda state, batch: task.predictions["answers"].function(state.params, state.collections, batch)


def peer(config: Any, steps: int, inference: bool, passes: bool) -> dict[str, float]:
    """Times the same step in PyTorch: same sizes, loss, dropout and optimiser."""
    import importlib

    import torch

    from jaxvqa.tasks import abstract_batch, task_without_data

    shapes = abstract_batch(task_without_data(config), config.batch_size)
    batch = {
        key: torch.from_numpy(value) for key, value in random_batch(shapes, config.compile.get("vocab_size", 0)).items()
    }
    module = importlib.import_module(f"benchmarks.peers.{config.model.name}")
    step = (module.inference if inference else module.train_step)(config)
    square = torch.ones((MATMUL, MATMUL))
    times = beside_matmul(lambda: step(batch), lambda: square @ square, steps, gflop=math.nan)
    known = {key: value for key, value in times.items() if not math.isnan(value)}  # PyTorch counts no operations
    known |= {"examples_per_second": config.batch_size / times["seconds"], "peak_mib": peak_mib()}
    apart = step.passes() if passes and hasattr(step, "passes") else {}
    return known | {f"{name}_seconds": float(np.median(timed(run, PASSES))) for name, run in apart.items()}


ROWS = {"jaxvqa": ours, "pytorch": peer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/rwsan.py:vqa_v2")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--passes", action="store_true")
    parser.add_argument("--json", default="")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args, changes = parser.parse_known_args()
    if faults := [word for word in changes if not word.startswith("--config.") or "=" not in word]:
        parser.error(f"expected --config.FIELD=VALUE, got {' '.join(faults)}")
    if args.row:
        from jaxvqa import configs

        config = configs.load(args.config)
        pairs = (change.removeprefix("--config.").partition("=") for change in changes)
        configs.override(config, [(name, value) for name, _, value in pairs])
        print(json.dumps(ROWS[args.row](config, args.steps, args.inference, args.passes)))
        return
    rows = {}
    for row in ROWS if args.peer else ["jaxvqa"]:
        command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], f"--row={row}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[row] = json.loads(done.stdout.splitlines()[-1])
    print(f"{args.config} on {platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}")
    for key in rows["jaxvqa"]:
        print(f"{key:26s}" + "".join(f"{row[key]:14.3f}" if key in row else f"{'':14s}" for row in rows.values()))
    print(f"{'':26s}" + "".join(f"{name:>14s}" for name in rows))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.train_step", main))
