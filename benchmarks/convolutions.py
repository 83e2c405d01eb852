"""Compares the forms of a convolution in groups, at the sizes of ResNeSt-50's four stages, forward and backward together.

    python -m benchmarks.convolutions [--batch=8] [--image=224] [--target=local|v5e:2x4|h100:8]

`separate` is what the models use (`jaxvqa.kernels.convolve_in_groups`): a convolution for each group. `grouped` is
XLA's own convolution in groups, and `dense` one convolution whose kernel has zeros between the groups. `local` times them on
this machine, in milliseconds; another target, which need not be at hand, compiles them for it (`jaxvqa.compiling`), with the
batch split over its devices, and reports each device's operations (10⁹; not for GPUs) and temporary memory (MiB).
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import compiling, sharding
from jaxvqa.errors import run_command
from jaxvqa.kernels import convolve_in_groups

GROUPS = 2
STAGES = ((4, 64), (8, 128), (16, 256), (32, 512))
"""Of each stage: how much smaller than the picture its maps are, and the channels that are split into `GROUPS`."""

Form = Callable[[jax.Array, jax.Array], jax.Array]


def _xla(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
    parts = jnp.split(kernel, GROUPS, axis=-1)
    zeros = jnp.zeros_like(parts[0])
    rows = [jnp.concatenate([p if i == j else zeros for j, p in enumerate(parts)], -1) for i in range(GROUPS)]
    return _xla(x, jnp.concatenate(rows, axis=2), 1)


FORMS: dict[str, Form] = {
    "separate": lambda x, kernel: convolve_in_groups(x, kernel, GROUPS, 1, 1),
    "grouped": lambda x, kernel: _xla(x, kernel, GROUPS),
    "dense": _dense,
}


def both_ways(form: Form) -> Callable[..., Any]:
    """The program that gives a form's result and, for a gradient of that, both gradients."""

    def run(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> Any:
        y, back = jax.vjp(form, x, kernel)
        return y, back(dy)

    return run


def shapes(shrink: int, width: int, batch: int, image: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of a stage's maps, of its kernel and of the result."""
    side = image // shrink
    return (batch, side, side, width), (3, 3, width // GROUPS, 2 * width), (batch, side, side, 2 * width)


def timed(form: Form, sizes: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """The fastest of seven runs here."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal(size, np.float32)) for size in sizes]
    run = jax.jit(both_ways(form))
    jax.block_until_ready(run(*arrays))
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        seconds.append(time.perf_counter() - start)
    return {"ms": 1000 * min(seconds)}


def compiled(form: Form, sizes: tuple[tuple[int, ...], ...], target: str) -> dict[str, float]:
    """What the program needs of each device of a target."""
    devices = compiling.devices_of(target)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)
    over_batch, everywhere = sharding.batch_sharding(mesh), jax.NamedSharding(mesh, jax.P())
    x, kernel, dy = (
        jax.ShapeDtypeStruct(size, jnp.float32, sharding=s)
        for size, s in zip(sizes, (over_batch, everywhere, over_batch), strict=True)
    )
    with jax.set_mesh(mesh):
        values = compiling.measures(
            jax.jit(both_ways(form)).lower(x, kernel, dy).compile(compiling.options_for(target))
        )
    return {"gflop": values.get("flops", np.nan) / 1e9, "temporary MiB": values["temporary_bytes"] / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--target", default="local")
    args = parser.parse_args()
    print(f"{args.target}, batch {args.batch}, pictures of {args.image}, {GROUPS} groups")
    print(f"{'map':14s}{'channels':>9s}  " + "".join(f"{name:>26s}" for name in FORMS))
    for shrink, width in STAGES:
        sizes = shapes(shrink, width, args.batch, args.image)
        cells = []
        for form in FORMS.values():
            values = timed(form, sizes) if args.target == "local" else compiled(form, sizes, args.target)
            cells.append(", ".join(f"{value:.1f} {unit}" for unit, value in values.items()))
        side = args.image // shrink
        print(f"{side:>4d} x {side:<7d}{width:>9d}  " + "".join(f"{cell:>26s}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.convolutions", main))
