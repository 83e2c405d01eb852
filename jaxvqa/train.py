"""The one training loop, for every system: build, restore, step, evaluate, save."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxvqa import checkpoints, configs, distributed, fields, logs, optim, sharding
from jaxvqa.best import Best, chosen_by_test
from jaxvqa.data.batches import LoadBatch, Readers, read_ahead, to_device
from jaxvqa.data.data_set import DataSet, check_annotators
from jaxvqa.data.order import train_order
from jaxvqa.errors import CheckpointError, PreemptedError, os_errors
from jaxvqa.evaluate import headline, make_evaluators
from jaxvqa.logs import log
from jaxvqa.metrics.score import as_row
from jaxvqa.monitor import Meter, Profiler, StopSignal
from jaxvqa.step import make_program
from jaxvqa.tasks import make_task, task_with_assets


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `config.total`.

    Returns:
      The last values of all evaluations, by name.

    Raises:
      PreemptedError: a signal came; the state is saved, the same command goes on from there.
      DivergedError: a metric or the state is not finite; the last checkpoint before it is kept.
      ConfigError, DataError, CheckpointError, StorageError: see their messages.
    """
    # ---- 1. the work directory ----
    began = time.perf_counter()
    asked, config = config, fields.final(config, training=True)  # what is saved has ~, which others read as theirs
    checkpoints.check_same_config(workdir, asked)
    if config.evals:
        configs.main_evaluation(config)
    if split := chosen_by_test(config.to_dict()):
        log.warning(
            "config.best.metric is %s, of the split %r: the best state is chosen by the questions that it is tested on, whose "
            "scores are too good then",
            config.best.metric, split,
        )  # fmt: skip
    start_workdir(workdir, asked)
    saved = checkpoints.Checkpoints(workdir, keep=config.checkpoint.keep)

    # ---- 2. devices, data, task ----
    mesh = sharding.make_mesh(config.mesh)
    log.info("devices: %d x %s, mesh %s", mesh.size, mesh.devices.flat[0].device_kind, dict(mesh.shape))
    log.info("opening %s …", config.data.examples)
    data = DataSet(config.data)
    source = data.split(config.data.train_split)
    if "answers" in config.data and config.data.answers.rule == "soft":  # by `counts`, one annotator has a target
        check_annotators(source, "soft")
    order = train_order(config, data)
    position = {"examples": config.data.examples, "split": config.data.train_split, "size": len(source)}
    last = saved.latest_step()
    if last is None:
        log.info("reading vocabulary and answers from %s …", config.data.examples)
        task = make_task(config, data)
    else:
        assets, meta = saved.read_json(last)
        check_same_data(position, meta["data"], workdir)
        task = task_with_assets(config, assets)
    sizes = {"data_size": len(source), "batch_size": config.batch_size}
    total_steps = optim.in_steps(config.total, **sizes)
    every = {
        name: max(1, optim.in_steps(text, **sizes, total_steps=total_steps))
        for name, text in {"log": config.log_every, "checkpoint": config.checkpoint.every}.items()
    }
    readers = Readers(**config.data.readers)

    with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
        cleanup.callback(saved.close)  # however the run ends, a save that was begun is finished
        # ---- 3. state: own checkpoint, then another run's, then scratch ----
        program = make_program(config, task, mesh, data_size=len(source), total_steps=total_steps)
        if last is not None:
            log.info("restoring the checkpoint of step %d …", last)
            state = saved.restore(program.shapes, last)
            log.info("going on from step %d in %s", last, workdir)
        else:
            log.info("making the parameters …")
            state = program.init()
            for name, row in config.init_from.items():
                if row.workdir:
                    state = checkpoints.init_from(name, row.workdir, state, row.table, task.kinds)
                    log.info("init_from.%s: parameters taken from %s", name, row.workdir)
            for name, without in checkpoints.missing_starts(config.init_from.to_dict()).items():
                log.warning("init_from.%s is not given: %s", name, without)
        log.info("%s", sharding.plan(config.sharding, program.shapes, task.kinds))
        first_step = int(state.step)
        n_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        log.info(
            "%s: %s parameters, %d examples, %d steps of %d", config.name, f"{n_params:,}", len(source), total_steps,
            config.batch_size,
        )  # fmt: skip
        evals = make_evaluators(config, task, data, mesh, workdir)
        eval_every = {
            name: max(1, optim.in_steps(config.evals[name].every, **sizes, total_steps=total_steps)) for name in evals
        }
        writer = logs.MetricWriter(workdir, first_step)
        cleanup.callback(writer.close)
        meter = Meter(config.batch_size)
        results: dict[str, float] = {}
        rows = logs.read_metrics(workdir) if last is not None else []
        best = Best.of(config, (row for row in rows if row["step"] <= first_step))

        def save(into: checkpoints.Checkpoints) -> None:
            distributed.barrier(f"checkpoint of step {int(state.step)}")
            meta = {"config": json.loads(asked.to_json()), "data": position | {"step": int(state.step)}}
            into.save(state, task.assets, meta | {"device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}"})

        def run_evaluations(step: int, names: Iterable[str]) -> None:
            for name in names:
                distributed.barrier(f"evaluation {name} at step {step}")
                with meter.paused():
                    values = as_row(evals[name].run(state))
                best.check(name, values)
                if best.add(step, values):
                    # The run's own state as well, so that it never goes on from before its best one; and both before the
                    # value is written down, which says that they are there.
                    save(saved)
                    saved.wait()
                    start_workdir(best.folder(workdir), asked)
                    with contextlib.closing(checkpoints.Checkpoints(best.folder(workdir), keep=1)) as apart:
                        save(apart)
                writer.write(step, values)
                results.update(values)
                log.info("step %d  %s", step, headline(name, values))

        if rows:  # a run that was cut off may have saved a state, and not evaluated it any more
            known = {key.partition("/")[0] for row in rows if row["step"] == first_step for key in row}
            due = [name for name in evals if first_step % eval_every[name] == 0]
            run_evaluations(first_step, [name for name in due if name not in known])
            if best.is_enough or first_step >= total_steps:
                run_evaluations(first_step, [name for name in evals if name not in known and name not in due])
        end = first_step if best.is_enough else total_steps
        # ---- 4. the loop ----
        load = LoadBatch(
            source, order, task.transforms(train=True), jax.process_index(), jax.process_count(), config.seed
        )
        host = cleanup.enter_context(
            contextlib.closing(read_ahead(load, first_step, end, readers))  # type: ignore[type-var]
        )
        batches = to_device(host, sharding.batch_sharding(mesh), tuple(task.batch_keys))
        stop = cleanup.enter_context(StopSignal())
        profiler = cleanup.enter_context(Profiler(config.profile_steps, workdir, first_step))
        bar = cleanup.enter_context(logs.Progress("step", total_steps, first_step, "compiling the training step"))
        for step in range(first_step + 1, end + 1):
            profiler.before(step)
            with meter.waiting():
                batch, _ = next(batches)
            state, metrics = program.step(state, batch)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                log.info("first step done %.1f s after the start", time.perf_counter() - began)
            meter.add(step, metrics)
            bar.update(step, logs.training_words(latest) if bar.is_due and (latest := meter.latest()) else None)
            ends = step == total_steps
            stopping = stop.requested(step)
            due = [name for name in evals if step % eval_every[name] == 0 or ends]
            saves = step % every["checkpoint"] == 0 or ends or stopping
            if step % every["log"] == 0 or saves or (due and best.metric):
                values = meter.flush(saved.latest_step())  # raises before a bad state could be saved
                writer.write(step, values)
                bar.update(step, logs.training_words(values), line=True)
            if saves:
                save(saved)
            elif due:
                checkpoints.check_finite(state, saved.latest_step())
            run_evaluations(step, due)
            if best.is_enough:
                log.info(
                    "%d evaluations without a better %s than %.4g at step %d (%s): the run ends here",
                    best.since, best.metric, best.value, best.step, best.folder(workdir),
                )  # fmt: skip
                save(saved)
                run_evaluations(step, [name for name in evals if name not in due])
                break
            if stopping and not ends:
                raise PreemptedError(
                    f"Stopped by a signal at step {step} of {total_steps}; the state is saved in {workdir}. "
                    "Start the same command again to go on."
                )
        if first_step >= end:
            log.info("this run is finished at step %d; raise config.total to go on", first_step)
            for name, evaluator in evals.items():
                if not any(key.startswith(f"{name}/") for key in results):
                    results |= as_row(evaluator.run(state))
    return results


def start_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Creates the work directory and notes its config, from process 0."""
    if jax.process_index() == 0:
        with os_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            partial = workdir / "config.json.partial"
            partial.write_text(config.to_json_best_effort(indent=1))
            os.replace(partial, workdir / "config.json")
    distributed.barrier(f"start of {workdir}")


def check_same_data(now: Mapping[str, Any], before: Mapping[str, Any], workdir: Path) -> None:
    """Checks that a run goes on with the data it began with: a position in other data means nothing."""
    # A converted checkpoint knows no data: it has None there.
    changed = [
        f"{key}: was {before[key]!r}, now {now[key]!r}" for key in now if before.get(key) not in (None, now[key])
    ]
    if changed:
        raise CheckpointError(
            f"The training data has changed since the checkpoint in {workdir}:\n  "
            + "\n  ".join(changed)
            + "\nBuild the same data set again, or start in another --workdir (config.init_from takes the parameters)."
        )
