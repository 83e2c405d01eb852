"""`--mode=compile`: compiles the training step for hardware that is not here, and says what it needs.

XLA compiles for a TPU topology without any TPU (libtpu must be installed: the extra `tpu`), and for GPUs without any GPU or
driver (the extra `cuda`). So memory for each device, flops (not for GPUs) and communication between devices are known before a
machine is booked.
"""

import os
import re
from collections import Counter
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxvqa import fields, sharding
from jaxvqa.errors import ConfigError, install
from jaxvqa.step import abstract_step_arguments, make_program
from jaxvqa.tasks import task_without_data

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# A stand-in for the size of the training set: schedules need one, the compiled program's cost does not depend on it.
DATA_SIZE = 1_000_000


# What XLA asks of a GPU when it compiles: the H100 SXM, NVIDIA's data sheet and `nvidia-smi`.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 threads_per_core_limit: 2048 threads_per_block_limit: 1024
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

GPUS = {"h100": H100}

# Trying kernels out needs a GPU; and untried, XLA finds no tiles for some small products of its own kernels.
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def _gpu_of(target: str) -> tuple[str, str] | None:
    """Kind and number of a target such as "h100:8"."""
    found = re.fullmatch(rf"({'|'.join(GPUS)}):([1-9]\d*)", target)
    return (found[1], found[2]) if found else None


def devices_of(target: str) -> Any:
    """The devices to compile for: "local" for those at hand, a TPU topology such as "v5e:2x4", or "h100:8": GPUs of one host.

    Raises:
      ConfigError: when libtpu or JAX's CUDA plugin is not installed, or knows no such topology.
    """
    if target == "local":
        return jax.devices()
    if gpu := _gpu_of(target):
        from jax.experimental import topologies

        kind, count = gpu
        try:
            return topologies.get_topology_desc(
                target, platform="cuda", target_config=GPUS[kind], topology=f"1x1x{count}"
            ).devices
        except Exception as error:
            raise ConfigError(
                f"config.compile.target = {target!r} cannot be compiled for: {str(error).splitlines()[0]}. Compiling for GPUs "
                f"needs JAX's CUDA plugin, but no GPU: {install('cuda13')}"
            ) from error
    # Without this libtpu asks the cloud's metadata server about the machine, for minutes where there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    except Exception as error:
        raise ConfigError(
            f"config.compile.target = {target!r} cannot be compiled for: {str(error).splitlines()[0]}. Expected 'local', "
            "'h100:8' for 8 GPUs, or a TPU topology such as 'v5e:2x4', 'v6e:2x4', 'v4:2x2x2', which need libtpu: "
            f"{install('tpu')}"
        ) from error


def options_for(target: str) -> dict[str, Any]:
    """The compiler's options for a target."""
    return GPU_OPTIONS if _gpu_of(target) else {}


def compile_step(config: ml_collections.ConfigDict) -> tuple[Any, sharding.Mesh, str]:
    """Compiles the training step of a config at its full size, without data or parameters.

    Returns:
      The compiled step, its mesh, and what lies where (`sharding.plan`).
    """
    config = fields.final(config, training=True)
    mesh = sharding.make_mesh(config.mesh, devices_of(config.compile.target))
    task = task_without_data(config)
    with jax.set_mesh(mesh):
        program = make_program(config, task, mesh, data_size=DATA_SIZE, total_steps=DATA_SIZE // config.batch_size)
        lowered = program.step.lower(*abstract_step_arguments(config, task, program))
        compiled = lowered.compile(compiler_options=options_for(config.compile.target))
    return compiled, mesh, sharding.plan(config.sharding, program.shapes, task.kinds)


def measures(compiled: Any) -> dict[str, float]:
    """Numbers of a compiled step for one device: memory in bytes, floating-point operations, counts of collectives."""
    memory = compiled.memory_analysis()
    values: dict[str, float] = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        # Donated arguments are written over: they count once.
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
    }
    values["total_bytes"] = sum(values.values())
    values |= {f"collective/{name}": count for name, count in collectives(compiled.as_text()).items()}
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    if cost and "flops" in cost:
        values["flops"] = cost["flops"]
    return {name: float(value) for name, value in values.items()}


def collectives(program: str) -> Counter[str]:
    """How often each kind of communication occurs in the text of a compiled program.

    A channel counts once: a TPU's program repeats an operation in the text of every fusion that it runs beside.
    """
    names = "|".join(COLLECTIVES)
    found = re.findall(rf"= \S.*? ({names})(?:-start)?\((?:.*channel_id=(\d+))?", program)
    return Counter(name for name, _ in [*{x for x in found if x[1]}, *(x for x in found if not x[1])])


def report(config: ml_collections.ConfigDict) -> str:
    """Compiles the step and returns what it needs, as text."""
    compiled, mesh, plan = compile_step(config)
    values = measures(compiled)
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind = np.ravel(mesh.devices)[0].device_kind
    lines = [
        f"training step of {config.name} for {config.compile.target}: {mesh.size} x {kind}, mesh {shape}",
        f"batch {config.batch_size} ({config.batch_size // sharding.batch_shards(mesh)} a device), {config.dtype}",
        plan,
        "memory for each device:",
        *(
            f"  {name:12s} {values[f'{name}_bytes'] / 2**20:10.1f} MiB"
            for name in ("argument", "temporary", "output", "program", "total")
        ),
        f"flops for each device and step: {values['flops']:.4g}"
        if "flops" in values
        else "flops: not reported by this backend",
        "collectives: "
        + (
            ", ".join(
                f"{name} {values[f'collective/{name}']:.0f}" for name in COLLECTIVES if f"collective/{name}" in values
            )
            or "none"
        ),
    ]
    return "\n".join(lines)
