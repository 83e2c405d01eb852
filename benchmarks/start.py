"""Times how soon the program trains: from its start to the end of the first step, without and with a warm cache.

    python -m benchmarks.start [--config=configs/rwsan.py] [--steps=0] [--published]

Runs `python -m jaxvqa.main` in new work directories with one new compilation cache: the first start compiles, the second
finds its programs there. The data set of the config must be built; `--published` makes features of the published size
(as `benchmarks.input_pipeline` does) and trains `configs/rwsan.py:vqa_v2` on them. `--steps` goes on for so many steps in
the second start and adds the share of the time that they waited for data.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import input_pipeline
from jaxvqa.errors import PreemptedError
from jaxvqa.logs import read_metrics
from tfds_builders import build


def start(arguments: list[str], workdir: Path, steps: int) -> tuple[float, list[float]]:
    """Runs the program for some steps, then stops it.

    Returns:
      The seconds from its start to the end of the first step, and the share of each later step spent waiting for data.
    """
    command = [sys.executable, "-m", "jaxvqa.main", *arguments, f"--workdir={workdir}", "--config.log_every=1 steps"]
    began, seconds, lines = time.perf_counter(), None, []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            lines.append(line)
            if line.startswith("first step done"):
                seconds = time.perf_counter() - began
            if line.startswith(f"step {steps}/"):
                process.terminate()
    if process.returncode != PreemptedError.exit_code or seconds is None:
        raise SystemExit("".join(lines))
    return seconds, [row["train/data_wait"] for row in read_metrics(workdir)[1:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/rwsan.py")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--published", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jaxvqa_start_"))
    try:
        changes = [f"--config.compilation_cache={folder / 'cache'}"]
        if args.published:
            args.config = "configs/rwsan.py:vqa_v2"
            input_pipeline.make_files(folder / "files", images=600)
            code = build.main(
                ["vqa_v2", "--config=questions,features", f"--data_dir={folder}", f"--manual_dir={folder / 'files'}"]
            )
            if code:
                return code
            splits = ("data.vocabulary_splits", "data.answers.splits", "evals.val.split")
            changes += [f"--config.data.dir={folder}", *(f"--config.{name}=train" for name in splits)]
        run = [f"--config={args.config}", *changes]
        first, _ = start(run, folder / "first", 1)
        second, waits = start(run, folder / "second", 1 + args.steps)
    finally:
        shutil.rmtree(folder)
    print(f"{args.config}, {time.strftime('%Y-%m-%d')}")
    print(f"first start:                   first step done after {first:6.1f} s")
    print(f"second start, warm cache:      first step done after {second:6.1f} s")
    if waits:
        print(f"waiting for data: {100 * sum(waits) / len(waits):.2f} % of the {len(waits)} steps after it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
