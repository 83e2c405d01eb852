"""Runs the program as several processes on this machine, as a cluster would: the same program, the same numbers.

    python -m launch.local --processes=2 --devices=2 -- --config=configs/rwsan.py:small --workdir=runs/two

Every process simulates `--devices` CPU devices. On machines with GPUs start one process for each GPU instead (SLURM:
launch/slurm.sbatch), or one for all of them, which needs no launcher. Ends with the first non-zero exit code of a process, and
stops the others then. Ctrl-C, SIGTERM and a closed terminal make all of them save at the same step and end with 75; a second
Ctrl-C ends them at once.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

from jaxvqa.errors import run_command

STUCK_SECONDS = 60
"""How long the other processes have after the first that was stopped."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main(argv: list[str]) -> int:
    """Starts the processes, waits for them, and returns the exit code."""
    return run_command("launch.local", lambda: _launch(argv))


def _launch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=_positive, default=2)
    parser.add_argument("--devices", type=_positive, default=1, help="simulated CPU devices of each process")
    parser.add_argument("arguments", nargs="*", help="arguments of jaxvqa.main, after --")
    args = parser.parse_args(argv)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(args.devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(args.processes),
    }
    processes: list[subprocess.Popen[bytes]] = []
    stops = 0

    def stop(number: int, _: object) -> None:
        nonlocal stops
        if number == signal.SIGINT or not stops:  # a scheduler may send SIGTERM several times
            stops += 1
        if stops == 1:
            print("stopping the processes; Ctrl-C again ends them without saving …", file=sys.stderr, flush=True)
        for process in processes:
            process.send_signal(signal.SIGKILL if stops > 1 else signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    for i in range(args.processes):
        # In a group of its own, which a terminal's Ctrl-C does not reach: what stops the processes comes from here alone.
        command = [sys.executable, "-m", "jaxvqa.main", *args.arguments, "--distributed"]
        processes.append(subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(i)}, process_group=0))
    stopped_at = None
    try:
        while None in (codes := [process.poll() for process in processes]):
            if 75 in codes:
                stopped_at = stopped_at or time.monotonic()
            # The others would wait without end for one that failed. They stop together; one that does not is stuck.
            if {*codes} - {None, 0, 75} or (stopped_at and time.monotonic() > stopped_at + STUCK_SECONDS):
                break
            time.sleep(0.2)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    if stops > 1:
        return 130
    # A process that was killed by a signal has a negative code; shells write it as 128 + signal.
    return next((code if code > 0 else 128 - code for code in (p.returncode for p in processes) if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
