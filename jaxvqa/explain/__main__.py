"""Draws where a model looked.

    python -m jaxvqa.explain --workdir=DIR --output=DIR [--split=val] [--ids=1,2,3 | --count=8] [--predict=explain]

Writes one PNG for each question and an index.html that shows them all. The questions are those with the given ids, or a
number of them spread evenly over the split (by default the split of the run's main evaluation).
"""

import argparse
import sys
from collections.abc import Sequence

from jaxvqa import logs
from jaxvqa.errors import ConfigError, run_command
from jaxvqa.explain.attention import explain
from jaxvqa.explain.pages import write
from jaxvqa.inputs import user_path
from jaxvqa.logs import log
from jaxvqa.runs import Run


def main(argv: Sequence[str]) -> int:
    """Runs the command with the given arguments (without the program's name) and returns its exit code."""
    return run_command("jaxvqa.explain", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxvqa.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=user_path, help="the folder of the run")
    parser.add_argument("--output", required=True, type=user_path, help="the folder to write to")
    parser.add_argument("--split", default="", help="which questions; default: those of the main evaluation")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ids", default="", help="question ids, joined by commas")
    which.add_argument("--count", default=8, type=int, help="how many questions, spread over the split")
    parser.add_argument("--predict", default="explain", help="which of the task's predict functions that explain")
    args = parser.parse_args(argv)
    if args.count < 1:
        raise ConfigError(f"--count={args.count}: expected at least 1.")
    logs.setup()
    log.info("reading %s and explaining its answers: the first is compiled …", args.workdir)
    which_ones = {"split": args.split, "ids": _ids(args.ids), "count": args.count}
    found = explain(Run.open(args.workdir), **which_ones, predict=args.predict)
    print(write(found, args.output)[-1])


def _ids(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise ConfigError(f"--ids: expected whole numbers joined by commas; these are none: {', '.join(wrong)}.")
    return list(dict.fromkeys(map(int, words)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
