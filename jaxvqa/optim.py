"""Durations, learning-rate schedules and optimisers.

The learning rate is not part of the optimiser's state: it is a pure function of the train state's step, so a
restored or converted step gives the right rate whatever the optimiser holds.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxvqa import paths
from jaxvqa.errors import ConfigError, choose
from jaxvqa.types import Params

UNITS = ("steps", "epochs", "examples", "%")


def parse_duration(duration: str) -> tuple[float, str]:
    """The number and the unit, one of `UNITS`, of a duration such as "500 steps", "2 epochs", "1e6 examples" or "10 %".

    Raises:
      ConfigError: when the text is not a duration.
    """
    number, _, unit = str(duration).strip().replace("%", " %").partition(" ")
    unit = unit.strip()
    unit = unit if unit.endswith("s") or unit == "%" else unit + "s"
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf or unit not in UNITS:
        raise ConfigError(
            f"{duration!r} is not a duration. Write a number and one of {', '.join(UNITS)}, as in '3 epochs'."
        )
    return value, unit


def in_steps(duration: str, *, data_size: int, batch_size: int, total_steps: int | None = None) -> int:
    """Turns a duration such as "500 steps", "2 epochs", "1e6 examples" or "10 %" into a number of steps.

    An epoch has floor(data_size / batch_size) steps: the incomplete last batch is dropped. A per cent is one of
    `total_steps`.

    Raises:
      ConfigError: when the text is not a duration, or a per cent of nothing.
    """
    value, unit = parse_duration(duration)
    if unit == "%" and total_steps is None:
        raise ConfigError(f"{duration!r} is a per cent of nothing here: write a duration in steps, epochs or examples.")
    steps_per_unit = {
        "steps": 1.0,
        "epochs": data_size // batch_size,
        "examples": 1 / batch_size,
        "%": (total_steps or 0) / 100,
    }
    return round(value * steps_per_unit[unit])


# --- schedules -------------------------------------------------------------------------------------------------------

SCHEDULES = ("constant", "staircase", "epochs", "cosine", "linear", "cosine_per_epoch", "decay_per_epoch")
"""`config.optim.schedule.name`: see `make_schedule`."""

Staircase = tuple[list[int], list[float]]  # boundaries, rates: rates[i] holds while i boundaries are <= step


def staircase(
    lr: float, *, data_size: int, batch_size: int, warmup_epochs: int, decay_epochs: tuple[int, ...], decay_rate: float
) -> Staircase:
    """RWSAN's and MCAN's schedule: a rate that climbs by one stair an epoch, then drops at given epochs.

    With k = `warmup_epochs`, D examples and batch size B, step s (counted from 1) has the rate lr·i/(k+1) while
    s <= floor(i·D/B), for i = 1 … k, then lr. The warm-up counts D/B as a real quotient while an epoch has floor(D/B)
    steps, as the original does. `lr` itself is multiplied by `decay_rate` at the start of each epoch (counted from 0)
    in `decay_epochs`.

    Returns:
      Boundaries (steps counted from 0, increasing) and one more rate than boundaries.
    """
    climbs = [
        (math.floor(i * data_size / batch_size), lr * i / (warmup_epochs + 1)) for i in range(1, warmup_epochs + 1)
    ]
    drops = [epoch * (data_size // batch_size) for epoch in decay_epochs]
    boundaries = sorted({step for step, _ in climbs} | set(drops))

    def rate(step: int) -> float:
        base = lr
        for drop in drops:
            base = base * decay_rate if step >= drop else base
        stair = next((i for i, (end, _) in enumerate(climbs, start=1) if step < end), None)
        return base if stair is None else base * stair / (warmup_epochs + 1)

    return boundaries, [rate(step) for step in [min(boundaries, default=0) - 1, *boundaries]]


def cmsa_table(epochs: int) -> tuple[tuple[int, float], ...]:
    """CMSA's learning rate as rows of (epoch, share of the base rate) for the schedule `epochs`.

    docs/originals/cmsa.md, section 8.

    Four stairs from half to twice the base rate; from epoch 10 on it falls to three quarters, five times or so.
    """
    drops = range(10, epochs, 2 if epochs == 20 else max((epochs - 10) // 5, 1))
    stairs = ((epoch, (epoch + 1) / 2) for epoch in range(4))
    return (*stairs, *((epoch, 2 * 0.75**n) for n, epoch in enumerate(drops, start=1)))


def polynomial(step: int, total: int, power: float = 0.9) -> float:
    """(1 - step / total)^power: how much of a rate is left after `step` of `total`."""
    return (1 - step / total) ** power


def sysu_table(epochs: int, block: int = 20) -> tuple[tuple[int, float], ...]:
    """SYSU-HCP's learning rate as rows of (epoch, share of the base rate) for the schedule `epochs`.

    docs/originals/sysu_hcp.md, section 10.

    Constant over blocks of epochs. At the end of a block the polynomial of its last epoch, counted from 0, gives the share of
    the next one: 1, 0.827, 0.641, 0.448 and 0.245 for 100 epochs.
    """
    return tuple((start, polynomial(max(start - 1, 0), epochs)) for start in range(0, epochs, block))


def rates_of_epochs(
    name: str, lr: float, epochs: int, *, floor: float, decay_rate: float = 1.0
) -> Float[np.ndarray, " E"]:
    """BLIP's learning rate in each epoch from 0 to `epochs`, which is behind the last (docs/originals/blip.md, section 14).

    Args:
      name: `cosine_per_epoch`: floor + ½ (lr − floor) (1 + cos(π · epoch / epochs)), so that `floor` is never reached;
        `decay_per_epoch`: max(floor, lr · decay_rate^epoch).
      lr: that of epoch 0.
      epochs: how many the run has.
      floor: the lowest rate.
      decay_rate: of `decay_per_epoch`.
    """
    epoch = np.arange(epochs + 1, dtype=np.float64)
    if name == "cosine_per_epoch":
        return floor + (lr - floor) * (1 + np.cos(np.pi * epoch / max(epochs, 1))) / 2
    return np.maximum(floor, lr * decay_rate**epoch)


def _per_epoch(
    config: ml_collections.ConfigDict, *, data_size: int, batch_size: int, total_steps: int
) -> Callable[[Any], Float[Array, ""]]:
    """Rates that stay within an epoch, but for the warm-up in epoch 0, which an epoch that is shorter cuts off."""
    settings = config.schedule.to_dict()
    warmup, start = settings.pop("warmup"), settings.pop("warmup_from")
    climb = in_steps(warmup, data_size=data_size, batch_size=batch_size, total_steps=total_steps)
    per_epoch = max(data_size // batch_size, 1)
    rates = rates_of_epochs(lr=config.lr, epochs=math.ceil(total_steps / per_epoch), **settings)
    stairs = _in_stairs(per_epoch * np.arange(1, len(rates)), rates)
    if not climb:
        return stairs

    def rate(step: Any) -> Float[Array, ""]:
        step = jnp.asarray(step)
        climbing = jnp.float32(start) + jnp.float32(config.lr - start) * (step.astype(jnp.float32) / climb)
        return jnp.where(step < per_epoch, jnp.minimum(jnp.float32(config.lr), climbing), stairs(step))

    return rate


def _in_stairs(boundaries: Any, rates: Any) -> Callable[..., Any]:
    edges, values = np.asarray(boundaries, np.int32), np.asarray(rates, np.float32)
    return lambda step: jnp.asarray(values)[jnp.sum(jnp.asarray(step) >= edges, dtype=jnp.int32)]


def make_schedule(
    config: ml_collections.ConfigDict, *, data_size: int, batch_size: int, total_steps: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """The learning rate as a function of the step (counted from 0), float32.

    Args:
      config: `config.optim`: `lr`, and `schedule` with a `name`:
        `constant`; `staircase` (`warmup_epochs`, `decay_epochs`, `decay_rate`); `epochs` (`table`: rows of (epoch, share of
        `lr` from its start on), the first of epoch 0); `cosine` or `linear` (`warmup`, a duration; then down to `end`, a
        share of `lr`, at the last step); `cosine_per_epoch` (`floor`) or `decay_per_epoch` (`floor`, `decay_rate`), see
        `rates_of_epochs`, both with a `warmup`, in epoch 0 only, from the rate `warmup_from` to `lr`.
      data_size: examples in the training set.
      batch_size: examples a step.
      total_steps: steps of the whole run.
    """
    settings = config.schedule.to_dict()
    name = settings.pop("name")
    if name == "constant":
        return lambda step: jnp.asarray(config.lr, jnp.float32)
    if name == "staircase":
        return _in_stairs(*staircase(config.lr, data_size=data_size, batch_size=batch_size, **settings))
    if name == "epochs":
        epochs, shares = zip(*config.schedule.table, strict=True)
        if epochs[0] != 0 or list(epochs) != sorted(set(epochs)):
            raise ConfigError(f"config.optim.schedule.table: epochs must grow from 0 on; they are {list(epochs)}.")
        return _in_stairs(np.multiply(epochs[1:], data_size // batch_size), np.multiply(config.lr, shares))
    if name in ("cosine", "linear"):
        warmup = in_steps(config.schedule.warmup, data_size=data_size, batch_size=batch_size, total_steps=total_steps)
        rest = max(total_steps - warmup, 1)
        end = config.schedule.end
        decay = (
            optax.cosine_decay_schedule(config.lr, rest, alpha=end)
            if name == "cosine"
            else optax.linear_schedule(config.lr, config.lr * end, rest)
        )
        joined = optax.join_schedules([optax.linear_schedule(0.0, config.lr, max(warmup, 1)), decay], [warmup])
        return lambda step: jnp.asarray(joined(step), jnp.float32)
    if name in ("cosine_per_epoch", "decay_per_epoch"):
        return _per_epoch(config, data_size=data_size, batch_size=batch_size, total_steps=total_steps)
    raise ConfigError(f"config.optim.schedule.name is {name!r}{choose(name, SCHEDULES)}")


# --- optimisers ------------------------------------------------------------------------------------------------------


def make_optimizer(
    config: ml_collections.ConfigDict, params: Any, *, steps_per_epoch: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Gradients to update directions: clipping, the rule, decay, multipliers, freezing. The rate is applied outside.

    Args:
      config: `config.optim`: `name` (`adam`: b1, b2, eps, the eps outside the root as in PyTorch; `adamax`: the largest
        gradient instead of the root mean square, eps added to each gradient's size; `sgd`: momentum, nesterov,
        `restart_epochs`, see `restarted_momentum`), `clip_norm` (global norm, 0 = none), and tables over parameter paths
        (`jaxvqa.paths.lookup`; empty = nothing): `coupled_decay` (weight decay that goes through the rule: added to the
        gradient, after clipping, as PyTorch's SGD has it), `decay` (decoupled weight decay: added behind the rule),
        `lr_scale` (rate multipliers), `freeze` (true = fixed).
      params: the parameters or their shapes.
      steps_per_epoch: needed for `restart_epochs` only.

    Returns:
      An optax transformation whose updates still point up the gradient: the step subtracts rate times update. `update` takes
      the train state's `step` by keyword, which rules that depend on the time need, and the others pass over.
    """
    restarts = tuple(epoch * steps_per_epoch for epoch in config.restart_epochs)
    rules = {
        "adam": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        "adamax": lambda: optax.scale_by_adamax(b1=config.b1, b2=config.b2, eps=config.eps),
        "sgd": lambda: (
            restarted_momentum(config.momentum, nesterov=config.nesterov, restarts=restarts)
            if restarts
            else optax.trace(decay=config.momentum, nesterov=config.nesterov)
        ),
    }
    if config.name not in rules:
        raise ConfigError(f"config.optim.name is {config.name!r}{choose(config.name, rules)}")
    if restarts and config.name != "sgd":
        raise ConfigError(f"config.optim.restart_epochs is for sgd; config.optim.name is {config.name!r}.")
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.coupled_decay:
        parts.append(_add_parameters(paths.lookup(config.coupled_decay, params, "optim.coupled_decay")))
    parts.append(rules[config.name]())
    if config.decay:
        parts.append(_add_parameters(paths.lookup(config.decay, params, "optim.decay")))
    if config.lr_scale:
        scale = paths.lookup(config.lr_scale, params, "optim.lr_scale")
        parts.append(optax.stateless(lambda u, _: _map_trained(lambda u, s: s * u, u, scale)))
    optimizer = optax.chain(*parts)
    if config.freeze:
        frozen = paths.lookup(config.freeze, params, "optim.freeze")
        labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
        optimizer = optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
    return optax.with_extra_args_support(optimizer)


def bounded(params: Params, bounds: paths.Table) -> Params:
    """The same parameters, kept within the ends that `config.optim.bounds` gives: rows of (regex, None or (low, high))."""
    limits = paths.lookup(bounds, params, "optim.bounds")
    return jax.tree.map(lambda p, ends: p if ends is None else jnp.clip(p, *ends), params, limits)


def without_frozen_gradients(params: Any, freeze: paths.Table) -> Any:
    """The same parameters, of which those that `config.optim.freeze` fixes have a gradient of 0, which costs nothing."""
    frozen = paths.lookup(freeze, params, "optim.freeze")
    return jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)


def shorten_frozen(params: Any, freeze: paths.Table, dtype: Any = jnp.bfloat16) -> Any:
    """The same parameters, of which those that `config.optim.freeze` fixes are kept in a shorter type, in less memory."""
    frozen = paths.lookup(freeze, params, "optim.freeze")
    return jax.tree.map(lambda p, f: p.astype(dtype) if f else p, params, frozen)


def _add_parameters(shares: Any) -> optax.GradientTransformation:
    """Adds to each update its parameter times a share."""
    return optax.stateless(lambda u, p: _map_trained(lambda u, p, share: u + share * p, u, p, shares))


def _map_trained(function: Callable[..., Any], updates: Any, *trees: Any) -> Any:
    """Maps over the leaves of updates and other trees, but for what `freeze` has masked in the updates."""

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(lambda u, *rest: u if masked(u) else function(u, *rest), updates, *trees, is_leaf=masked)


def restarted_momentum(
    momentum: float, *, nesterov: bool, restarts: tuple[int, ...]
) -> optax.GradientTransformationExtraArgs:
    """Momentum that is forgotten at given steps, and of Nesterov's kind before the first of them only.

    SYSU-HCP's script makes a new optimiser at each drop of the rate, with empty buffers and, by an oversight, without Nesterov
    (docs/originals/sysu_hcp.md, section 10). When that script is resumed it has lost the momentum, and unless the checkpoint
    closes a block of epochs the rate is the base rate again, with Nesterov. Here buffers and step are part of the train state,
    and which rule holds follows from the step: a resumed run goes on as if it had never stopped.

    Args:
      momentum: what is kept of the buffer a step; buffer = momentum · buffer + gradient.
      nesterov: whether, up to the first restart, the update is gradient + momentum · buffer instead of the buffer.
      restarts: steps, counted from 0, before which the buffers are emptied.
    """

    def update(
        updates: Any, state: optax.TraceState, params: Any = None, *, step: Any, **_: Any
    ) -> tuple[Any, optax.TraceState]:
        if min(restarts) <= 0:
            raise ConfigError("config.optim.restart_epochs needs the number of steps an epoch has, and no epoch 0.")
        kept = jnp.where(jnp.isin(step, jnp.asarray(restarts)), 0.0, momentum)
        trace = jax.tree.map(lambda u, t: u + kept * t, updates, state.trace)
        if not nesterov:
            return trace, optax.TraceState(trace)
        first = step < min(restarts)
        result = jax.tree.map(lambda u, t: jnp.where(first, u + momentum * t, t), updates, trace)
        return result, optax.TraceState(trace)

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.TraceState(jax.tree.map(jnp.zeros_like, params)), update
    )
