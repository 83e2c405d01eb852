"""The state of `torch.optim.Adam` to ours and back.

Its moments are shaped like the parameters, so that the system's own key table converts them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa.convert.table import Table, to_jax, to_torch
from jaxvqa.errors import CheckpointError

ALONE = " A file with the tensors alone converts without it."


@dataclasses.dataclass
class AdamState:
    """Adam's moments and settings.

    Attributes:
      step: steps done.
      mu: mean of the gradients, nested like the parameters.
      nu: mean of their squares, nested like the parameters.
      settings: lr, betas, eps, weight_decay and the other entries of PyTorch's parameter group, without `params`.
      later_settings: the same of each further group.
    """

    step: int
    mu: dict[str, Any]
    nu: dict[str, Any]
    settings: dict[str, Any]
    later_settings: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def from_torch(
    optimizer: Any,
    keys: Sequence[str],
    table: Table,
    target: Mapping[str, Any],
    sizes: Sequence[int] | None = None,
) -> AdamState | None:
    """Reads what `torch.optim.Adam.state_dict()` wrote.

    Args:
      optimizer: `state` and `param_groups`.
      keys: the parameters' keys in the order in which the optimiser got them.
      table: the system's rules.
      target: nested dict with the shape and dtype of each parameter.
      sizes: number of parameters in each group; one group of all by default.

    Returns:
      The state, or None for an optimiser that has not made a step.

    Raises:
      CheckpointError: it is not the state of one Adam over exactly these parameters.
    """
    whole = optimizer if isinstance(optimizer, Mapping) else {}
    state, groups = whole.get("state"), whole.get("param_groups")
    if isinstance(state, Mapping) and not state:
        return None
    sizes = [len(keys)] if sizes is None else list(sizes)
    if (
        not isinstance(state, Mapping)
        or not all(isinstance(entry, Mapping) for entry in state.values())
        or not isinstance(groups, Sequence)
        or not all(isinstance(group, Mapping) and isinstance(group.get("params"), Sequence) for group in groups)
        or len(groups) != len(sizes)
    ):
        count = "one group" if len(sizes) == 1 else f"{len(sizes)} groups"
        raise CheckpointError(
            f"The optimiser's state is none of one torch.optim.Adam: expected `state` and {count}." + ALONE
        )
    held = [len(group["params"]) for group in groups]
    if held != sizes:
        ours, theirs = (" + ".join(map(str, counts)) for counts in (held, sizes))
        raise CheckpointError(f"The optimiser holds {ours} parameters, the checkpoint {theirs}." + ALONE)
    indices = [i for group in groups for i in group["params"]]
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    broken = [
        f"{key} (number {i})"
        for i, key in zip(indices, keys, strict=True)
        if not {"step", "exp_avg", "exp_avg_sq"} <= state.get(i, {}).keys()
    ]
    steps = {int(entry["step"]) for entry in state.values() if "step" in entry}
    if broken or len(steps) != 1:
        what = (
            f"no moments for {', '.join(broken)}"
            if broken
            else f"its parameters are at different steps {sorted(steps)}"
        )
        raise CheckpointError(f"The optimiser's state is none of torch.optim.Adam after a step: {what}." + ALONE)

    def moments(name: str) -> dict[str, Any]:
        tensors = {key: np.asarray(state[i][name]) for i, key in zip(indices, keys, strict=True)}
        return to_jax(tensors, table, target)[0]

    return AdamState(steps.pop(), moments("exp_avg"), moments("exp_avg_sq"), settings[0], settings[1:])


def to_torch_state(adam: AdamState, table: Table, dtypes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Writes what `torch.optim.Adam.load_state_dict` takes; the settings that `adam` lacks are Adam's defaults.

    Args:
      adam: the state.
      table: the system's rules.
      dtypes: the parameters' keys and dtypes in the order to write, as `to_torch` takes them.
    """
    mu, nu = to_torch(adam.mu, table, dtypes), to_torch(adam.nu, table, dtypes)
    state = {
        i: {"step": np.asarray(adam.step, np.float32), "exp_avg": mu[key], "exp_avg_sq": nu[key]}
        for i, key in enumerate(mu)
    }
    return fresh_state(len(mu), adam.settings) | {"state": state}


ADAM: Mapping[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": False,
}
"""The parameter group that PyTorch's Adam writes, without `params`; older versions pass over what they do not know."""


def fresh_state(count: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an Adam over `count` parameters writes before its first step; open settings are Adam's defaults."""
    return {"state": {}, "param_groups": [{**ADAM, **settings, "params": list(range(count))}]}
