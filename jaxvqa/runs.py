"""A work directory as one object: a run is started in it, gone on with, opened to predict from, and read.

    WORKDIR/
      config.json         the config as it was asked for
      run.json            the command that made the folder
      metrics.jsonl       what was measured (`jaxvqa.logs`)
      predictions/        what evaluations predicted, NAME_STEP.jsonl
      checkpoints/        states, with all that it takes to predict from them (`jaxvqa.checkpoints`)
      best/               a work directory of its own with the best state

A folder with `checkpoints/` alone is enough: a checkpoint holds the config and the command too.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvqa import checkpoints, configs, distributed, fields, logs, optim, paths, sharding
from jaxvqa import state as states
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import CheckpointError, ConfigError, choose, os_errors
from jaxvqa.inputs import read_json, read_json_lines
from jaxvqa.logs import log
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task, task_with_assets
from jaxvqa.tasks.predictions import Prediction
from jaxvqa.types import Config, Params

BATCH_SIZE = 16
"""Examples that `Run.predict` predicts at once: bounds the memory, and compiles the model once."""

CONFIG = {
    **{"name?": str, "task?": str, "total?": str, "batch_size?": int, "members?": str},
    **{"data?": {"blind?": bool, "examples?": str, "images?": str}, "model?": {"name?": str}},
    **{"evals?": {str: {"type?": str, "split?": str, "predict?": str}}, "optim?": {}, "best?": {"metric?": str}},
}
"""What a config.json holds at least, where it has a field at all."""

PREDICTION = {
    **{"id": int, "image_id?": int, "question?": str, "answer?": str, "probability?": float, "accuracy?": float},
    "annotators?": [str],
}
"""What a line of a predictions file holds."""

FREE_TO_CHANGE = (
    *(
        "total",
        "log_every",
        "profile_steps",
        "compilation_cache",
        "mesh",
        "checkpoint",
        "compile",
        "evals",
        "main_eval",
    ),
    *("report", "data.dir", "data.readers", "data.cache_mib", "sharding", "init_from"),
)
"""Fields that may change between the start and the continuation of a run: they change no number of it, but for `total`, which a
user raises to train on (schedules that fall to the end of the run then fall later)."""


def untrained(fresh: Collection[str], params: Params, config: Config, step: int) -> list[str]:
    """Which parameters are random numbers still after `step` steps (`paths.tops`).

    Args:
      fresh: those that were at the start (`paths.tops`).
      params: the parameters, or their shapes.
      config: `config.optim`, which may freeze some.
      step: how many steps have been made.
    """
    every = paths.flatten(params)
    frozen = paths.flatten(paths.lookup(config.freeze, params, "optim.freeze")) if config.freeze else {}
    return paths.tops([p for p in paths.under(fresh, every) if step == 0 or frozen.get(p)], every)


def said_of(untrained: Sequence[str]) -> str:
    """What a user should know of parameters that are random numbers."""
    which = "all parameters" if "" in untrained else ", ".join(untrained)
    return f"RANDOM NUMBERS: {which}. Neither read from a checkpoint nor trained: what is predicted with them means nothing"


class Run:
    """A work directory. What it holds is read when it is asked for, and kept.

    Attributes:
      folder: the work directory.
      config: as it was asked for, with `~` for home folders, locked.
    """

    def __init__(self, folder: str | Path, config: Config, mesh: Mesh | None = None):
        """Args: the folder, a config to read it by, and the devices to predict on: one of them by default. Reads nothing."""
        self.folder, self.config, self._mesh = Path(folder), config, mesh

    @classmethod
    def open(cls, folder: str | Path, mesh: Mesh | None = None) -> "Run":
        """Opens a work directory with its own config: config.json, which says where its data lie now, else the checkpoint's.

        Raises:
          CheckpointError: the folder is not a run's, or its checkpoint is damaged.
          DataError: config.json is damaged.
        """
        file = Path(folder) / "config.json"
        if file.is_file():
            config = configs.from_json(read_json(file, "the config of a run, as --mode=train writes it", CONFIG))
            return cls(folder, config, mesh)
        if not (Path(folder) / checkpoints.FOLDER).is_dir():
            raise CheckpointError(
                f"{folder} holds no checkpoints and no config.json: expected the work directory of a run, as --mode=train and "
                "jaxvqa.convert write it. Check --workdir."
            )
        run = cls(folder, ml_collections.ConfigDict(), mesh)
        run.config = configs.from_json(run.meta["config"])
        return run

    @classmethod
    def start(cls, folder: Path, config: Config, command: str = "", mesh: Mesh | None = None) -> "Run":
        """Starts a work directory, or goes on with it: writes its config and the command; from every process.

        Raises:
          ConfigError: it was started with another config; lists every field that differs.
          StorageError: it cannot be written.
        """
        run = cls(folder, config, mesh)
        run._check_same_config()
        if jax.process_index() == 0:
            with os_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                logs.write_whole(folder / "config.json", config.to_json_best_effort(indent=1))
                if command:
                    logs.write_whole(folder / "run.json", json.dumps({"command": command}) + "\n")
        distributed.barrier(f"start of {folder}")
        return run

    # --- what its files say -------------------------------------------------------------------------------------------------

    @cached_property
    def command(self) -> str:
        """The command that made the folder, without --workdir or --to, for a shell; empty if a program made it."""
        file = self.folder / "run.json"
        if file.is_file():
            return read_json(file, "the command of a run, as it writes it", {"command": str})["command"]
        with contextlib.suppress(CheckpointError):
            return self.meta.get("command", "")
        return ""

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return logs.read_metrics(self.folder)

    def predictions(self, name: str) -> tuple[int, list[dict[str, Any]]]:
        """The newest predictions of an evaluation and their step; (0, []) when there are none."""
        found = {
            int(match[1]): path
            for path in (self.folder / "predictions").glob("*.jsonl")
            if (match := re.fullmatch(rf"{re.escape(name)}_(\d+)\.jsonl", path.name))
        }
        if not found:
            return 0, []
        step = max(found)
        return step, read_json_lines(found[step], "predictions, as --mode=predict writes them", PREDICTION)

    @property
    def members(self) -> list[str]:
        """The work directories of the runs of an ensemble; empty for a run that is trained."""
        return [folder for folder in str(self.config.get("members", "")).split(",") if folder]

    @property
    def images(self) -> str:
        """The part of the data set with the images; in a pre-training each example has one."""
        data = self.config.get("data", {})
        return data.get("images") or (data.get("examples", "") if data.get("question_list") else "")

    @property
    def blind(self) -> bool:
        """Whether the model reads the questions alone."""
        return bool(self.config.get("data", {}).get("blind")) or not self.images

    @property
    def best(self) -> "Run":
        """The run's best state, as a work directory, where `config.best` has it kept."""
        return Run(self.folder / "best", self.config, self._mesh)

    # --- its newest checkpoint ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _saved(self) -> Iterator[checkpoints.Checkpoints]:
        with contextlib.closing(checkpoints.Checkpoints(self.folder, read_only=True)) as saved:
            yield saved

    @cached_property
    def step(self) -> int:
        """The step of the newest checkpoint.

        Raises:
          CheckpointError: there is none.
        """
        with self._saved() as saved:
            step = saved.latest_step()
        if step is None:
            raise CheckpointError(f"{self.folder / checkpoints.FOLDER} holds no complete checkpoint.")
        return step

    @cached_property
    def _json(self) -> tuple[dict[str, Any], dict[str, Any]]:
        step = self.step
        with self._saved() as saved:
            return saved.read_json(step)

    @property
    def assets(self) -> dict[str, Any]:
        """The answers, vocabulary and the like of its checkpoint."""
        return self._json[0]

    @property
    def meta(self) -> dict[str, Any]:
        """What is kept beside the state: config, command, position in the data, versions, what a converter noted."""
        return self._json[1]

    @cached_property
    def parameters(self) -> int:
        """How many numbers the model's parameters have."""
        step = self.step
        with self._saved() as saved:
            return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(saved.model_shapes(step)["params"]))

    @cached_property
    def untrained(self) -> list[str]:
        """What of the model is random numbers (`paths.tops`): the run read it from nowhere, and has not trained it."""
        if not (fresh := self.meta.get("fresh")):
            return []
        step = self.step
        with self._saved() as saved:
            return untrained(fresh, saved.model_shapes(step)["params"], self.config.optim, step)

    # --- to predict from it -------------------------------------------------------------------------------------------------

    @cached_property
    def final(self) -> Config:
        """The config with all paths written out, checked.

        Raises:
          ConfigError: lists all faults.
        """
        return fields.final(self.config)

    @cached_property
    def data(self) -> DataSet:
        """The run's data set."""
        return DataSet(self.final.data)

    @cached_property
    def task(self) -> Task:
        """The run's task, with the checkpoint's assets."""
        return task_with_assets(self.final, self.assets)

    @cached_property
    def mesh(self) -> Mesh:
        """The devices to predict on."""
        one = ml_collections.ConfigDict(dict.fromkeys(sharding.AXES, 1))
        return self._mesh or sharding.make_mesh(one, jax.local_devices()[:1])

    @cached_property
    def state(self) -> TrainState:
        """What `restore` gives, kept."""
        return self.restore()

    def restore(self) -> TrainState:
        """What predictions need of the newest checkpoint, on the mesh: parameters, other collections, averages; no optimiser.

        Raises:
          CheckpointError: no checkpoint, a damaged one, or one that does not fit the config.
        """
        task, config, step = self.task, self.final, self.step
        if self.untrained:
            log.warning("%s: %s", self.folder, said_of(self.untrained))
        with jax.set_mesh(self.mesh), self._saved() as saved:
            with_ema = saved.model_shapes(step).get("ema") is not None
            shapes = jax.eval_shape(
                states.create(task.init, optax.identity(), task.kinds, seed=config.seed, with_ema=with_ema)
            )
            shapes = sharding.placed(config.sharding, shapes, self.mesh, task.kinds)
            model = saved.restore_model(checkpoints.model_item(shapes), step)
        return TrainState(step=jnp.asarray(step, jnp.int32), opt_state=optax.EmptyState(), **model)

    def predict(
        self, name: str, examples: Sequence[Mapping[str, Any]], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """What one of the task's predict functions says of each example.

        Args:
          name: one of `task.predictions`.
          examples: as a data set reads them, with `question_id` and what the task's transforms need.
          batch_size: how many are predicted at once.

        Raises:
          ConfigError: the task has no such predict function.
        """
        known = self.task.predictions
        if name not in known:
            raise ConfigError(f"The task {self.config.task!r} has no predict function {name!r}{choose(name, known)}")
        predict, size, found = known[name], min(batch_size, len(examples)), []
        for start in range(0, len(examples), max(size, 1)):
            part = examples[start : start + size]
            with jax.set_mesh(self.mesh):
                outputs = jax.device_get(
                    predict.jitted(*self.state.eval_variables, self._batch(part, size, predict.keys))
                )
            for i in range(len(part)):
                found.append(predict.prediction({key: np.asarray(value[i]) for key, value in outputs.items()}))
        return found

    def _batch(self, examples: Sequence[Mapping[str, Any]], size: int, keys: Sequence[str]) -> dict[str, Any]:
        """Entries of a batch of raw examples; filled up to `size`, so that all batches share one compilation."""
        ready = []
        for raw in examples:
            example = dict(raw) | {"draw": (0, int(raw["question_id"]))}  # for images of noise
            for transform in self.task.transforms(train=False):
                example = transform(example)
            ready.append(example | {"mask": np.float32(1)})
        ready += ready[:1] * (size - len(ready))
        return {key: np.stack([example[key] for example in ready]) for key in keys}

    # --- to go on from it, or to take parameters from it ----------------------------------------------------------------------

    def variables(self, mesh: Mesh) -> dict[str, Any]:
        """`params` and the other collections of the newest checkpoint, whole on every device; averages where they are kept."""
        step = self.step
        with self._saved() as saved:
            model = saved.restore_model(saved.model_shapes(step, NamedSharding(mesh, PartitionSpec())), step)
        params, collections = TrainState(step=None, opt_state=(), **model).eval_variables
        return {"params": params, **collections}

    def training_state(self) -> TrainState:
        """The whole state that training goes on from, optimiser included, on one device; its tree is the checkpoint's."""
        step = self.step
        with self._saved() as saved:
            model = saved.model_shapes(step)
            optimizer = jax.eval_shape(lambda p: optim.make_optimizer(self.config.optim, p).init(p), model["params"])
            shapes = TrainState(step=jax.ShapeDtypeStruct((), jnp.int32), opt_state=optimizer, **model)
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            return saved.restore(
                jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shapes), step
            )

    def save(
        self,
        saved: checkpoints.Checkpoints,
        state: TrainState,
        assets: Mapping[str, Any],
        data: Mapping[str, Any],
        **notes: Any,
    ) -> None:
        """Saves a state with all that it takes to predict from it and to go on with it.

        Args:
          saved: the checkpoints to save into, this folder's or its best one's.
          state: what to save, under its step.
          assets: the task's.
          data: the training data: "examples", "split" and "size".
          **notes: JSON values to keep beside it.

        Raises:
          DivergedError: the state is not finite.
          StorageError: it cannot be written.
        """
        meta = {"config": json.loads(self.config.to_json()), "data": dict(data) | {"step": int(state.step)}}
        saved.save(state, assets, meta | {"command": self.command} | notes)

    def check_same_data(self, now: Mapping[str, Any]) -> None:
        """Checks that a run goes on with the data it began with: a position in other data means nothing.

        Raises:
          CheckpointError: lists what has changed.
        """
        before = self.meta["data"]  # a converted checkpoint knows no data: it has None there
        changed = [
            f"{key}: was {before[key]!r}, now {now[key]!r}" for key in now if before.get(key) not in (None, now[key])
        ]
        if changed:
            raise CheckpointError(
                f"The training data has changed since the checkpoint in {self.folder}:\n  "
                + "\n  ".join(changed)
                + "\nBuild the same data set again, or start in another --workdir (config.init_from takes the parameters)."
            )

    def _check_same_config(self) -> None:
        file = self.folder / "config.json"
        with os_errors(self.folder, "a folder for the run"):
            if not file.exists():
                return
        before, now = (configs.flatten(json.loads(config.to_json())) for config in (configs.read(file), self.config))
        absent = "(absent)"
        changed = [
            f"{name}: was {before.get(name, absent)!r}, now {now.get(name, absent)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name, absent) != now.get(name, absent)
            and not any(name == free or name.startswith(free + ".") for free in FREE_TO_CHANGE)
        ]
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run of another config:\n  "
                + "\n  ".join(changed)
                + "\nUse that config to go on with that run, or another --workdir for a new one."
            )
