"""Trains, evaluates, predicts with or compiles a VQA system.

First steps
  python -m tfds_builders.build phantom_vqa                       build the embedded data set
  python -m jaxvqa.main --config=configs/rwsan.py:small           train a tiny model, evaluate, write a report
  python -m jaxvqa.main --config=configs/rwsan.py --help          what this config is, and all its fields

Modes
  --mode=train     train to config.total, from the newest checkpoint in --workdir if there is one (default)
  --mode=eval      run config.evals on the newest checkpoint in --workdir
  --mode=predict   predict --split, and write predictions/*.jsonl and the file that the data set's server takes
  --mode=compile   compile the training step for config.compile.target without that hardware; print memory, flops and
                   collectives

Options
  --config=FILE[:VARIANT]     a Python file with get_config(arg), or from any folder the name of one of the package's own, as
                              in rwsan:small; eval and predict can do without: the checkpoint has it
  --config.FIELD=VALUE        changes one field, as in --config.optim.lr=3e-4
  --workdir=DIR               where checkpoints, metrics and the report go; default: a dated folder under runs/
  --split=SPLIT               what --mode=predict answers
  --distributed               join the other processes of this job first (SLURM, OpenMPI, GKE, TPU pods, or
                              JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID): launch/README.md

The same command goes on with a run that was stopped, at the step where it was. Exit codes: 0 done; 2 a mistake in
config, data, checkpoint or command; 3 the loss is not finite; 74 the disk is full; 75 stopped by a signal after saving
(start again); 1 a bug.
"""

import argparse
import datetime
import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxvqa import compiling, configs, distributed, evaluate, fields, logs, train
from jaxvqa.ensembles.evaluation import evaluate as ensemble
from jaxvqa.errors import ConfigError, UserError, choose, nearest, run_command
from jaxvqa.inputs import user_path
from jaxvqa.logs import log
from jaxvqa.runs import Run, said_of

MODES = ("train", "eval", "predict", "compile")
CACHE_VARIABLE, DEFAULT_CACHE = "JAX_COMPILATION_CACHE_DIR", "~/.cache/jaxvqa/xla"
OPTIONS = ("config", "workdir", "mode", "split", "distributed", "help")


def main(argv: Sequence[str]) -> int:
    """Runs the program with the given arguments (without the program's name) and returns its exit code."""
    return run_command("jaxvqa", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, changes = _parse(argv)
    if args.help:
        print(__doc__)
        if args.config:
            _describe_config(args.config)
        return
    with distributed.job(args.distributed):
        _in_job(args, changes)


def _in_job(args: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> None:
    logs.setup()
    config = configs.load(args.config) if args.config else Run.open(args.workdir).config
    configs.override(config, changes)
    if "members" in config and args.mode in ("train", "compile"):
        raise ConfigError(f"{args.config} is an ensemble of runs: nothing to {args.mode}. Add --mode=eval or predict.")
    fields.final(config, training=args.mode in ("train", "compile"))
    use_compilation_cache(config.compilation_cache)
    if args.mode == "compile":
        log.info("compiling the training step for %s …", config.compile.target)
        print(compiling.report(config))
        return
    workdir = args.workdir or _fresh_workdir(config.name)
    if args.mode == "train":
        log.info("work directory: %s", workdir)
        train.train(config, workdir, _command(args, changes))
        if config.report and jax.process_index() == 0:
            _write_report(workdir)
        return
    split = args.split if args.mode == "predict" else ""
    if "members" in config:
        values = ensemble(config, workdir, split, _command(args, changes))
    else:
        values = evaluate.evaluate(config, workdir, split)
    if jax.process_index() == 0:
        print("".join(f"{name:44s} {value:8.2f}\n" for name, value in values.items()), end="")
        print(f"predictions: {workdir / 'predictions'}")
        if "members" not in config and (random := Run(workdir, config).untrained):
            print(said_of(random))


def _command(args: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> str:
    """What was typed, but for --workdir; empty where the config was not, but is that of the work directory."""
    mode = [] if args.mode == "train" else [f"--mode={args.mode}", *([f"--split={args.split}"] if args.split else [])]
    words = [*mode, *(f"--config.{name}={value}" for name, value in changes), *["--distributed"] * args.distributed]
    return shlex.join(["python", "-m", "jaxvqa.main", f"--config={args.config}", *words]) if args.config else ""


def _write_report(workdir: Path) -> None:
    log.info("writing the report …")
    from jaxvqa.report import page  # after training: it brings matplotlib, which no first step should wait for

    try:
        log.info("report: %s", page.write(workdir))
    except UserError as error:
        # The run itself is done and saved.
        log.warning("no report: %s", error)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    parser = argparse.ArgumentParser(prog="jaxvqa", add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("config", "split"):
        parser.add_argument(f"--{option}", default="")
    parser.add_argument("--workdir", type=user_path)
    parser.add_argument("--mode", default="train")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    try:
        args, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}. See --help.") from error
    changes, faults = [], []
    for word in rest:
        name, equals, value = word.partition("=")
        if name.startswith("--config.") and equals:
            changes.append((name.removeprefix("--config."), value))
        elif name.startswith("--config."):
            faults.append(f"{word}: write {name}=VALUE")
        else:
            faults.append(f"{word}: there is no such option.{nearest(name.lstrip('-'), OPTIONS)}")
    given = [word.partition("=")[0] for word in argv if word.startswith("--")]
    faults += [f"{name}: given {given.count(name)} times" for name in dict.fromkeys(given) if given.count(name) > 1]
    if args.mode not in MODES:
        faults.append(f"--mode={args.mode}{choose(args.mode, MODES)}")
    if not args.help and not args.config and args.mode in ("train", "compile"):
        faults.append("--config is missing, as in --config=configs/rwsan.py")
    if args.distributed and args.mode == "train" and not args.help and not args.workdir:
        faults.append("--distributed needs --workdir: a folder that all processes reach")
    if not args.help and args.mode in ("eval", "predict") and not args.workdir:
        faults.append(f"--mode={args.mode} needs --workdir: the folder of the run to read")
    if not args.help and args.mode == "predict" and not args.split:
        faults.append("--mode=predict needs --split: which questions to answer, as in --split=test")
    if faults:
        raise ConfigError("The command cannot be run:\n  " + "\n  ".join(faults) + "\nSee --help.")
    return args, changes


def _describe_config(argument: str) -> None:
    print(f"\n{argument}\n\n{configs.describe(argument)}\n\nFields\n")
    config = configs.load(argument)
    for name, value in configs.settable(config).items():
        print(f"  --config.{name}={value!r}\n      {fields.meaning(config, name)}")


def _fresh_workdir(name: str) -> Path:
    return Path(f"runs/{datetime.datetime.now():%Y-%m-%d_%H%M%S}_{name}")


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs between runs. A folder that others can write to would let them run code here.

    Args:
      folder: config.compilation_cache; JAX_COMPILATION_CACHE_DIR in the environment wins. The default is under
        XDG_CACHE_HOME where that is set. Empty for no cache.
    """
    name = "config.compilation_cache"
    if CACHE_VARIABLE in os.environ:
        name, folder = CACHE_VARIABLE, os.environ[CACHE_VARIABLE]
    elif folder == DEFAULT_CACHE and os.environ.get("XDG_CACHE_HOME", "").startswith("/"):
        folder = folder.replace("~/.cache", os.environ["XDG_CACHE_HOME"])
    if not folder:
        return
    if "://" not in folder:  # JAX itself opens gs://…
        path = user_path(folder)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"{name} = {folder}: others can write to that folder, and compiled programs are code. "
                f"Use a folder of your own (chmod 700 {path}), or an empty text for no cache."
            )
        folder = str(path)
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
