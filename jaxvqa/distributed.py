"""The other processes of a job: joining them, waiting for them, leaving them."""

import atexit
import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from orbax.checkpoint import multihost

from jaxvqa.errors import ConfigError, WaitError, first_line, from_os_error

WAIT = "JAXVQA_WAIT_SECONDS"
"""The environment variable that says how long to wait for other processes; 300 without it."""

LEAVE_SECONDS = 60
"""How long a process that failed waits for the others to end as well; then it leaves alone."""

_GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_HOW = (
    "Start the program with srun or mpirun, on a TPU pod, as an indexed Job of Kubernetes, or with JAX_COORDINATOR_ADDRESS "
    "(HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; launch/README.md has them all."
)
_CAUSES = (
    f"it did not start, or died (see its own output), or is still busy ({WAIT} waits longer); the processes were given "
    "different numbers or addresses; a firewall closes the port; the address is 127.0.0.1 and they are on several machines"
)


# --- where this process stands -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What the environment says about this process. None is what it does not say.

    Attributes:
      launcher: "OpenMPI", "SLURM" or "".
      address: HOST:PORT of process 0.
      count: how many processes there are.
      rank: the number of this one, from 0.
      here: how many of them are on this node.
      local_rank: the number of this one among those.
      wait: seconds to wait for others.
    """

    launcher: str
    address: str | None
    count: int | None
    rank: int | None
    here: int | None
    local_rank: int | None
    wait: int


# The number of processes, the number of this one, and its number on this node. In the order in which JAX looks for launchers.
_LAUNCHERS = {
    "OpenMPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
}
_ALSO_SET = {"SLURM": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST")}  # not in a batch script outside srun


def place(environment: Mapping[str, str]) -> Place:
    """Reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and for the rest OpenMPI's or SLURM's variables.

    Raises:
      ConfigError: lists every variable that is missing or wrong.
    """
    faults: list[str] = []

    def number(name: str, lowest: int = 0) -> int | None:
        text = environment.get(name, "").strip()
        if name in environment and (not text.isdecimal() or int(text) < lowest):
            faults.append(f"{name} is {environment[name]!r}; expected a whole number from {lowest} on")
        return int(text) if text.isdecimal() else None

    launcher = next(
        (name for name, own in _LAUNCHERS.items() if {*own, *_ALSO_SET.get(name, ())} <= environment.keys()), ""
    )
    given = [name for name in _GIVEN if name in environment]
    if given and not launcher:
        faults += [f"{name} is not set, but {' and '.join(given)} is" for name in _GIVEN if name not in given]
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not (
        re.fullmatch(r"\S+:\d{1,5}", address) and 0 < int(address.rpartition(":")[2]) < 2**16
    ):
        faults.append(f"JAX_COORDINATOR_ADDRESS is {address!r}; expected HOST:PORT of process 0, as in node1:9876")
    counts, ranks, local_ranks = _LAUNCHERS.get(launcher, ("", "", ""))
    count = number("JAX_NUM_PROCESSES" if "JAX_NUM_PROCESSES" in given else counts, 1)
    rank = number("JAX_PROCESS_ID" if "JAX_PROCESS_ID" in given else ranks)
    if count is not None and rank is not None and rank >= max(count, 1):
        faults.append(f"this is process {rank} of {count}, which are numbered from 0 to {count - 1}")
    if launcher:
        here = (
            number("OMPI_COMM_WORLD_LOCAL_SIZE", 1) if launcher == "OpenMPI" else _slurm_tasks_here(environment, number)
        )
        local_rank = number(local_ranks)
    elif address and address.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]"):
        here, local_rank = count, rank
    else:
        here, local_rank = None, None
    wait = number(WAIT, 1) or 300
    if faults:
        raise ConfigError("--distributed cannot join a job:\n  " + "\n  ".join(faults) + f"\n{_HOW}")
    return Place(launcher, address, count, rank, here, local_rank, wait)


def _slurm_tasks_here(environment: Mapping[str, str], number: Callable[..., int | None]) -> int | None:
    # "8(x2),4" are the tasks of nodes 0, 1 and 2.
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE", "")
    nodes = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
    node = number("SLURM_NODEID") or 0
    if node < len(nodes):
        return nodes[node]
    if each := number("SLURM_NTASKS_PER_NODE", 1):
        return each
    one_name = not re.search(r"[,\[]", environment["SLURM_STEP_NODELIST"])
    count = number("SLURM_STEP_NUM_NODES", 1) or number("SLURM_NNODES", 1) or (1 if one_name else None)
    tasks = number("SLURM_NTASKS", 1)
    return -(-tasks // count) if tasks and count else None


# --- its GPUs ----------------------------------------------------------------------------------------------------------


def _restriction(environment: Mapping[str, str]) -> str | None:
    variables = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    return next((environment[name] for name in variables if name in environment), None)


def visible_gpus(environment: Mapping[str, str]) -> int:
    """How many GPUs this process can see; 0 for a run on CPU or TPU."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "rocm", "gpu"} & set(platforms.split(",")):
        return 0
    if (names := _restriction(environment)) is not None:
        # The first entry that names no GPU ends the list, as for the driver: "-1", or SLURM's "NoDevFiles".
        return len(list(itertools.takewhile(lambda n: re.fullmatch(r"\s*(\d+|(GPU|MIG)-.+)", n), names.split(","))))
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(re.findall(r"^GPU \d", listed.stdout, re.MULTILINE))


def local_device_ids(environment: Mapping[str, str], here: int | None, local_rank: int | None) -> list[int] | None:
    """The GPUs that this process takes, as ordinals among those that it sees; None leaves the choice to JAX.

    JAX by itself takes the one with the number of the local rank, which a process that sees one GPU does not have, and which
    leaves GPUs idle where a node has fewer processes than GPUs.

    Raises:
      ConfigError: GPUs would be idle, or shared by processes.
    """
    seen = visible_gpus(environment)
    if not seen or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if here is None:
        return [0] if seen == 1 else None
    allocated = environment.get("SLURM_GPUS_ON_NODE", "")
    in_all = int(allocated) if allocated.isdecimal() else None
    # Without SLURM's word, one GPU is this process's own among several where a variable gave it to it.
    given = here == 1 or (seen == 1 and _restriction(environment) is not None)
    if in_all == here * seen or (in_all is None and given):
        return list(range(seen))
    if here == seen and in_all in (None, seen):
        return [local_rank or 0]
    raise ConfigError(
        f"{here} processes of this job are on this node, this one sees {seen} GPUs"
        + (f", and {in_all} of the node are the job's" if in_all is not None else "")
        + ": GPUs would be idle, or shared. Start one process for each GPU, all of which see all GPUs of the node (SLURM: "
        f"--ntasks-per-node={in_all or seen} --gres=gpu:{in_all or seen}, neither --gpus-per-task nor --gpu-bind), or one "
        "process for all of them (--ntasks-per-node=1). JAX_LOCAL_DEVICE_IDS=0,1 takes those two whatever is there, "
        "JAX_PLATFORMS=cpu none."
    )


# --- joining and leaving -----------------------------------------------------------------------------------------------


def initialize_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`; what is None there JAX finds by itself, as all of it in a TPU pod.

    Raises:
      ConfigError: see `place` and `local_device_ids`.
    """
    found = place(environment)
    arguments: dict[str, Any] = {
        "local_device_ids": local_device_ids(environment, found.here, found.local_rank),
        "initialization_timeout": found.wait + 60,  # `_join` gives up before, with a message
    }
    # OpenMPI 5 does not say an address any more, and JAX asks MPI for it. JAX knows older ones by this variable.
    without_address = found.launcher == "OpenMPI" and "OMPI_MCA_orte_hnp_uri" not in environment
    if without_address or any(name in environment for name in _GIVEN):
        arguments |= {"coordinator_address": found.address, "num_processes": found.count, "process_id": found.rank}
        arguments["cluster_detection_method"] = "deactivate" if found.address else "mpi4py" if without_address else None
    return arguments


@contextlib.contextmanager
def job(join: bool) -> Iterator[None]:
    """The time in which this process is one of a job's, if it is to `join` one.

    A process that fails alone does not wait many minutes for the others at its end, as JAX does: they wait for it.

    Raises:
      ConfigError: what the environment says makes no job, or JAX could not join it.
    """
    if join:
        _join(os.environ)
    try:
        yield
    except BaseException as error:
        if join:
            known = from_os_error(error) if isinstance(error, OSError) else error
            code = 130 if isinstance(error, KeyboardInterrupt) else getattr(known, "exit_code", 1)
            # Registered after JAX's own, this runs before it.
            atexit.register(_leave, code, 0 if isinstance(error, WaitError) else LEAVE_SECONDS)
        raise


def _leave(code: int, seconds: int) -> None:
    try:
        _wait_for_all("end", seconds)
    except jax.errors.JaxRuntimeError:
        sys.stdout.flush()
        os._exit(code)


def _join(environment: Mapping[str, str]) -> None:
    arguments = initialize_arguments(environment)
    found = place(environment)
    if found.rank == 0 and found.address:
        _check_port_is_free(int(found.address.rpartition(":")[2]))
    # Where not all come, JAX ends the process in C++ with a stack trace, which nothing in Python can catch.
    timer = _end_after(
        found.wait,
        ConfigError.exit_code,
        f"process {'?' if found.rank is None else found.rank} waited {found.wait} s to join the other processes"
        + (f" at {found.address}" if found.address else "")
        + f", and not all of them came. Where one is missing, likely {_CAUSES}. See launch/README.md.",
    )
    try:
        try:
            jax.distributed.initialize(**arguments)
        except Exception as error:
            raise ConfigError(f"--distributed could not join a job: {error}\n{_HOW}") from error
        try:
            jax.devices()  # of all processes, for which JAX waits here as well
        except RuntimeError as error:
            raise ConfigError(
                f"JAX joined the job, but not its devices: {first_line(error)}.{_unknown_name()}"
            ) from error
    finally:
        timer.cancel()


def _unknown_name() -> str:
    # Processes on CPUs listen at the address of their machine's name, and Gloo only says "rv == 0. -2 vs 0" where it has none.
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return f" The name of this machine, {socket.gethostname()}, has no address: add it to /etc/hosts."
    return ""


def _check_port_is_free(port: int) -> None:
    # JAX's service crashes the interpreter where it is not.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"JAX_COORDINATOR_ADDRESS: process 0 cannot listen on port {port} ({error.strerror}): another job is using it, "
                "or another process 0. Choose another port, the same for all processes."
            ) from error


def _end_after(seconds: int, code: int, message: str) -> threading.Timer:
    """Ends this process after this many seconds, whatever it waits for, unless the timer is cancelled."""

    def end() -> None:
        print(f"jaxvqa: {message}", file=sys.stderr, flush=True)
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


# --- waiting -----------------------------------------------------------------------------------------------------------

_passed = itertools.count()


def barrier(name: str) -> None:
    """Waits until all processes are here; all have to pass the same barriers in the same order.

    Unlike `multihost_utils.sync_global_devices` it does not wait for ever, nor does it need the devices.

    Raises:
      WaitError: one did not come in time.
    """
    if jax.process_count() == 1:
        return
    seconds = place(os.environ).wait
    try:
        _wait_for_all(f"{next(_passed)}/{name}", seconds)
    except jax.errors.JaxRuntimeError as error:
        late = re.search(r"timed out task names:\s*([\d\s]+)", str(error))
        missing = f"; missing: {', '.join(late[1].split())}" if late else ""
        raise WaitError(
            f"Process {jax.process_index()} of {jax.process_count()} waited {seconds} s for the others at {name!r}{missing}. "
            f"Where one is missing, likely {_CAUSES}. Complete checkpoints are kept: start the same command again. "
            f"({first_line(error)})"
        ) from error


def _wait_for_all(key: str, seconds: int) -> None:
    multihost.get_barrier_sync_fn()(key=f"jaxvqa/{key}", timeout_ms=1000 * seconds)
