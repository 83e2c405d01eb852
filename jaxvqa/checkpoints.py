"""Checkpoints: orbax step folders that hold all that a later run, an evaluation or a prediction needs.

    WORKDIR/checkpoints/STEP/
      model/      parameters, other collections, moving averages
      optimizer/  step and optimiser state
      assets/     JSON: vocabulary, answer list: what turns text into the model's numbers and back
      meta/       JSON: config, position in the data, versions of the libraries that wrote it

A step folder appears under its number only once it is complete; an interrupted save leaves nothing that is read.
"""

import contextlib
import importlib.metadata
import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxvqa import paths
from jaxvqa.errors import CheckpointError, DivergedError, StorageError, UserError, first_line, os_errors
from jaxvqa.state import TrainState, not_finite

FOLDER = "checkpoints"
ITEMS = ("model", "optimizer", "assets", "meta")
LIBRARIES = ("jaxvqa", "jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def _write_small_arrays_whole() -> None:
    """Lets replicas of an array share the writing of it only where each then has a MiB or more to write.

    Cutting every bias into a slice for each of 8 devices compiles as many little programs, and holds the first save up
    by seconds.
    """
    with _without_warnings():  # that its own default is replaced
        ocp.type_handlers.register_type_handler(
            jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20), override=True
        )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps to itself what orbax warns of where it does as it is asked."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


_write_small_arrays_whole()


class Checkpoints:
    """The checkpoints of one work directory. Saves in the background; `close` waits for the last save."""

    def __init__(self, workdir: str | Path, *, keep: int = 2, read_only: bool = False):
        """Opens the checkpoints under `workdir`.

        Args:
          workdir: the run's folder.
          keep: how many of the newest checkpoints stay.
          read_only: never writes or removes anything.
        """
        self.folder = Path(workdir).absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{workdir} holds no checkpoints: expected the folder {self.folder}.")
        with os_errors(self.folder, "a folder of checkpoints"), _without_warnings():  # that read_only is read_only
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=None if read_only else keep, create=not read_only, read_only=read_only
                ),
                # Named here, so that shapes can be read before anything is restored.
                item_handlers={
                    "model": ocp.StandardCheckpointHandler(),
                    "optimizer": ocp.StandardCheckpointHandler(),
                    "assets": ocp.JsonCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, assets: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Saves `state` under its step, unless that step is there already.

        Raises:
          DivergedError: a number of the state is not finite.
          StorageError: when the disk has no room for it (checked before anything is written) or a write failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        check_finite(state, self.latest_step())
        self._check_room(state)
        with os_errors(self.folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model_item(state)),
                    optimizer=ocp.args.StandardSave(optimizer_item(state)),
                    assets=ocp.args.JsonSave(dict(assets)),
                    meta=ocp.args.JsonSave(dict(meta) | {"versions": versions()}),
                ),
            )

    def restore(self, shapes: TrainState, step: int | None = None) -> TrainState:
        """Restores a whole state.

        Args:
          shapes: the state as ShapeDtypeStructs that carry the shardings to restore onto.
          step: which checkpoint; the newest by default.

        Raises:
          CheckpointError: lists every leaf that is missing, unexpected, of another shape or not finite.
        """
        items = self._restore(step, model=model_item(shapes), optimizer=optimizer_item(shapes))
        return TrainState(**items["model"], **items["optimizer"])

    def restore_model(self, shapes: Any, step: int | None = None) -> dict[str, Any]:
        """Restores {"params", "collections", "ema"} without the optimiser; `shapes` as in `restore`."""
        return self._restore(step, model=shapes)["model"]

    def model_shapes(self, step: int | None = None, sharding: Any = None) -> dict[str, Any]:
        """The saved {"params", "collections", "ema"} as ShapeDtypeStructs, read without the arrays.

        To restore by them, give the `sharding` that every array is to have: without one, orbax wants the very devices that
        the checkpoint was written from.
        """
        tree = self._metadata("model", self._step(step))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    def read_json(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The (assets, meta) of a checkpoint."""
        step = self._step(step)
        with self._corruption(step):
            items = self._manager.restore(
                step, args=ocp.args.Composite(assets=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
            )
        if not isinstance(items["assets"], dict):
            raise self._damaged(step, "assets/metadata is not a JSON object")
        if not isinstance(items["meta"], dict) or not isinstance(items["meta"].get("config"), dict):
            raise self._damaged(step, "meta/metadata is not a JSON object with the run's `config`")
        return items["assets"], items["meta"]

    def wait(self) -> None:
        """Waits until the last save is complete on disk."""
        with os_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        with os_errors(self.folder):
            self._manager.close()

    def _step(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise CheckpointError(f"{self.folder} holds no complete checkpoint.")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint of step {step}; there are {steps}.")
        return steps[-1] if step is None else step

    @contextlib.contextmanager
    def _corruption(self, step: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # orbax and TensorStore have no type of their own for what is damaged
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise self._damaged(step, first_line(error).partition(" See full TensorStore")[0]) from error

    def _damaged(self, step: int, what: str) -> CheckpointError:
        """Names a checkpoint that cannot be read, what of it, and the way back to the one before."""
        folder = self.folder / str(step)
        missing = [item for item in ITEMS if not (folder / item).is_dir()]
        what = f"it has no {', '.join(missing)} folder" if missing else what
        before = [other for other in self._manager.all_steps() if other < step]
        way_out = (
            f"To go on from the one before it, of step {max(before)}, remove it: rm -r {shlex.quote(str(folder))}"
            if before
            else f"There is none before it in {self.folder}: put back a copy, or start again in another --workdir."
        )
        best = self.folder.parent / "best" / FOLDER
        more = f"\nThe best state has a folder of its own: --workdir={best.parent}" if best.is_dir() else ""
        return CheckpointError(
            f"The checkpoint of step {step} in {folder} cannot be read: {what}. It may have been cut or changed after it was "
            f"written.\n{way_out}{more}"
        )

    def _metadata(self, item: str, step: int) -> Any:
        with self._corruption(step):
            saved = self._manager.item_metadata(step)[item]
        if saved is None:
            raise self._damaged(step, f"{item}/_METADATA is missing")
        return saved.tree

    def _restore(self, step: int | None, **shapes: Any) -> dict[str, Any]:
        """Restores items of a checkpoint by their shapes."""
        step = self._step(step)
        for item, expected in shapes.items():
            faults = differences(*(_leaf_shapes(tree) for tree in (expected, self._metadata(item, step))))
            if faults:
                raise CheckpointError(
                    f"The checkpoint {self.folder / str(step)} does not fit the config's model ({item}):\n  "
                    + "\n  ".join(faults)
                    + "\nIt was written by another model, vocabulary or answer list; use the config that it holds "
                    "(meta/metadata), or another --workdir."
                )
        with self._corruption(step):
            args = {item: ocp.args.StandardRestore(expected) for item, expected in shapes.items()}
            items = dict(self._manager.restore(step, args=ocp.args.Composite(**args)))
        self._check_read({name: tree for item in items.values() for name, tree in item.items()}, step)
        return items

    def _check_read(self, items: Any, step: int) -> None:
        if faults := not_finite(items):
            earlier = max((s for s in self._manager.all_steps() if s < step), default=None)
            way_out = "train again" if earlier is None else f"delete that folder to use the one of step {earlier}"
            raise CheckpointError(
                f"The checkpoint {self.folder / str(step)} holds numbers that are not finite, in {_some(faults)}: nothing can "
                f"be predicted or trained with it; {way_out}."
            )

    def _check_room(self, state: TrainState) -> None:
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // jax.process_count()
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise StorageError(
                f"No room for a checkpoint: it needs {need / 2**20:.0f} MiB in {self.folder}, which has "
                f"{free / 2**20:.0f} MiB free. Earlier checkpoints are kept; free space and start the same command again."
            )


def check_finite(state: TrainState, last_good: int | None) -> None:
    """Checks that no parameter, statistic, average or number of the optimiser is a NaN or infinite.

    Args:
      state: what is about to be saved or evaluated.
      last_good: the step of the newest checkpoint, for the message.

    Raises:
      DivergedError: names what is not finite, and the checkpoint that is kept.
    """
    if faults := not_finite(state):
        raise DivergedError(
            f"The state of step {int(state.step)} is not finite, in {_some(faults)}, and is not saved; {kept(last_good)}. "
            "Lower config.optim.lr, set config.optim.clip_norm, or look at the data of that step."
        )


def kept(last_good: int | None) -> str:
    """Which checkpoint is there when a run ends in the middle, for messages."""
    return "no checkpoint was written yet" if last_good is None else f"the checkpoint of step {last_good} is kept"


def _some(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def model_item(state: TrainState) -> dict[str, Any]:
    """What the `model` part of a checkpoint holds."""
    return {"params": state.params, "collections": state.collections, "ema": state.ema}


def optimizer_item(state: TrainState) -> dict[str, Any]:
    """What the `optimizer` part of a checkpoint holds."""
    return {"step": state.step, "opt_state": state.opt_state}


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in paths.flatten(tree).items() if hasattr(leaf, "shape")}


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line for each path that is missing, unexpected or of another shape."""
    lines = [f"missing: {path} {shape}" for path, shape in expected.items() if path not in found]
    lines += [f"unexpected: {path} {shape}" for path, shape in found.items() if path not in expected]
    lines += [
        f"shape: {path} is {found[path]}, expected {shape}"
        for path, shape in expected.items()
        if path in found and found[path] != shape
    ]
    return lines


def versions() -> dict[str, str]:
    """The installed versions of the libraries that decide what a checkpoint means."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
