"""Durations, learning-rate schedules and optimisers.

The learning rate is no part of the optimiser's own state: it is a pure function of the train state's step, so a
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
from jaxvqa.errors import ConfigError

UNITS = ("steps", "epochs", "examples", "%")


def in_steps(duration: str, *, data_size: int, batch_size: int, total_steps: int | None = None) -> int:
    """Turns a duration such as "500 steps", "2 epochs", "1e6 examples" or "10 %" into a number of steps.

    An epoch has floor(data_size / batch_size) steps: the incomplete last batch is dropped. A per cent is one of
    `total_steps`.

    Raises:
      ConfigError: when the text is no duration.
    """
    text = str(duration).strip().replace("%", " %")
    number, _, unit = text.partition(" ")
    unit = unit.strip()
    unit = unit if unit.endswith("s") or unit == "%" else unit + "s"
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if value < 0 or unit not in UNITS or (unit == "%" and total_steps is None):
        raise ConfigError(
            f"{duration!r} is no duration. Write a number and one of {', '.join(UNITS)}, as in '3 epochs'."
        )
    steps_per_unit = {
        "steps": 1.0,
        "epochs": data_size // batch_size,
        "examples": 1 / batch_size,
        "%": (total_steps or 0) / 100,
    }
    return round(value * steps_per_unit[unit])


# --- schedules -------------------------------------------------------------------------------------------------------

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
    """CMSA's learning rate as rows of (epoch, share of the base rate) for the schedule `epochs` (CMSA spec, section 8).

    Four stairs from half to twice the base rate; from epoch 10 on it falls to three quarters, five times or so.
    """
    drops = range(10, epochs, 2 if epochs == 20 else max((epochs - 10) // 5, 1))
    stairs = ((epoch, (epoch + 1) / 2) for epoch in range(4))
    return (*stairs, *((epoch, 2 * 0.75**n) for n, epoch in enumerate(drops, start=1)))


def make_schedule(
    config: ml_collections.ConfigDict, *, data_size: int, batch_size: int, total_steps: int
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """The learning rate as a function of the step (counted from 0), float32.

    Args:
      config: `config.optim`: `lr`, and `schedule` with a `name`:
        `constant`; `staircase` (`warmup_epochs`, `decay_epochs`, `decay_rate`); `epochs` (`table`: rows of (epoch, share of
        `lr` from its start on), the first of epoch 0); `cosine` or `linear` (`warmup`, a duration; then down to `end`, a
        share of `lr`, at the last step).
      data_size: examples in the training set.
      batch_size: examples a step.
      total_steps: steps of the whole run.
    """
    name = config.schedule.name
    if name == "constant":
        return lambda step: jnp.asarray(config.lr, jnp.float32)
    if name == "staircase":
        boundaries, rates = staircase(
            config.lr,
            data_size=data_size,
            batch_size=batch_size,
            warmup_epochs=config.schedule.warmup_epochs,
            decay_epochs=tuple(config.schedule.decay_epochs),
            decay_rate=config.schedule.decay_rate,
        )
        edges, values = np.asarray(boundaries, np.int32), np.asarray(rates, np.float32)
        return lambda step: jnp.asarray(values)[jnp.sum(jnp.asarray(step) >= edges, dtype=jnp.int32)]
    if name == "epochs":
        epochs, shares = zip(*config.schedule.table, strict=True)
        if epochs[0] != 0 or list(epochs) != sorted(set(epochs)):
            raise ConfigError(f"config.optim.schedule.table: epochs must grow from 0 on; they are {list(epochs)}.")
        edges = np.asarray(epochs[1:], np.int32) * (data_size // batch_size)
        values = config.lr * np.asarray(shares, np.float64)
        return lambda step: jnp.asarray(values, jnp.float32)[jnp.sum(jnp.asarray(step) >= edges, dtype=jnp.int32)]
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
    raise ConfigError(f"config.optim.schedule.name is {name!r}; known are constant, staircase, epochs, cosine, linear.")


# --- optimisers ------------------------------------------------------------------------------------------------------


def make_optimizer(config: ml_collections.ConfigDict, params: Any) -> optax.GradientTransformation:
    """Gradients to update directions: clipping, the rule, decay, multipliers, freezing. The rate is applied outside.

    Args:
      config: `config.optim`: `name` (`adam`: b1, b2, eps, the eps outside the root as in PyTorch; `adamax`: the largest
        gradient in place of the root mean square, eps added to each gradient's size; `sgd`: momentum, nesterov),
        `clip_norm` (global norm, 0 = none), and three tables over parameter paths (`jaxvqa.paths.lookup`; empty =
        nothing): `decay` (decoupled weight decay), `lr_scale` (rate multipliers), `freeze` (true = fixed).
      params: the parameters or their shapes.

    Returns:
      An optax transformation whose updates still point up the gradient: the step subtracts rate times update.
    """
    rules = {
        "adam": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        "adamax": lambda: optax.scale_by_adamax(b1=config.b1, b2=config.b2, eps=config.eps),
        "sgd": lambda: optax.trace(decay=config.momentum, nesterov=config.nesterov),
    }
    if config.name not in rules:
        raise ConfigError(f"config.optim.name is {config.name!r}; known are {', '.join(rules)}.")
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(rules[config.name]())
    if config.decay:
        decay = paths.lookup(config.decay, params, "optim.decay")
        parts.append(optax.stateless(lambda u, p: jax.tree.map(lambda u, p, d: u + d * p, u, p, decay)))
    if config.lr_scale:
        scale = paths.lookup(config.lr_scale, params, "optim.lr_scale")
        parts.append(optax.stateless(lambda u, _: jax.tree.map(lambda u, s: s * u, u, scale)))
    optimizer = optax.chain(*parts)
    if config.freeze:
        frozen = paths.lookup(config.freeze, params, "optim.freeze")
        labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
        optimizer = optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
    return optimizer
