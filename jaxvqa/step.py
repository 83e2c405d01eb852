"""One training step: the pure function, its compiled form on a mesh, and its abstract arguments."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxvqa import models, optim, sharding
from jaxvqa import state as states
from jaxvqa.errors import ConfigError
from jaxvqa.state import TrainState
from jaxvqa.tasks import Metrics, Task, abstract_batch
from jaxvqa.types import Batch, Collections, Config, Params

StepFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: Config,
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Callable[..., Any],
    steps_per_epoch: int,
) -> StepFn:
    """Returns the pure function (state, batch) -> (state, metrics) of one optimiser step.

    The stored parameters are first brought within `config.optim.bounds`, then comes `task.before`, then the loss. The batch
    is cut into `config.microbatches` parts whose gradients are added; what a part makes of the collections, the next one
    goes on with. `config.optim.loss` says what is descended: the `sum` over the examples, or their `mean`.
    """
    n = config.microbatches

    def gradients(params: Params, collections: Collections, batch: Batch, key: Array, epoch: Array) -> Any:
        rngs = {name: states.fold(key, name) for name in task.streams}

        def loss(params: Params) -> Any:
            if config.optim.freeze:
                params = optim.without_frozen_gradients(params, config.optim.freeze)
            return task.loss(params, collections, batch, rngs, train=True, epoch=epoch)

        (_, (metrics, after)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, metrics, after

    def accumulated(params: Params, collections: Collections, batch: Batch, key: Array, epoch: Array) -> Any:
        # Microbatch i takes every n-th example from i on, not a run of them: then each device cuts up the examples
        # that it already holds, and nothing moves between devices. The sum of the gradients is the same.
        parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch)

        def body(carry: Any, part_and_index: Any) -> tuple[Any, None]:
            *sums, collections = carry
            part, i = part_and_index
            *more, collections = gradients(params, collections, part, jax.random.fold_in(key, i), epoch)
            return (*jax.tree.map(jnp.add, sums, more), collections), None

        shapes = jax.eval_shape(gradients, params, collections, jax.tree.map(lambda x: x[0], parts), key, epoch)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
        return jax.lax.scan(body, (*zeros, collections), (parts, jnp.arange(n)))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if config.optim.bounds:
            state = dataclasses.replace(state, params=optim.bounded(state.params, config.optim.bounds))
        state = task.before(state)
        key = jax.random.fold_in(states.fold(jax.random.key(config.seed), "step"), state.step)
        of_batch = gradients if n == 1 else accumulated
        grads, metrics, collections = of_batch(
            state.params, state.collections, batch, key, state.step / steps_per_epoch
        )
        if config.optim.loss == "mean":
            grads = jax.tree.map(lambda g: g / metrics["loss"][1], grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        rate = schedule(state.step)
        params = jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), state.params, updates)
        ema = states.update_ema(state.ema, config.optim.ema, params, collections) if config.optim.ema else state.ema
        one = jnp.ones(())
        metrics = metrics | {"learning_rate": (rate, one), "gradient_norm": (optax.tree.norm(grads), one)}
        return TrainState(state.step + 1, params, collections, opt_state, ema), metrics

    return train_step


def check_microbatches(config: Config, task: Task, memory: Iterable[str]) -> None:
    """Checks that a batch may be cut into `config.microbatches` parts.

    Args:
      config: the whole config.
      task: the task of it.
      memory: the names of the collections that are written once a step.

    Raises:
      ConfigError: names what stands against it and the way out.
    """
    against = [f"the loss writes {name}, from the whole batch" for name in memory]
    if not task.additive:
        against.append("the loss is not the sum of those of the parts")
    if config.microbatches > 1 and against:
        raise ConfigError(
            f"config.microbatches is {config.microbatches}, but the batches of {config.task} cannot be cut with this config: "
            f"{'; '.join(against)}. Use --config.microbatches=1; a smaller config.batch_size, more devices, and "
            "--config.model.vision_sizes.remat=12 where the image encoder has it, save memory too."
        )


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


def make_program(config: Config, task: Task, mesh: Mesh, *, data_size: int, total_steps: int) -> Program:
    """Builds the jitted functions of a run on a mesh. Nothing is compiled or allocated yet."""
    sharding.check_batch_size(config.batch_size, config.microbatches, mesh, "config.batch_size")

    def variables(key: Array) -> dict[str, Any]:
        fresh = dict(task.init(key))
        if config.optim.freeze and config.optim.frozen_dtype != "float32":
            dtype = models.DTYPES[config.optim.frozen_dtype]
            fresh["params"] = optim.shorten_frozen(fresh["params"], config.optim.freeze, dtype)
        return fresh

    # Inside jit of its own, so that the three uses of the initialisation below trace the model once.
    init = jax.jit(variables)
    params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(config.seed)))["params"]
    steps_per_epoch = data_size // config.batch_size
    optimizer = optim.make_optimizer(config.optim, params, steps_per_epoch=steps_per_epoch)
    fresh = states.create(init, optimizer, task.kinds, seed=config.seed, with_ema=config.optim.ema > 0)
    shapes = jax.eval_shape(fresh)
    check_microbatches(config, task, states.of_kind(shapes.collections, task.kinds, "memory"))
    shapes = sharding.placed(config.sharding, shapes, mesh, task.kinds)
    placed = jax.tree.map(lambda s: s.sharding, shapes)
    schedule = optim.make_schedule(
        config.optim, data_size=data_size, batch_size=config.batch_size, total_steps=total_steps
    )
    step = jax.jit(
        make_train_step(config, task, optimizer, schedule, steps_per_epoch),
        in_shardings=(placed, sharding.batch_sharding(mesh)),
        out_shardings=(placed, None),
        donate_argnums=0,
    )
    return Program(mesh, shapes, jax.jit(fresh, out_shardings=placed), step)


def abstract_step_arguments(config: Config, task: Task, program: Program) -> tuple[Any, Any]:
    """The (state, batch) of a step as ShapeDtypeStructs with shardings: to trace or compile it without any data."""
    split = sharding.batch_sharding(program.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=split)
        for key, spec in abstract_batch(task, config.batch_size).items()
    }
    return program.shapes, batch
