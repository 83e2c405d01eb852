"""The program's numbers are right on the jaxlib that is installed, and on those known to be wrong."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from jaxvqa import jaxlib_faults
from tests.runs import ROOT

FLAG = "--xla_cpu_experimental_ynn_fusion_type"

# jax issue 39103: off by several per cent with jaxlib 0.10.2 alone.
SUMS = """
matrix, rows = np.eye(3, dtype=np.float32), np.random.default_rng(0).normal(size=(32769, 3)).astype(np.float32)
ours = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
right = (rows.astype(np.float64) ** 2).sum(axis=1)
print(np.abs(ours - right).max() / right.max())
"""
# jax issues 40412 and 39257: end the process with jaxlib 0.10.2 and 0.11.0 alone.
MANY_AXES = """
a = jnp.ones((3, 1, 2, 2, 8, 8, 8), jnp.float32)
print(float(jnp.abs(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, a) - 2).max()))
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh process, without the flags that the tests themselves run with."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", *jaxlib_faults.RANKS)}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("first", ["import jaxvqa, jax, jax.numpy as jnp", "import jax, jax.numpy as jnp, jaxvqa"])
def test_sums_are_right(first):
    result = run(f"{first}\nimport numpy as np\n{SUMS}{MANY_AXES}")
    assert result.returncode == 0, result.stderr
    errors = [float(line) for line in result.stdout.split()]
    assert len(errors) == 2
    assert max(errors) < 1e-6
    installed = metadata.version("jaxlib")
    assert result.stderr.count(f"jaxlib {installed} ") == (installed in jaxlib_faults.FAULTS)


def pretend(version: str, then: str = "import jaxvqa", before: str = "") -> str:
    """A program that imports jaxvqa with a jaxlib that says it is `version`, and prints XLA_FLAGS."""
    return (
        f"import os\nfrom importlib import metadata\nreal = metadata.version\n"
        f"metadata.version = lambda name: {version!r} if name == 'jaxlib' else real(name)\n"
        f"{before}\n{then}\nprint(os.environ.get('XLA_FLAGS'))"
    )


@pytest.mark.parametrize(
    ("version", "flags", "after"),
    [
        ("0.10.2", "", f"{FLAG}="),
        ("0.11.0", "", f"{FLAG}="),
        ("0.10.2", "--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x {FLAG}="),
        ("0.10.2", f"{FLAG}_other=1", f"{FLAG}_other=1 {FLAG}="),
        ("0.10.2.dev20260601", "", f"{FLAG}="),
        ("0.10.2+local", "", f"{FLAG}="),
        ("0.10.1", "", ""),
        ("0.10.20", "", ""),
        ("0.11.1", "", ""),
        ("0.12.0.1", "--xla_dump_to=/tmp/x", "--xla_dump_to=/tmp/x"),
    ],
)
@pytest.mark.parametrize("platforms", ["", "cpu", "cuda,cpu", "CPU"])
def test_a_flag_keeps_a_fault_away(version, flags, after, platforms):
    now, words, loudly = jaxlib_faults.decide(version, platforms, flags, started=False)
    assert (now, loudly) == (after, False)
    assert bool(words) == (after != flags)
    assert version in words or not words


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "cuda,tpu"])
def test_nothing_is_changed_where_no_cpu_computes(platforms):
    assert jaxlib_faults.decide("0.10.2", platforms, "", started=False) == ("", "", False)


@pytest.mark.parametrize("flags", [f"{FLAG}=", f'{FLAG}=""', f"{FLAG}=dot {FLAG}=", f"--xla_dump_to=/tmp/x {FLAG}= "])
@pytest.mark.parametrize("started", [False, True])
def test_the_users_own_protection_is_left(flags, started):
    assert jaxlib_faults.decide("0.10.2", "", flags, started) == (flags, "", False)


@pytest.mark.parametrize("flags", [f"{FLAG}=dot", f"{FLAG}=-reduce", f"{FLAG}= {FLAG}=dot", f"{FLAG}=dot --xla_a=1"])
def test_the_users_own_flag_that_leaves_the_fault_in(flags):
    now, words, loudly = jaxlib_faults.decide("0.10.2", "", flags, started=False)
    assert (now, loudly) == (flags, True)
    assert "Your XLA_FLAGS" in words


def test_a_backend_that_has_started():
    words, loudly = jaxlib_faults.decide("0.11.0", "cpu", "", started=True)[1:]
    assert loudly
    assert "too late" in words


def test_the_flag_is_set_and_reported_once_and_children_say_nothing():
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {pretend('0.10.2')!r}])"
    result = run(pretend("0.10.2", then=f"import jaxvqa, jaxvqa.errors; {child}"))
    assert result.stdout == f"{FLAG}=\n" * 2
    assert result.stderr.count("jaxlib 0.10.2") == 1


def test_only_the_first_process_of_a_job_speaks():
    result = run(pretend("0.10.2"), JAX_PROCESS_ID="1")
    assert (result.stdout, result.stderr) == (f"{FLAG}=\n", "")


def test_flags_in_a_file_are_kept(tmp_path):
    (tmp_path / "flags").write_text("--xla_a=1\n")
    result = run(pretend("0.10.2"), XLA_FLAGS=str(tmp_path / "flags"))
    assert result.stdout.split() == ["--xla_a=1", f"{FLAG}="]


def test_jax_that_started_before_is_reported_as_a_warning():
    result = run(pretend("0.10.2", before="import jax; jax.devices()"))
    assert "RuntimeWarning: jaxlib 0.10.2" in result.stderr
    assert "too late" in result.stderr


def test_platforms_chosen_in_the_program_count():
    result = run(pretend("0.10.2", before="import jax; jax.config.update('jax_platforms', 'tpu')"), JAX_PLATFORMS="cpu")
    assert (result.stdout, result.stderr) == ("None\n", "")


BY_FLAG = "--xla_force_host_platform_device_count=4"


@pytest.mark.parametrize(
    ("version", "flags", "simulated", "cores", "enough"),
    [
        ("0.10.2", "", "8", 2, 16),
        ("0.11.0", "", "8", 15, 16),
        ("0.10.2", "", "8", 16, None),
        ("0.10.2", "", "1", 1, None),
        ("0.10.2", "", "", 1, None),
        ("0.10.2", BY_FLAG, "-1", 2, 8),
        ("0.10.2", f"--xla_a=1 {BY_FLAG}", "", 2, 8),
        ("0.10.2", BY_FLAG, "2", 2, 4),
        ("0.12.0.1", BY_FLAG, "8", 2, None),
    ],
)
def test_simulated_devices_have_threads_enough(version, flags, simulated, cores, enough):
    assert jaxlib_faults.threads(version, flags, simulated, cores) == enough


# More programs in line for each device than XLA lets stand there, behind a slow one.
IN_LINE = """
import jaxvqa, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rows, few = (jax.device_put(np.ones((n, 64), np.float32), NamedSharding(mesh, PartitionSpec("data"))) for n in (4096, 16))
slow = jax.jit(lambda a: jax.lax.fori_loop(0, 8, lambda _, a: jnp.tanh(a @ (a.T @ a)), a).sum())
finite = jax.jit(lambda a: jnp.isfinite(a).all())
for _ in range(5):
    slow(rows)
    assert all(jax.device_get([finite(few) for _ in range(100)]))
"""


def test_simulated_devices_do_not_wait_for_each_other_for_ever():
    result = run(IN_LINE, JAX_NUM_CPU_DEVICES="8")
    assert result.returncode == 0, result.stderr


def test_the_users_own_number_of_threads_is_left():
    then = "import jaxvqa; print(os.environ['NPROC'])"
    found = [
        run(pretend("0.10.2", then), JAX_NUM_CPU_DEVICES="64", **own).stdout.split()[0] for own in ({}, {"NPROC": "3"})
    ]
    assert found == ["128", "3"]
