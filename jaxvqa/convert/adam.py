"""The state of `torch.optim.Adam` and Adamax to ours and back.

Its moments are shaped like the parameters, so that the system's own key table converts them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa.convert.table import Table, to_jax, to_torch
from jaxvqa.errors import CheckpointError
from jaxvqa.types import Params

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


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`torch.optim.Adam`, or one like it, over a checkpoint's parameters: an entry of its file.

    Attributes:
      settings: the parameter group that it writes before its first step, without `params`.
      rate: name of the file's entry whose number is such an optimiser's `lr`; empty: that of `settings`.
      second: what it calls the second moment.
      groups: the parameters' keys -> those of each of its groups.
      scale: the later groups' `lr` as a share of the first one's.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=lambda: ADAM)
    rate: str = ""
    second: str = "exp_avg_sq"
    groups: Callable[[Sequence[str]], list[list[str]]] = lambda keys: [list(keys)]
    scale: float = 1.0

    def read(self, optimizer: Any, keys: Sequence[str], table: Table, params: Params) -> AdamState | None:
        """Reads what `state_dict()` wrote.

        Args:
          optimizer: `state` and `param_groups`.
          keys: the parameters' keys in the file's order.
          table: the system's rules, whose paths begin with their collection.
          params: nested dict with the shape and dtype of each parameter.

        Returns:
          The state, or None for an optimiser that has not made a step.

        Raises:
          CheckpointError: it is not the state of one such optimiser over exactly these parameters.
        """
        whole = optimizer if isinstance(optimizer, Mapping) else {}
        state, groups = whole.get("state"), whole.get("param_groups")
        if isinstance(state, Mapping) and not state:
            return None
        ours = self.groups(keys)
        sizes, keys = [len(group) for group in ours], [key for group in ours for key in group]
        if (
            not isinstance(state, Mapping)
            or not all(isinstance(entry, Mapping) for entry in state.values())
            or not isinstance(groups, Sequence)
            or not all(isinstance(group, Mapping) and isinstance(group.get("params"), Sequence) for group in groups)
            or len(groups) != len(sizes)
        ):
            count = "one group" if len(sizes) == 1 else f"{len(sizes)} groups"
            raise CheckpointError(
                f"The optimiser's state is not that of one torch.optim.Adam: expected `state` and {count}." + ALONE
            )
        held = [len(group["params"]) for group in groups]
        if held != sizes:
            counts = (" + ".join(map(str, these)) for these in (held, sizes))
            raise CheckpointError("The optimiser holds {} parameters, the checkpoint {}.".format(*counts) + ALONE)
        indices = [i for group in groups for i in group["params"]]
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        broken = [
            f"{key} (number {i})"
            for i, key in zip(indices, keys, strict=True)
            if not {"step", "exp_avg", self.second} <= state.get(i, {}).keys()
        ]
        steps = {int(entry["step"]) for entry in state.values() if "step" in entry}
        if broken or len(steps) != 1:
            what = (
                f"no moments for {', '.join(broken)}"
                if broken
                else f"its parameters are at different steps {sorted(steps)}"
            )
            raise CheckpointError(
                f"The optimiser's state is not that of a torch.optim.Adam after a step: {what}." + ALONE
            )

        def moments(name: str) -> dict[str, Any]:
            tensors = {key: np.asarray(state[i][name]) for i, key in zip(indices, keys, strict=True)}
            return to_jax(tensors, table, {"params": params})[0]["params"]

        return AdamState(steps.pop(), moments("exp_avg"), moments(self.second), settings[0], settings[1:])

    def write(self, state: AdamState | None, params: Params, table: Table, rate: float | None = None) -> dict[str, Any]:
        """Writes what `load_state_dict` takes; settings that `state` lacks are those of before the first step.

        Args:
          state: the state; None for an optimiser that has not made a step.
          params: our parameters.
          table: the system's rules, whose paths begin with their collection.
          rate: the `lr` of an optimiser whose state does not say it.
        """
        first = {**self.settings, **({} if rate is None else {"lr": rate}), **(state.settings if state else {})}
        dtypes = {key: str(value.dtype) for key, value in to_torch({"params": params}, table).items()}
        groups = self.groups(list(dtypes))
        entries: dict[int, Any] = {}
        if state is not None:
            mu, nu = (to_torch({"params": moments}, table, dtypes) for moments in (state.mu, state.nu))
            entries = {
                i: {"step": np.asarray(state.step, np.float32), "exp_avg": mu[key], self.second: nu[key]}
                for i, key in enumerate(key for group in groups for key in group)
            }
        later = list(state.later_settings) if state else []
        later += [{**first, "lr": first["lr"] * self.scale}] * (len(groups) - 1 - len(later))
        numbers = iter(range(len(dtypes)))
        return {
            "state": entries,
            "param_groups": [
                {**settings, "params": list(itertools.islice(numbers, len(keys)))}
                for settings, keys in zip((first, *later), groups, strict=True)
            ],
        }


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

ADAMAX: Mapping[str, Any] = {
    **{name: value for name, value in ADAM.items() if name not in ("amsgrad", "fused", "decoupled_weight_decay")},
    "lr": 2e-3,
}
"""The same of PyTorch's Adamax."""
