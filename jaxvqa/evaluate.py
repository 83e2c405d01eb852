"""Evaluation: of the checkpoint of a run, and what a training evaluates with."""

from collections.abc import Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxvqa import configs, sharding
from jaxvqa.data.batches import Readers
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import ConfigError, UserError
from jaxvqa.evaluators import WITHOUT_PREDICTIONS, Evaluator, evaluator
from jaxvqa.evaluators.context import Context
from jaxvqa.logs import log
from jaxvqa.metrics.score import Score, as_row
from jaxvqa.runs import Run
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task
from jaxvqa.types import Config


def evaluate(config: Config, workdir: Path, split: str = "") -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir`: all of `config.evals`, or just `split` under its own name.

    Returns:
      All values by name; predictions are written as during training.
    """
    run = Run(workdir, config, sharding.make_mesh(config.mesh))
    with jax.set_mesh(run.mesh):
        log.info("restoring the checkpoint of step %s …", run.step)
        results: dict[str, float] = {}
        evals = make_evaluators(for_split(run.final, split), run.task, run.data, run.mesh, workdir)
        for name, each in evals.items():
            results |= run_evaluator(name, each, run.state)
    return results


def run_evaluator(name: str, each: Evaluator, state: TrainState) -> dict[str, float]:
    """The values of an evaluation of a state; what goes wrong in it says so."""
    where = f"The evaluation {name!r} at step {int(state.step)}"
    try:
        return as_row(each.run(state))
    except UserError as error:
        raise type(error)(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"{where} failed.")
        raise


def for_split(config: Config, split: str) -> Config:
    """The config with one evaluation, of `split` and named so; as it is where `split` is empty.

    It is like the config's own of that name where that is of the split, else like the main one.

    Raises:
      ConfigError: there is no main evaluation, or it writes no predictions.
    """
    if not split:
        return config
    name = split if split in config.evals and config.evals[split].split == split else configs.main_evaluation(config)
    row = config.evals[name]
    if row.type in WITHOUT_PREDICTIONS:
        raise ConfigError(
            f"config.evals.{name}, by which {split!r} would be predicted, is of the type {row.type!r}, which writes no "
            "predictions. Name one that does with --config.main_eval=NAME; there is "
            + (", ".join(n for n, r in config.evals.items() if r.type not in WITHOUT_PREDICTIONS) or "none")
            + "."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.main_eval = split
        config.evals = Config({split: row.to_dict() | {"split": split}})
    return config


def make_evaluators(config: Config, task: Task, data: DataSet, mesh: Mesh, workdir: Path) -> dict[str, Evaluator]:
    """The evaluators of `config.evals`, by name."""
    readers = Readers(**config.data.readers)
    return {
        name: evaluator(row.type)(Context(name, row, task, data.split, mesh, workdir, readers))
        for name, row in config.evals.items()
    }


def headline(name: str, values: Mapping[str, float]) -> str:
    """One line about an evaluation: the first of its values."""
    if not values:
        return f"{name}: predictions written"
    first = next(iter(values))
    measure = first.rpartition("/")[2]
    score = Score.of_row(values, first)
    assert score
    if score.low is None:  # a loss, which is not a share
        return f"{name}: {measure} {score.value:.4g}"
    return f"{name}: {measure} {score.value:.2f} % (95 % interval {score.low:.2f} to {score.high:.2f})"
