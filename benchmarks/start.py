"""Times how soon the program trains: from its start to the end of the first step, without and with a warm cache.

    python -m benchmarks.start [--config=configs/rwsan.py] [--steps=5] [--published]

Runs `python -m jaxvqa.main` with a compilation cache of its own: a first start, which compiles; the same command again, which
goes on from the first one's checkpoint; and a new run with the warm cache, which reads the data's vocabulary anew. The new
run takes twice `--steps` steps, and reports the share of the latter half that it waited for data. The data set of the config
must be built; `--published` makes features of the published size (as `benchmarks.input_pipeline` does) and trains
`configs/rwsan.py:vqa_v2` on them.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import input_pipeline
from jaxvqa.errors import PreemptedError, run_command
from jaxvqa.logs import read_metrics


def start(arguments: list[str], workdir: Path, *, until: int, log_every: int = 1) -> float:
    """Runs the program until it has logged step `until`, stops it, and returns the seconds to the end of its first step."""
    logged = f"--config.log_every={log_every} steps"
    command = [sys.executable, "-m", "jaxvqa.main", *arguments, f"--workdir={workdir}", logged]
    began, seconds, lines = time.perf_counter(), None, []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            lines.append(line)
            if "first step done" in line:
                seconds = time.perf_counter() - began
            step = re.search(r"\bstep (\d+)/", line)
            if step and int(step[1]) >= until:
                process.terminate()
    if process.returncode != PreemptedError.exit_code or seconds is None:
        raise SystemExit("".join(lines))
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/rwsan.py")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--published", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jaxvqa_start_"))
    try:
        changes = [f"--config.compilation_cache={folder / 'cache'}"]
        if args.published:
            args.config = "configs/rwsan.py:vqa_v2"
            if code := input_pipeline.build_data(folder, images=600):
                return code
            splits = ("data.vocabulary_splits", "data.answers.splits", "evals.val.split")
            changes += [f"--config.data.dir={folder}", *(f"--config.{name}=train" for name in splits)]
        run = [f"--config={args.config}", *changes]
        rows = {
            "first start": start(run, folder / "first", until=1),
            "the same command again": start(run, folder / "first", until=2),
            "a new run, warm cache": start(run, folder / "new", until=2 * args.steps, log_every=args.steps),
        }
        wait = next(row["train/data_wait"] for row in read_metrics(folder / "new") if row["step"] == 2 * args.steps)
    finally:
        shutil.rmtree(folder)
    print(f"{args.config}, {time.strftime('%Y-%m-%d')}")
    for name, seconds in rows.items():
        print(f"{name:24s} first step done after {seconds:6.1f} s")
    print(f"waiting for data: {100 * wait:.2f} % of {args.steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.start", main))
