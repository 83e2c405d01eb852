"""The state of `torch.optim.Adam`, AdamW and Adamax to ours and back.

Its moments are shaped like the parameters, so that the system's own layout converts them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa.convert.files import several
from jaxvqa.convert.layout import Layout
from jaxvqa.errors import CheckpointError
from jaxvqa.types import Params

TRAINED = "params"
"""The collection that is trained."""

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
      held: the collections whose arrays it was given. Those of others than `params`, such as momentum copies, have a number in
        its list, but no gradient, and so no moments.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=lambda: ADAM)
    rate: str = ""
    second: str = "exp_avg_sq"
    groups: Callable[[Sequence[str]], list[list[str]]] = lambda keys: [list(keys)]
    scale: float = 1.0
    held: tuple[str, ...] = (TRAINED,)

    def read(self, optimizer: Any, keys: Iterable[str], layout: Layout, params: Params) -> AdamState | None:
        """Reads what `state_dict()` wrote.

        Args:
          optimizer: `state` and `param_groups`.
          keys: the file's keys in its order, under current names.
          layout: how its tensors are written.
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
        places = layout.places(keys, self.held)
        ours = self.groups(list(places))
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
        settings = [{name: _plain(value) for name, value in group.items() if name != "params"} for group in groups]
        names = {"step", "exp_avg", self.second}
        trained = {i: key for i, key in zip(indices, keys, strict=True) if _collection(places[key]) == TRAINED}
        broken = [f"{key} (number {i})" for i, key in trained.items() if not names <= state.get(i, {}).keys()]
        copies = [
            f"{key} (number {i})" for i, key in zip(indices, keys, strict=True) if i in state and i not in trained
        ]
        steps = {int(state[i]["step"]) for i in trained if "step" in state.get(i, {})}
        faults = [f"no moments for {several(broken)}"] if broken else []
        faults += [f"moments for {several(copies)}, which no gradient trains"] if copies else []
        faults += [f"its parameters are at different steps {sorted(steps)}"] if len(steps) > 1 else []
        if faults:
            raise CheckpointError(
                f"The optimiser's state is not that of a torch.optim.Adam after a step: {'; '.join(faults)}." + ALONE
            )

        def moments(name: str) -> dict[str, Any]:
            tensors = {key: np.asarray(state[i][name]) for i, key in trained.items()}
            try:
                return layout.read(tensors, {TRAINED: params})[0][TRAINED]
            except CheckpointError as error:
                raise CheckpointError(
                    f"The optimiser's {name} are those of other parameters. {error}{ALONE}"
                ) from error

        return AdamState(steps.pop(), moments("exp_avg"), moments(self.second), settings[0], settings[1:])

    def write(
        self, state: AdamState | None, variables: Mapping[str, Any], layout: Layout, rate: float | None = None
    ) -> dict[str, Any]:
        """Writes what `load_state_dict` takes; settings that `state` lacks are those of before the first step.

        Args:
          state: the state; None for an optimiser that has not made a step.
          variables: our parameters, and the other collections.
          layout: how the tensors are written.
          rate: the `lr` of an optimiser whose state does not say it.
        """
        first = {**self.settings, **({} if rate is None else {"lr": rate}), **(state.settings if state else {})}
        tensors = layout.tensors({name: variables[name] for name in self.held if name in variables})
        places = layout.places(tensors, self.held)
        groups = self.groups(list(places))
        entries: dict[int, Any] = {}
        if state is not None:
            mu, nu = (layout.tensors({TRAINED: moments}) for moments in (state.mu, state.nu))
            for i, key in enumerate(key for group in groups for key in group):
                if _collection(places[key]) == TRAINED:
                    both = (moments[key].astype(tensors[key].dtype, order="C") for moments in (mu, nu))
                    step = np.asarray(state.step, np.float32)
                    entries[i] = dict(zip(("step", "exp_avg", self.second), (step, *both), strict=True))
        later = list(state.later_settings) if state else []
        later += [{**first, "lr": first["lr"] * self.scale}] * (len(groups) - 1 - len(later))
        numbers = iter(range(len(places)))
        return {
            "state": entries,
            "param_groups": [
                {**settings, "params": list(itertools.islice(numbers, len(keys)))}
                for settings, keys in zip((first, *later), groups, strict=True)
            ],
        }


def _collection(path: str) -> str:
    return path.partition("/")[0]


def _plain(value: Any) -> Any:
    """A setting, which may be a tensor of one number."""
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


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

ADAMW: Mapping[str, Any] = {**ADAM, "weight_decay": 1e-2, "decoupled_weight_decay": True}
"""The same of PyTorch's AdamW."""

ADAMAX: Mapping[str, Any] = {
    **{name: value for name, value in ADAM.items() if name not in ("amsgrad", "fused", "decoupled_weight_decay")},
    "lr": 2e-3,
}
"""The same of PyTorch's Adamax."""
