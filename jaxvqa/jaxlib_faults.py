"""Versions of jaxlib that compute wrongly or stop on CPUs, and what keeps their faults away: XLA's flags, and threads.

Importing `jaxvqa` calls `protect`, since both only count before JAX starts its CPU backend.
"""

import dataclasses
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

log = logging.getLogger("jaxvqa")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong in a version of jaxlib, and the value of a flag of XLA's that mends it."""

    what: str
    flag: str
    value: str


# XLA hands some sums to YNNPACK; an empty list of what to hand over mends it. Neither fault is in 0.11.1 and later.
_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
FAULTS: Mapping[str, Fault] = {
    "0.10.2": Fault("computes some sums wrongly on CPUs (jax issue 39103)", _FUSION, ""),
    "0.11.0": Fault("crashes on CPUs in some sums over arrays of many axes (jax issue 39257)", _FUSION, ""),
}


def protect() -> None:
    """Adds to XLA_FLAGS what this process's jaxlib needs, unless the user chose that flag's value, and says so once.

    Child processes inherit the variable, so that they have nothing to add or say. Warns where it is too late, as the
    backend has started, or where the user's own flags leave the fault in.
    """
    jax = sys.modules.get("jax")
    bridge = sys.modules.get("jax._src.xla_bridge")
    version = metadata.version("jaxlib")
    platforms = jax.config.jax_platforms if jax else os.environ.get("JAX_PLATFORMS")
    before = _read(os.environ.get("XLA_FLAGS", ""))
    flags, words, loudly = decide(
        version, platforms or "", before, bridge is not None and bridge.backends_are_initialized()
    )
    if flags != before:
        os.environ["XLA_FLAGS"] = flags
    simulated = jax.config.jax_num_cpu_devices if jax else os.environ.get("JAX_NUM_CPU_DEVICES", "")
    if enough := threads(version, before, str(simulated), os.cpu_count() or 1):
        os.environ.setdefault(THREADS, str(enough))
    if loudly:
        warnings.warn(words, RuntimeWarning, stacklevel=3)
    elif words and all(os.environ.get(rank, "0") == "0" for rank in RANKS):
        log.warning("%s", words)


RANKS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
"""Variables with the number of a process among the many of one job, of which the first speaks."""


def decide(version: str, platforms: str, flags: str, started: bool) -> tuple[str, str, bool]:
    """What `protect` does.

    Args:
      version: jaxlib's.
      platforms: as JAX_PLATFORMS: names with commas, empty for all that are there.
      flags: the value of XLA_FLAGS.
      started: whether JAX has a backend already, which reads the flags no more.

    Returns: the new flags, what to tell the user (may be empty), and whether that is a warning that numbers may be wrong.
    """
    fault = FAULTS.get(re.sub(r"(\.?(dev|rc)\d+)?(\+.*)?$", "", version))
    if fault is None or (platforms and "cpu" not in platforms.lower().split(",")):
        return flags, "", False
    says = f"jaxlib {version} {fault.what}."
    out = "Python 3.12 or newer has a jaxlib without this fault."
    given = re.findall(rf"(?<!\S){fault.flag}(?:=(\S*))?(?!\S)", flags)
    if given:
        chosen = given[-1].strip("\"'")
        if chosen == fault.value:
            return flags, "", False
        return flags, f"{says} Your XLA_FLAGS leave that in: remove {fault.flag}={chosen} from them. {out}", True
    mended = f"{flags} {fault.flag}={fault.value}".strip()
    if started:
        return mended, f"{says} JAX has started already, too late to keep that away: import jaxvqa before. {out}", True
    return mended, f"{says} XLA_FLAGS now has {fault.flag}={fault.value}, which keeps that away. {out}", False


THREADS = "NPROC"
"""The environment variable with the number of threads that XLA starts on a CPU; without it, as many as there are cores."""


def threads(version: str, flags: str, simulated: str, cores: int) -> int | None:
    """How many threads XLA needs so that simulated devices do not wait for each other for ever; None where it has them.

    Before jaxlib 0.12, one pool has the threads that run programs, one a device, and those that hand programs to devices.
    The latter wait as soon as 32 programs stand in line for a device. If they keep the threads that a collective of the
    running program needs, it waits in vain, and XLA ends the process ("Termination timeout for `all reduce …`").

    Args:
      version: jaxlib's.
      flags: the value of XLA_FLAGS.
      simulated: the number of CPU devices as JAX is asked for it; no whole number where XLA_FLAGS may say it.
      cores: of this machine.
    """
    by_flag = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    devices = int(simulated if simulated.isdecimal() else by_flag[-1] if by_flag else 1)
    affected = tuple(map(int, version.split(".")[:2])) < (0, 12)
    return 2 * devices if affected and devices > 1 and cores < 2 * devices else None


def _read(flags: str) -> str:
    """XLA takes a value that does not begin with a dash as the name of a file with the flags."""
    if flags.strip() and not flags.lstrip().startswith("-"):
        try:
            return Path(flags).read_text()
        except OSError:
            pass  # XLA itself complains
    return flags
