"""How training cases are decided: in float64.

Ours are computed twice, in float32 and in float64, and compared with what the original computed in float32. In float64 each
output has to agree to 1e-4 of its scale (`golden.LIMIT`). In float32 it need not: where a rectifier's input is within rounding
of 0, its sign differs from one processor to another, and with it gradients by 1e-3, though no formula is wrong. Such a
difference moves a few entries, not most of them, and hardly the loss: in float32 losses decide, and the median difference of
the parameters' norms; everything else is shown, and fails only where it is not finite. Both precisions run the same code.

The original's own float32 has such flips too. Between its steps they reach the parameters, the smallest ones most: what depends
on a step is compared on the scale of the largest parameter, and by the median. A manifest may state how far the original's
numbers are from its own in float64 (`float32_error`), or hold both: where that is more than the rule, those cannot decide.

What is computed are the program's own steps: the task of a config whose model, loss and optimiser are the case's,
`optim.make_optimizer` and `step.make_train_step`. A system's file says how a case becomes such a config and a batch, and which
name of its results stands for what (`Named`).
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxvqa import configs, optim
from jaxvqa.errors import choose
from jaxvqa.golden.cases import LIMIT, Case, Row, differences
from jaxvqa.state import TrainState
from jaxvqa.step import make_train_step
from jaxvqa.tasks import task_class, task_with_assets

ZERO_LIMIT = 1e-6
"""Largest norm of a gradient that is zero but for rounding, relative to the largest gradient's."""


@dataclasses.dataclass(frozen=True)
class Precision:
    """One of the two precisions in which a training case is computed.

    Attributes:
      case: the case.
      dtype: float32 or float64.
    """

    case: Case
    dtype: Any

    @property
    def name(self) -> str:
        """The type's name."""
        return np.dtype(self.dtype).name

    def cast(self, tree: Any) -> Any:
        """All floating-point arrays in this precision, as JAX arrays."""

        def cast(x: Any) -> jax.Array:
            x = jnp.asarray(x)
            return x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(cast, tree)

    def rows(self, kind: str, output: str, ours: Any, only: np.ndarray, zero: np.ndarray) -> Iterator[Row]:
        """Compares one result by its kind.

        Args:
          kind: see `Named`.
          output: its name.
          ours: our value, or what gives it; a single number has the form of the original's.
          only: of norms: the parameters that count.
          zero: of the norms of gradients: those that are 0.
        """
        try:
            ours = np.asarray(ours() if callable(ours) else ours)
        except Exception as error:  # whatever it is, it is about this output only
            yield self._row(self.case.failed(output, error))
            return
        if ours.size == self.case.expected[output].size == 1:
            ours = ours.reshape(self.case.expected[output].shape)
        if kind == "loss":
            yield self._row(self.case.compare(output, ours))
        elif kind == "values":
            yield self.values(output, ours)
        else:
            yield from self.norms(output, ours, only, moved=kind.startswith("moved"))
        if kind.endswith("gradients") and zero.any():
            noise, note = float(ours[zero].max() / ours.max()), f"{np.count_nonzero(zero)} of {len(zero)}"
            yield self._row(Row(self.case.name, f"({output} of zero)", noise <= ZERO_LIMIT, noise, ZERO_LIMIT, note))

    def values(self, output: str, ours: np.ndarray, **how: Any) -> Row:
        """Compares an array, `how` as for `Case.compare`: decides in float64."""
        row = self._row(self.case.compare(output, ours, **how))
        own = self._own_error(output, **how)
        if row.error is None or not np.isfinite(row.error) or (self.dtype == np.float64 and own <= LIMIT):
            return row
        note = f"{row.note} the original's own error: {own:.1e}".strip() if own > LIMIT else row.note
        return dataclasses.replace(row, passed=None, decides=False, note=note)

    def _own_error(self, output: str, **how: Any) -> float:
        """How far the original's float32 number is from its own in float64, as the manifest states or the results show."""
        stated = self.case.manifest.get("float32_error", {}).get(f"out_{output}", 0.0)
        exact = self.case.expected.get(f"{output}_float64")
        if exact is None:
            return stated
        return max(stated, float(np.max(differences(self.case.expected[output], exact, **how), initial=0.0)))

    def norms(self, output: str, ours: np.ndarray, only: np.ndarray, *, moved: bool = False) -> Iterator[Row]:
        """Compares a norm of each parameter, or a few numbers of it.

        In float64 each decides relative to its own scale, in float32 the median of these differences.

        Args:
          output: its name.
          ours: a row for each parameter.
          only: the parameters to compare.
          moved: they depend on steps of the original: in float64 the whole array's scale counts, and the median.
        """
        strict = self.dtype == np.float64 and not moved
        row = self.values(output, ours, entrywise=strict or self.dtype == np.float32, only=only)
        yield row
        if row.error is not None and not (strict and row.decides):
            errors = differences(ours, self.case.expected[output], entrywise=True, only=only)
            median = float(np.median(errors)) if errors.size else 0.0
            note = f"largest {np.max(errors, initial=0.0):.1e}"
            yield self._row(Row(self.case.name, f"{output}, median", median <= LIMIT, median, LIMIT, note))

    def _row(self, row: Row) -> Row:
        return dataclasses.replace(row, precision=self.name)


PRECISIONS = (np.float32, np.float64)
"""In which training cases are computed."""


def in_both(case: Case, compute: Callable[[Precision], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a training case in float32 and in float64, of which those that decide are marked so."""
    for dtype in PRECISIONS:
        precision = Precision(case, dtype)
        try:
            with jax.enable_x64(dtype == np.float64):
                yield from compute(precision)
        except Exception as error:  # the other precision goes on
            yield case.failed(f"({precision.name})", error)


# --- the program's steps ---------------------------------------------------------------------------------------------------

FROM_DATA = ("vocab_size", "num_answers", "image_token")
"""Fields of a model that its task takes from its assets."""

OPTIMIZERS = {"adam": "adam", "adamw": "adam", "adamax": "adamax", "sgd": "sgd"}
"""PyTorch's optimiser -> `config.optim.name`."""


def config_of(
    system: str, model: Mapping[str, Any], optimizer: Mapping[str, Any], default: str = "Adam", **changes: Any
) -> ml_collections.ConfigDict:
    """A system's config with a case's model and optimiser, and without any other rule of training.

    Args:
      system: the name of its file in configs/.
      model: the `model` part as the converter makes it, sizes among it.
      optimizer: PyTorch's options with its defaults: `name`, `betas`, `eps`, `weight_decay`, `momentum`, `nesterov`; and
        `clip_norm`. Others are not read.
      default: its name where it has none.
      **changes: other fields, with "__" for each dot.
    """
    name = str(optimizer.get("name", default)).lower()
    if name not in OPTIMIZERS:
        raise ValueError(f"the optimiser is {name!r}{choose(name, OPTIMIZERS)}")
    b1, b2 = optimizer.get("betas", (0.9, 0.999))
    decay = optimizer.get("weight_decay", 0.0)
    table = ((".*", decay),) if decay else ()
    config = configs.load(f"configs/{system}.py").copy_and_resolve_references()
    with config.unlocked():
        config.model = ml_collections.ConfigDict({k: v for k, v in model.items() if k not in FROM_DATA})
        config.compile.update({size: model[size] for size in FROM_DATA[:2] if size in model})
        config.optim.update(
            {
                **{"name": OPTIMIZERS[name], "b1": b1, "b2": b2, "eps": optimizer.get("eps", 1e-8)},
                **{"momentum": optimizer.get("momentum", 0.0), "nesterov": optimizer.get("nesterov", False)},
                **{"clip_norm": optimizer.get("clip_norm") or 0.0, "restart_epochs": ()},
                **{"lr_scale": (), "freeze": ()},
                # AdamW's decay does not go through the rule.
                **{"decay": table if name == "adamw" else (), "coupled_decay": () if name == "adamw" else table},
            }
        )
        config.update_from_flattened_dict({field.replace("__", "."): value for field, value in changes.items()})
    return config


def pixels(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The pixels, in [0, 255] but not whole, that a task normalises to the images of a case: float64[B, H, W, C]."""
    centre, spread = (np.asarray(numbers, np.float32).astype(np.float64) for numbers in (mean, std))
    return (np.moveaxis(image, 1, -1) * spread + centre) * 255


class Recorder:
    """A task's model, which keeps what it gave last.

    Attributes:
      train: how it is applied, whatever the task asks for; None: as the task asks.
    """

    train: bool | None = None

    def __init__(self, model: Any):
        """Args: the model."""
        self._model, self.output = model, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def apply(self, variables: Any, *, train: bool = False, **options: Any) -> Any:
        """What the model gives."""
        train = train if self.train is None else self.train
        result = self._model.apply(variables, train=train, **options)
        self.output = result[0][0] if "mutable" in options else result[0]
        return result


@dataclasses.dataclass(frozen=True)
class Training:
    """A training case in the program's terms.

    Attributes:
      config: the whole config.
      batch: the entries of a batch that the task's loss reads, of images their `pixels`; `mask` is added.
      variables: "params" and the other collections.
      tensors: variables, or some of them, -> the original's tensors.
      keys: the original's parameters in the order of its norms.
      zero: those of them whose gradient is 0 but for rounding: this is checked, and otherwise they do not count.
      skipped: those that do not count, because rounding decides what is stored.
      assets: of the task; by default those that stand in for a data set's.
      recorder: makes what stands for the task's model.
      scale: the original's loss relative to the task's.
    """

    config: ml_collections.ConfigDict
    batch: Mapping[str, np.ndarray]
    variables: Mapping[str, Any]
    tensors: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]
    keys: Sequence[str]
    zero: Collection[str] = ()
    skipped: Collection[str] = ()
    assets: Mapping[str, Any] | None = None
    recorder: Callable[[Any], Any] = Recorder
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a run. Parameters and statistics are the original's tensors by its keys.

    Attributes:
      state: before the step.
      before, after: the tensors.
      gradients: those of the loss, which the optimiser got.
      metrics: the step's sums and counts.
      loss: before the step, as the original has it.
      output: what the model gave.
    """

    state: Any
    before: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]
    gradients: Mapping[str, np.ndarray]
    metrics: Mapping[str, Any]
    loss: Any
    output: Any


class Run:
    """A training case in one of the two precisions.

    Attributes:
      task: the task.
      training: the case.
      real: which of its parameters count.
      zero: which of them have a gradient of 0.
    """

    def __init__(self, training: Training, precision: Precision):
        """Builds the program; nothing is computed yet."""
        config, self.training = training.config, training
        cls = task_class(config.task)
        self.task = cast(Any, task_with_assets(config, dict(training.assets or cls.stand_in_assets(config))))
        self.task.model = training.recorder(self.task.model.copy(dtype=precision.dtype))
        self.zero = np.asarray([key in training.zero for key in training.keys], bool)
        self.real = ~self.zero & np.asarray([key not in training.skipped for key in training.keys], bool)
        batch = {"mask": np.ones(len(next(iter(training.batch.values()))), np.float32), **training.batch}
        variables, self.batch = precision.cast((dict(training.variables), batch))
        optimizer = optax.chain(
            optax.scale(training.scale), _kept(), optim.make_optimizer(config.optim, variables["params"])
        )
        params = variables.pop("params")
        self.start = TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))
        self._loss = self.task.loss
        self.task.loss = self._recorded_loss

        @jax.jit
        def step(state: Any, batch: Any, rate: Any) -> Any:
            return make_train_step(config, self.task, optimizer, lambda _: rate, 1)(state, batch)

        self._step, self._rate = step, functools.partial(jnp.asarray, dtype=precision.dtype)

    def _recorded_loss(self, *given: Any, **options: Any) -> Any:
        value, (metrics, collections) = self._loss(*given, **options)
        return value, (metrics, {**collections, "output": self.task.model.output})

    def follow(self, rates: Iterable[float]) -> list[Step]:
        """The steps from the start on, one for each learning rate; one of rate 0 gives the loss at the end."""
        scale, tensors, state, steps = self.training.scale, self.training.tensors, self.start, []
        after = tensors(self.variables_of(state))
        for rate in rates:
            before, now = after, state
            state, metrics = self._step(state, self.batch, self._rate(rate))
            metrics, collections = jax.device_get((metrics, dict(state.collections)))
            output = collections.pop("output")
            state = dataclasses.replace(state, collections=collections)
            after = tensors(self.variables_of(state))
            gradients = tensors({"params": state.opt_state[1]})
            total, count = metrics["loss"]
            loss = scale * (total if self.training.config.optim.loss == "sum" else total / count)
            steps.append(Step(now, before, after, gradients, metrics, loss, output))
        self.end = state
        return steps

    @staticmethod
    def variables_of(state: Any) -> dict[str, Any]:
        """A state's variables."""
        return {"params": state.params, **state.collections}

    def norms(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The norm of each of the case's parameters."""
        return np.asarray([np.linalg.norm(np.asarray(tensors[key], np.float64)) for key in self.training.keys])

    def change(self, step: Step) -> np.ndarray:
        """The norms of what a step changed; the original's parameters are float32, which rounds small changes of large ones."""
        before, after = (
            {key: np.asarray(tensors[key], np.float32).astype(np.float64) for key in self.training.keys}
            for tensors in (step.before, step.after)
        )
        return self.norms({key: after[key] - before[key] for key in after})


def _kept() -> optax.GradientTransformation:
    """Leaves the gradients as they are, and keeps them as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradients, _, params=None: (gradients, gradients)
    )


# --- the results' names ----------------------------------------------------------------------------------------------------

Named = dict[str, tuple[str, Any]]
"""Name of a result -> how it is compared, and ours, or what gives it. `loss` decides in both precisions; `values`; of each
parameter a norm, or a few numbers: `gradients` and `norms`, and `moved gradients` and `moved` where the original's own steps
count."""


def train(case: Case, training: Callable[[], Training], named: Callable[[Run], Named]) -> Iterator[Row]:
    """The rows of a training case: of all its results that have a name; `NAME_float64` is NAME.

    Args:
      case: the case.
      training: makes it in the program's terms.
      named: what a run gives, by its names in the results.
    """

    def compute(precision: Precision) -> Iterator[Row]:
        run = Run(training(), precision)
        found = named(run)
        for name in case.expected:
            plain = name if name in found else name.removesuffix("_float64")
            if plain in found:
                kind, ours = found[plain]
                yield from precision.rows(kind, name, ours, run.real, run.zero)

    return in_both(case, compute)
