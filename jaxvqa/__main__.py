"""Visual question answering in JAX: one command for all programs; `python -m jaxvqa` is the same.

    jaxvqa COMMAND [OPTIONS]          jaxvqa COMMAND --help          jaxvqa --version

{commands}

Every command takes --quiet (warnings and results alone) and --verbose (also what libraries say, and what is compiled), and
--help. Options without a command are those of `python -m jaxvqa.main`.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import jaxvqa
from jaxvqa.errors import ConfigError, choose, run_command

COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train": ("jaxvqa.main", ("--mode=train",), "train a config, or go on where it stopped"),
    "eval": ("jaxvqa.main", ("--mode=eval",), "evaluate the newest checkpoint of a run"),
    "predict": ("jaxvqa.main", ("--mode=predict",), "predict a split, and write what its server takes"),
    "compile": ("jaxvqa.main", ("--mode=compile",), "compile a training step for devices that are not here"),
    "ask": ("jaxvqa.ask.__main__", (), "ask a run about images of your own"),
    "explain": ("jaxvqa.explain.__main__", (), "draw where a run's model looked"),
    "report": ("jaxvqa.report.__main__", (), "write the page of a run"),
    "convert": ("jaxvqa.convert.__main__", (), "read and write checkpoints of the originals"),
    "data": ("tfds_builders.build", (), "build data sets"),
    "completion": ("jaxvqa.completion", (), "print what completes these commands in bash or zsh"),
}
"""Command -> the module with its function `main`, the options that come first, and what it does."""

LOUDNESS = {"--quiet": "quiet", "--verbose": "verbose"}
"""Options of every command -> what JAXVQA_LOG is for it (`jaxvqa.logs.setup`)."""


def main(argv: Sequence[str]) -> int:
    """Runs a command with the given arguments (without the program's name) and returns its exit code."""
    return run_command("jaxvqa", lambda: _run(argv))


def cli() -> None:
    """The console script. As `python -m` does, it finds a user's own modules in the current folder first."""
    with contextlib.suppress(OSError):  # the folder may be gone
        if not sys.flags.safe_path and sys.path[:1] != [here := os.getcwd()]:
            sys.path.insert(0, here)
    sys.exit(main(sys.argv[1:]))


def _run(argv: Sequence[str]) -> int:
    said = [word for word in argv if word in LOUDNESS]
    if len(set(said)) > 1:
        raise ConfigError("--quiet and --verbose: choose one of them.")
    if said:
        os.environ["JAXVQA_LOG"] = LOUDNESS[said[0]]  # of the processes that a command starts, too
    first, *rest = argv = [word for word in argv if word not in LOUDNESS] or ["--help"]
    if first in ("-h", "--help", "help") and not rest:
        width = max(map(len, COMMANDS))
        rows = (f"    {name:{width}s}  {what}" for name, (_, _, what) in COMMANDS.items())
        print((__doc__ or "").format(commands="\n".join(rows)).strip())
        return 0
    if first == "--version":
        print(f"jaxvqa {jaxvqa.__version__}")
        return 0
    if first.startswith("-"):
        return importlib.import_module("jaxvqa.main").main(argv)
    if first not in COMMANDS:
        raise ConfigError(f"There is no command {first!r}{choose(first, COMMANDS)}")
    module, options, _ = COMMANDS[first]
    return importlib.import_module(module).main([*options, *rest])


if __name__ == "__main__":
    cli()
