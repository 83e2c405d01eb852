"""The command `python -m jaxvqa.report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxvqa import report
from jaxvqa.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Runs the command with the given arguments (without the program's name) and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxvqa.report", description=report.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="the folder of the run")
    parser.add_argument("--baseline", type=Path, help="the folder of a run on the same data to compare with")
    parser.add_argument("--curve", type=Path, metavar="FILE.svg", help="write only the curve of accuracy, to this file")
    args = parser.parse_args(argv)
    try:
        if args.curve:
            report.write_curve(args.curve, args.workdir, args.baseline)
        print(args.curve or report.write(args.workdir, args.baseline))
    except UserError as error:
        print(f"jaxvqa: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
