"""The one training loop, for every system: build, restore, step, evaluate, save."""

import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from jaxvqa import checkpoints, configs, distributed, fields, logs, models, optim, sharding
from jaxvqa import state as states
from jaxvqa.best import Best, chosen_by_test
from jaxvqa.data import pipeline, sources
from jaxvqa.errors import CheckpointError, ConfigError, DivergedError, PreemptedError, os_errors
from jaxvqa.evaluators import Evaluator, evaluator_class, writes_predictions
from jaxvqa.logs import log
from jaxvqa.state import TrainState
from jaxvqa.tasks import Metrics, Task, abstract_batch, make_task, task_with_assets

StepFn = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]


# --- one step: pure functions ------------------------------------------------------------------------------------------


def make_train_step(
    config: ml_collections.ConfigDict,
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Callable[..., Any],
    steps_per_epoch: int,
) -> StepFn:
    """Returns the pure function (state, batch) -> (state, metrics) of one optimiser step.

    The batch is cut into `config.microbatches` parts whose gradients are added. `config.optim.loss` says what is
    descended: the `sum` over the examples, or their `mean`.
    """
    n = config.microbatches

    def gradients(params: Any, extra: Any, batch: Any, key: Any, epoch: Any) -> tuple[Any, Metrics, Any]:
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(("dropout", "mixup"))}

        def loss(params: Any) -> Any:
            if config.optim.freeze:
                params = optim.without_frozen_gradients(params, config.optim.freeze)
            return task.loss(params, extra, batch, rngs, train=True, epoch=epoch)

        (_, (metrics, extra)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, metrics, extra

    def accumulated(params: Any, extra: Any, batch: Any, key: Any, epoch: Any) -> tuple[Any, Metrics, Any]:
        # Microbatch i takes every n-th example from i on, not a run of them: then each device cuts up the examples
        # that it already holds, and nothing moves between devices. The sum of the gradients is the same.
        parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, part_and_index: Any) -> tuple[Any, None]:
            grads, metrics, extra = carry
            part, i = part_and_index
            more_grads, more_metrics, extra = gradients(params, extra, part, jax.random.fold_in(key, i), epoch)
            return (*jax.tree.map(jnp.add, (grads, metrics), (more_grads, more_metrics)), extra), None

        shapes = jax.eval_shape(gradients, params, extra, jax.tree.map(lambda x: x[0], parts), key, epoch)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
        return jax.lax.scan(body, (*zeros, extra), (parts, jnp.arange(n)))[0]

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(states.key_for(config.seed, "step"), state.step)
        epoch = state.step / steps_per_epoch
        grads, metrics, extra = (gradients if n == 1 else accumulated)(state.params, state.extra, batch, key, epoch)
        if config.optim.loss == "mean":
            grads = jax.tree.map(lambda g: g / metrics["loss"][1], grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        rate = schedule(state.step)
        params = jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), state.params, updates)
        ema = state.ema
        if config.optim.ema:
            ema = states.update_ema(ema, config.optim.ema, params, extra)
        one = jnp.ones(())
        metrics = metrics | {"learning_rate": (rate, one), "gradient_norm": (optax.tree.norm(grads), one)}
        return TrainState(step=state.step + 1, params=params, extra=extra, opt_state=opt_state, ema=ema), metrics

    return train_step


@dataclass(frozen=True)
class Program:
    """The compiled parts of a run: how to make a state, and how to step it.

    Attributes:
      mesh: the devices.
      shapes: the state as ShapeDtypeStructs that carry their shardings.
      init: makes a fresh state in place, sharded.
      step: one training step; the state given to it is donated.
    """

    mesh: Mesh
    shapes: TrainState
    init: Callable[[], TrainState]
    step: Any


def make_program(
    config: ml_collections.ConfigDict, task: Task, mesh: Mesh, *, data_size: int, total_steps: int
) -> Program:
    """Builds the jitted functions of a run on a mesh. Nothing is compiled or allocated yet."""
    sharding.check_batch_size(config.batch_size, config.microbatches, mesh, "config.batch_size")

    def variables(key: Any) -> Mapping[str, Any]:
        fresh = dict(task.init(key))
        if config.optim.freeze and config.optim.frozen_dtype != "float32":
            dtype = models.DTYPES[config.optim.frozen_dtype]
            fresh["params"] = optim.shorten_frozen(fresh["params"], config.optim.freeze, dtype)
        return fresh

    # Inside jit of its own, so that the three uses of the initialisation below trace the model once.
    init = jax.jit(variables)
    params = jax.eval_shape(init, jax.eval_shape(lambda: states.key_for(config.seed, "params")))["params"]
    steps_per_epoch = data_size // config.batch_size
    optimizer = optim.make_optimizer(config.optim, params, steps_per_epoch=steps_per_epoch)
    fresh = states.create(init, optimizer, seed=config.seed, with_ema=config.optim.ema > 0)
    shapes = jax.eval_shape(fresh)
    placed = sharding.state_shardings(config.sharding.params, shapes, mesh)
    schedule = optim.make_schedule(
        config.optim, data_size=data_size, batch_size=config.batch_size, total_steps=total_steps
    )
    step = jax.jit(
        make_train_step(config, task, optimizer, schedule, steps_per_epoch),
        in_shardings=(placed, sharding.batch_sharding(mesh)),
        out_shardings=(placed, None),
        donate_argnums=0,
    )
    shapes = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    return Program(mesh, shapes, jax.jit(fresh, out_shardings=placed), step)


# --- the run -----------------------------------------------------------------------------------------------------------


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
    log.info("opening %s …", config.data.questions)
    source = sources.open_vqa(config.data, config.data.train_split)
    if config.data.answers.rule == "soft":  # by `counts`, one annotator has a target
        sources.check_annotators(source, "soft")
    order = pipeline.TrainOrder(
        len(source),
        config.batch_size,
        config.seed,
        sources.curriculum_stages(config),
        sources.questions_together(config, source),
    )
    position = {"questions": config.data.questions, "split": config.data.train_split, "size": len(source)}
    last = saved.latest_step()
    if last is None:
        log.info("reading vocabulary and answers from %s …", config.data.questions)
        task = make_task(config, lambda split: sources.open_vqa(config.data, split))
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
    readers = pipeline.Readers(**config.data.readers)

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
                    state = checkpoints.init_from(name, row.workdir, state, row.table)
                    log.info("init_from.%s: parameters taken from %s", name, row.workdir)
            for name, without in checkpoints.missing_starts(config.init_from.to_dict()).items():
                log.warning("init_from.%s is not given: %s", name, without)
        first_step = int(state.step)
        n_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        log.info(
            "%s: %s parameters, %d examples, %d steps of %d", config.name, f"{n_params:,}", len(source), total_steps,
            config.batch_size,
        )  # fmt: skip
        evals = make_evaluators(config, task, mesh, workdir)
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
                    values = dict(evals[name].run(state))
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
        load = pipeline.LoadBatch(
            source, order, task.transforms(train=True), jax.process_index(), jax.process_count(), config.seed
        )
        host = cleanup.enter_context(
            contextlib.closing(pipeline.batches(load, first_step, end, readers))  # type: ignore[type-var]
        )
        batches = pipeline.to_device(host, sharding.batch_sharding(mesh), tuple(task.batch_keys))
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
                    results |= dict(evaluator.run(state))
    return results


def evaluate(config: ml_collections.ConfigDict, workdir: Path, split: str = "") -> dict[str, float]:
    """Evaluates the newest checkpoint in `workdir`: all of `config.evals`, or just `split` under its own name.

    Returns:
      All values by name; predictions are written as during training.
    """
    config = fields.final(config)
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    assets, _ = saved.read_json()
    task = task_with_assets(config, assets)
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        log.info("restoring the checkpoint of step %s …", saved.latest_step())
        state = restore_for_prediction(saved, config, task, mesh)
        results: dict[str, float] = {}
        for evaluator in make_evaluators(for_split(config, split), task, mesh, workdir).values():
            results |= dict(evaluator.run(state))
    saved.close()
    return results


def for_split(config: ml_collections.ConfigDict, split: str) -> ml_collections.ConfigDict:
    """The config with one evaluation, of `split` and named so; as it is where `split` is empty.

    It is like the config's own of that name where that is of the split, else like the main one.

    Raises:
      ConfigError: there is no main evaluation, or it writes no predictions.
    """
    if not split:
        return config
    name = split if split in config.evals and config.evals[split].split == split else configs.main_evaluation(config)
    row = config.evals[name]
    if not writes_predictions(row.type):
        raise ConfigError(
            f"config.evals.{name}, by which {split!r} would be predicted, is of the type {row.type!r}, which writes no "
            "predictions. Name one that does with --config.main_eval=NAME; there is "
            + (", ".join(n for n, r in config.evals.items() if writes_predictions(r.type)) or "none")
            + "."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.main_eval = split
        config.evals = ml_collections.ConfigDict({split: row.to_dict() | {"split": split}})
    return config


def restore_for_prediction(
    saved: checkpoints.Checkpoints, config: ml_collections.ConfigDict, task: Task, mesh: Mesh
) -> TrainState:
    """Restores what predictions need of the newest checkpoint: parameters, other collections, averages; no optimiser."""
    step = saved.latest_step()
    if step is None:
        raise CheckpointError(f"{saved.folder} holds no complete checkpoint to predict from.")
    with_ema = saved.model_shapes(step).get("ema") is not None
    shapes = jax.eval_shape(states.create(task.init, optax.identity(), seed=config.seed, with_ema=with_ema))
    placed = sharding.state_shardings(config.sharding.params, shapes, mesh)
    shapes = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    model = saved.restore_model(checkpoints.model_item(shapes), step)
    return TrainState(step=jnp.asarray(step, jnp.int32), opt_state=optax.EmptyState(), **model)


def make_evaluators(config: ml_collections.ConfigDict, task: Task, mesh: Mesh, workdir: Path) -> dict[str, Evaluator]:
    """The evaluators of `config.evals`, by name."""
    return {
        name: evaluator_class(row.type)(
            name,
            row,
            task=task,
            open_source=functools.partial(sources.open_vqa, config.data),
            mesh=mesh,
            workdir=workdir,
            readers=pipeline.Readers(**config.data.readers),
        )
        for name, row in config.evals.items()
    }


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


def headline(name: str, values: Mapping[str, float]) -> str:
    """One line about an evaluation: the first of its values."""
    if not values:
        return f"{name}: predictions written"
    first = next(iter(values))
    measure = first.rpartition("/")[2]
    if f"{first}/low" not in values:  # a loss, which is no share
        return f"{name}: {measure} {values[first]:.4g}"
    low, high = values[f"{first}/low"], values[f"{first}/high"]
    return f"{name}: {measure} {values[first]:.2f} % (95 % interval {low:.2f} to {high:.2f})"


# --- what the loop leans on ----------------------------------------------------------------------------------------------


_NEWEST = 20
"""Steps whose averages a bar shows."""


class Meter:
    """Averages of the metrics since the last flush, speed, and the share of time spent waiting for data.

    Metrics stay on the device until a flush, so that the host runs ahead of the device in between.
    """

    def __init__(self, batch_size: int):
        """Args: examples a step."""
        self._batch_size = batch_size
        self._pending: list[tuple[int, Metrics]] = []
        self._started = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the speed."""
        start = time.perf_counter()
        yield
        self._started += time.perf_counter() - start

    def add(self, step: int, metrics: Metrics) -> None:
        """Keeps a step's metrics, still on the device."""
        self._pending.append((step, metrics))

    def flush(self, last_good: int | None) -> dict[str, float]:
        """Fetches and averages what was added.

        Raises:
          DivergedError: names the first step and metric that is not finite.
        """
        fetched = jax.device_get(self._pending)
        for step, metrics in fetched:
            bad = {name: float(total) for name, (total, _) in metrics.items() if not np.isfinite(total)}
            if bad:
                raise DivergedError(
                    f"Step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}. Training stopped; "
                    f"{checkpoints.kept(last_good)}. "
                    "Lower config.optim.lr, set config.optim.clip_norm, or look at the data of that step."
                )
        values = self._averages([metrics for _, metrics in fetched])
        self._pending, self._started, self._waited = [], time.perf_counter(), 0.0
        return values

    def latest(self) -> dict[str, float]:
        """Averages as those of `flush`, of the newest steps that are done: nothing is waited for. Empty where none is."""
        done = [metrics for _, metrics in self._pending if all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))]
        return self._averages(jax.device_get(done[-_NEWEST:])) if done else {}

    def _averages(self, fetched: list[Any]) -> dict[str, float]:
        sums = {
            name: [np.sum(column) for column in zip(*(m[name] for m in fetched), strict=True)] for name in fetched[0]
        }
        seconds = max(time.perf_counter() - self._started, 1e-9)
        values = {f"train/{name}": float(total / max(count, 1e-9)) for name, (total, count) in sums.items()}
        values["train/examples_per_second"] = self._batch_size * len(self._pending) / seconds
        values["train/data_wait"] = self._waited / seconds
        return values


class StopSignal:
    """Notices a request to stop (SIGTERM, or Ctrl-C once), at the same step in every process."""

    def __init__(self) -> None:
        self._asked = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        alone = jax.process_count() == 1
        # With several processes JAX's own coordination notices SIGTERM, so that all stop at one step.
        for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
            with contextlib.suppress(ValueError):  # outside the main thread, signals are not ours to handle
                self._handlers[number] = signal.signal(number, self._ask if alone else self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("stopping after this step …")

    def _pass_on(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second ends at once, even where Python waits for the others
        log.warning("stopping after one of the next steps, as soon as all processes know …")
        os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Profiler:
    """Records the steps "first:last" into WORKDIR/profile, to be opened in TensorBoard or Perfetto."""

    def __init__(self, steps: str, workdir: Path, first_step: int):
        """Args: `config.profile_steps` ("" for none), where to write, and the step that the run starts from."""
        self._folder, self._running = workdir / "profile", False
        first, last = (int(n) for n in steps.split(":")) if steps else (0, -1)
        self._first, self._last = max(first, first_step + 1), last

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("profile written to %s", self._folder)

    def before(self, step: int) -> None:
        """Starts or stops the recording before a step."""
        if self._running and step > self._last:
            self._stop()
        if not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True


def abstract_step_arguments(config: ml_collections.ConfigDict, task: Task, program: Program) -> tuple[Any, Any]:
    """The (state, batch) of a step as ShapeDtypeStructs with shardings: to trace or compile it without any data."""
    split = sharding.batch_sharding(program.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=split)
        for key, spec in abstract_batch(task, config.batch_size).items()
    }
    return program.shapes, batch
