"""The command `python -m jaxvqa.report`."""

import argparse
import sys
from collections.abc import Sequence

from jaxvqa import logs
from jaxvqa.errors import run_command
from jaxvqa.inputs import user_path
from jaxvqa.logs import log
from jaxvqa.report import page


def main(argv: Sequence[str]) -> int:
    """Runs the command with the given arguments (without the program's name) and returns its exit code."""
    return run_command("jaxvqa.report", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxvqa.report", description=page.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=user_path, help="the folder of the run")
    parser.add_argument("--baseline", type=user_path, help="the folder of a run on the same data to compare with")
    parser.add_argument("--no-baseline", action="store_true", help="forget the baseline of the last report")
    parser.add_argument(
        "--curve", type=user_path, metavar="FILE.svg", help="write only the curve of accuracy, to this file"
    )
    args = parser.parse_args(argv)
    logs.setup()
    log.info("reading %s and writing the report …", args.workdir)
    if args.curve:
        page.write_curve(args.curve, args.workdir, args.baseline)
    print(args.curve or page.write(args.workdir, args.baseline, alone=args.no_baseline))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
