"""The one training loop, for every system: build, restore, step, evaluate, save."""

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxvqa import checkpoints, configs, distributed, fields, init_from, logs, optim, sharding
from jaxvqa.best import Best, chosen_by_test
from jaxvqa.data.batches import LoadBatch, Readers, read_ahead, to_device
from jaxvqa.data.data_set import DataSet, Split, check_annotators
from jaxvqa.data.order import TrainOrder, train_order
from jaxvqa.errors import PreemptedError
from jaxvqa.evaluate import headline, make_evaluators, run_evaluator
from jaxvqa.evaluators import Evaluator
from jaxvqa.logs import log
from jaxvqa.monitor import Meter, Profiler, StopSignal
from jaxvqa.runs import Run, said_of, untrained
from jaxvqa.state import TrainState
from jaxvqa.step import Program, make_program
from jaxvqa.tasks import Task, make_task
from jaxvqa.types import Config


def train(config: Config, workdir: Path, command: str = "") -> dict[str, float]:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `config.total`.

    Args:
      config: what to train.
      workdir: where; a run that is there goes on if it has the same config and data.
      command: what a user typed to get this, without --workdir, to be kept in the work directory.

    Returns:
      The last values of all evaluations, by name.

    Raises:
      PreemptedError: a signal came; the state is saved, the same command goes on from there.
      DivergedError: a metric or the state is not finite; the last checkpoint before it is kept.
      ConfigError, DataError, CheckpointError, StorageError: see their messages.
    """
    began = time.perf_counter()
    asked, config = config, fields.final(config, training=True)  # what is saved has ~, which others read as theirs
    _check_main_and_best(config)
    run = Run.start(workdir, asked, command)
    mesh = sharding.make_mesh(config.mesh)
    log.info("devices: %d x %s, mesh %s", mesh.size, mesh.devices.flat[0].device_kind, dict(mesh.shape))
    data = TrainingData.open(config)
    saved = checkpoints.Checkpoints(workdir, keep=config.checkpoint.keep)
    last = saved.latest_step()
    if last is None:
        log.info("reading vocabulary and answers from %s …", config.data.examples)
        task = make_task(config, data.data_set)
    else:
        run.check_same_data(data.position)
        task = run.task
    total = data.steps(config.total)
    every = {"log": data.steps(config.log_every, total), "checkpoint": data.steps(config.checkpoint.every, total)}

    with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
        cleanup.callback(saved.close)  # however the run ends, a save that was begun is finished
        program = make_program(config, task, mesh, data_size=data.order.size, total_steps=total)
        state, fresh = _first_state(config, task, program, saved, run)
        log.info("%s", sharding.plan(config.sharding, program.shapes, task.kinds))
        first = int(state.step)
        if random := untrained(fresh, state.params, config.optim, total):
            log.warning("%s", said_of(random))
        log.info(
            "%s: %s parameters, %d examples, %d steps of %d",
            config.name,
            f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}",
            len(data.source),
            total,
            config.batch_size,
        )
        evals = make_evaluators(config, task, data.data_set, mesh, workdir)
        writer = logs.MetricWriter(workdir, first)
        cleanup.callback(writer.close)
        meter = Meter(config.batch_size)
        rows = logs.read_metrics(workdir) if last is not None else []
        best = Best.of(config, (row for row in rows if row["step"] <= first))
        saver = Saver(run, saved, task, data.position, mesh, fresh)
        evaluations = Evaluations(
            evals, {name: data.steps(config.evals[name].every, total) for name in evals}, best, saver, meter, writer
        )
        evaluations.catch_up(state, rows, total)
        end = first if best.is_enough else total

        batches = cleanup.enter_context(_batches(config, task, data, mesh, first, end))
        stop = cleanup.enter_context(StopSignal())
        profiler = cleanup.enter_context(Profiler(config.profile_steps, workdir, first))
        words = "compiling the training step" if first < end else ""
        bar = cleanup.enter_context(logs.Progress("step", total, first, words))
        for step in range(first + 1, end + 1):
            profiler.before(step)
            with meter.waiting():
                batch, _ = next(batches)
            state, metrics = program.step(state, batch)
            if step == first + 1:
                jax.block_until_ready(metrics)
                log.info("first step done %.1f s after the start", time.perf_counter() - began)
            meter.add(step, metrics)
            bar.update(step, logs.training_words(latest) if bar.is_due and (latest := meter.latest()) else None)
            ends = step == total
            stopping = stop.requested(step)
            due = list(evals) if ends else evaluations.due(step)
            saves = step % every["checkpoint"] == 0 or ends or stopping
            if step % every["log"] == 0 or saves or (due and best.metric):
                values = meter.flush(saved.latest_step())  # raises before a bad state could be saved
                writer.write(step, values)
                bar.update(step, logs.training_words(values), line=True)
            if saves:
                saver.save(state)
            elif due:
                checkpoints.check_finite(state, saved.latest_step())
            evaluations.run(state, due)
            if best.is_enough:
                log.info(
                    "%d evaluations without a better %s than %.4g at step %d (%s): the run ends here",
                    best.since, best.metric, best.value, best.step, best.folder(workdir),
                )  # fmt: skip
                saver.save(state)
                evaluations.run(state, [name for name in evals if name not in due])
                break
            if stopping and not ends:
                raise PreemptedError(
                    f"Stopped by a signal at step {step} of {total}; the state is saved in {workdir}. "
                    "Start the same command again to go on."
                )
        if first >= end:
            log.info("this run is finished at step %d; raise config.total to go on", first)
            evaluations.complete(state, rows)
    return evaluations.results


def _check_main_and_best(config: Config) -> None:
    if config.evals:
        configs.main_evaluation(config)
    if split := chosen_by_test(config.to_dict()):
        log.warning(
            "config.best.metric is %s, of the split %r: the best state is chosen by the questions that it is tested on, whose "
            "scores are too good then",
            config.best.metric, split,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What is trained on.

    Attributes:
      data_set: where it is from.
      source: the examples.
      order: which of them each step's batch has.
      position: what of it has to stay for a run to go on: "examples", "split", "size".
    """

    data_set: DataSet
    source: Split
    order: TrainOrder
    position: Mapping[str, Any]

    @classmethod
    def open(cls, config: Config) -> "TrainingData":
        """Opens `config.data.train_split`."""
        log.info("opening %s …", config.data.examples)
        data_set = DataSet(config.data)
        source = data_set.split(config.data.train_split)
        if "answers" in config.data and config.data.answers.rule == "soft":  # by `counts`, one annotator has a target
            check_annotators(source, "soft")
        position = {"examples": config.data.examples, "split": config.data.train_split, "size": len(source)}
        return cls(data_set, source, train_order(config, data_set), position)

    def steps(self, duration: str, total: int | None = None) -> int:
        """A duration of the config in steps; one of the `total` steps is at least a step."""
        sizes = {"data_size": self.order.size, "batch_size": self.order.batch_size}
        steps = optim.in_steps(duration, **sizes, total_steps=total)
        return steps if total is None else max(1, steps)


def _first_state(
    config: Config, task: Task, program: Program, saved: checkpoints.Checkpoints, run: Run
) -> tuple[TrainState, list[str]]:
    """The run's own newest state, else a fresh one with what `config.init_from` takes from other runs.

    Returns:
      The state, and which parameters were random numbers when the run began; see `init_from.started`.
    """
    last = saved.latest_step()
    if last is not None:
        log.info("restoring the checkpoint of step %d …", last)
        state = saved.restore(program.shapes, last)
        log.info("going on from step %d in %s", last, run.folder)
        return state, run.meta.get("fresh", [])
    log.info("making the parameters …")
    return init_from.started(config.init_from, program.init(), program.mesh, task.kinds, task.starts)


@contextlib.contextmanager
def _batches(config: Config, task: Task, data: TrainingData, mesh: Mesh, first: int, end: int) -> Iterator[Any]:
    """The batches of the steps after `first` up to `end`, on the devices."""
    here, processes = jax.process_index(), jax.process_count()
    load = LoadBatch(data.source, data.order, task.transforms(train=True), here, processes, config.seed)
    read = read_ahead(load, first, end, Readers(**config.data.readers))
    with contextlib.closing(read) as host:  # type: ignore[type-var]
        yield to_device(host, sharding.batch_sharding(mesh), tuple(task.batch_keys))


@dataclasses.dataclass(frozen=True)
class Saver:
    """Saves the states of a run, from every process."""

    run: Run
    saved: checkpoints.Checkpoints
    task: Task
    position: Mapping[str, Any]
    mesh: Mesh
    fresh: Sequence[str]

    def save(self, state: TrainState, run: Run | None = None, saved: checkpoints.Checkpoints | None = None) -> None:
        """Saves a state in the run's folder, or in another."""
        distributed.barrier(f"checkpoint of step {int(state.step)}")
        device = f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}"
        notes = {"device": device, "fresh": list(self.fresh)}
        (run or self.run).save(saved or self.saved, state, self.task.assets, self.position, **notes)

    def save_best(self, state: TrainState) -> None:
        """Saves a state in a folder of its own, and in the run's too, so that no run goes on from before its best."""
        self.save(state)
        self.saved.wait()
        best = Run.start(Best.folder(self.run.folder), self.run.config, self.run.command)
        with contextlib.closing(checkpoints.Checkpoints(best.folder, keep=1)) as saved:
            self.save(state, best, saved)


@dataclasses.dataclass
class Evaluations:
    """The evaluations of a training: their values are written down and logged, and the best state is kept.

    Attributes:
      evals: the evaluators by name.
      every: after how many steps each is due.
      best: follows one of the values.
      saver: keeps the best state.
      meter: leaves their time out of the training's speed.
      writer: writes down the values.
      results: the last value of each metric.
    """

    evals: Mapping[str, Evaluator]
    every: Mapping[str, int]
    best: Best
    saver: Saver
    meter: Meter
    writer: logs.MetricWriter
    results: dict[str, float] = dataclasses.field(default_factory=dict)

    def due(self, step: int) -> list[str]:
        """Which evaluations follow a step."""
        return [name for name in self.evals if step % self.every[name] == 0]

    def run(self, state: TrainState, names: Collection[str]) -> None:
        """Evaluates a state."""
        step = int(state.step) if names else 0
        for name in names:
            distributed.barrier(f"evaluation {name} at step {step}")
            with self.meter.paused():
                values = run_evaluator(name, self.evals[name], state)
            self.best.check(name, values)
            if self.best.add(step, values):
                self.saver.save_best(state)  # before the value is written down, which says that it is there
            self.writer.write(step, values)
            self.results.update(values)
            log.info("step %d  %s", step, headline(name, values))

    def catch_up(self, state: TrainState, rows: Sequence[Mapping[str, Any]], total: int) -> None:
        """Runs what a run that was cut off after saving a state has not evaluated any more; `rows` of metrics.jsonl."""
        if not rows:
            return
        step = int(state.step)
        known = {key.partition("/")[0] for row in rows if row["step"] == step for key in row}
        due = self.due(step)
        self.run(state, [name for name in due if name not in known])
        if self.best.is_enough or step >= total:
            self.run(state, [name for name in self.evals if name not in known and name not in due])

    def complete(self, state: TrainState, rows: Sequence[Mapping[str, Any]]) -> None:
        """Gives `results` the values of a state that it lacks: as `rows` of metrics.jsonl have them, else evaluated anew."""
        step = int(state.step)
        for name, evaluator in self.evals.items():
            own = [{key: row[key] for key in row if key.startswith(f"{name}/")} for row in rows if row["step"] == step]
            if not any(key.startswith(f"{name}/") for key in self.results):
                self.results |= next(filter(None, reversed(own)), None) or run_evaluator(name, evaluator, state)
