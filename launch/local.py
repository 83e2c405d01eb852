"""Runs the program as several processes on this machine, as a cluster would: the same program, the same numbers.

    python -m launch.local --processes=2 --devices=2 -- --config=configs/rwsan.py:small --workdir=runs/two

Every process simulates `--devices` CPU devices. On machines with GPUs start one process for each GPU instead (SLURM:
launch/slurm.sbatch), or one for all of them, which needs no launcher. Ends with the first non-zero exit code of a process, and
stops the others then.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

from jaxvqa.errors import run_command


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(argv: list[str]) -> int:
    """Starts the processes, waits for them, and returns the exit code."""
    return run_command("launch.local", lambda: _launch(argv))


def _launch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="simulated CPU devices of each process")
    parser.add_argument("arguments", nargs="*", help="arguments of jaxvqa.main, after --")
    args = parser.parse_args(argv)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(args.devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(args.processes),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxvqa.main", *args.arguments, "--distributed"],
            env=environment | {"JAX_PROCESS_ID": str(i)},
        )
        for i in range(args.processes)
    ]

    # Ctrl-C and a scheduler's SIGTERM go on to all, which then save and stop at the same step.
    def stop_all(*_: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_all)
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0, 75) for process in processes):
                break  # the others would wait for it without end
            time.sleep(0.2)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    # A process that was killed by a signal has a negative code; shells write it as 128 + signal.
    return next((code if code > 0 else 128 - code for code in (p.returncode for p in processes) if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
