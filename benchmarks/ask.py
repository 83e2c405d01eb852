"""Times a run that is asked about single images: opening it, the first answer, which is compiled, and the next ones.

    python -m benchmarks.ask runs/cmsa runs/sysu_hcp [--split=val] [--questions=20]

The questions and images are those of a built split, as files: each answer reads its image anew. Nothing that another command
has compiled before is taken.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxvqa.ask.model import load
from jaxvqa.errors import run_command

ANSWER_SECONDS = 0.3
"""What an answer but the first may take, for the models of the embedded data set on 2 CPU cores."""


def times(workdir: str, split: str, questions: int) -> dict[str, float]:
    """Seconds: of opening the run, of the first answer, and the median and the largest of the others."""
    start = time.perf_counter()
    model = load(workdir)
    opened = time.perf_counter() - start
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for i, example in enumerate(model.run.data.split(split).read(range(questions))):
            image, regions = Path(folder, f"{i}.png"), Path(folder, f"{i}.npz")
            image.write_bytes(example["image"])
            given = model.task.reads == "regions"
            if given:
                np.savez(regions, x=example["features"].T, bbox=example["boxes"])
            question = "" if model.task.asks == "description" else example["question"]
            seconds.append(model.answer(image, question, regions if given else "").seconds)
    first, *others = seconds
    return {"open": opened, "first": first, "median": float(np.median(others)), "largest": max(others)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--split", default="val")
    parser.add_argument("--questions", type=int, default=20)
    args = parser.parse_args()
    print(f"{'run':32s}{'open, s':>10s}{'first, s':>10s}{'median, s':>11s}{'largest, s':>12s}")
    for workdir in args.workdirs:
        found = times(workdir, args.split, args.questions)
        late = "" if found["largest"] < ANSWER_SECONDS else f"   over {ANSWER_SECONDS} s"
        print(
            f"{workdir:32s}{found['open']:10.2f}{found['first']:10.2f}{found['median']:11.3f}{found['largest']:12.3f}{late}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.ask", main))
