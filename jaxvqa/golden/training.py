"""How training cases are decided: in float64.

Ours are computed twice, in float32 and in float64, and compared with what the original computed in float32. In float64 each
output has to agree to 1e-4 of its scale (`golden.LIMIT`). In float32 it need not: where a rectifier's input is within rounding
of 0, its sign differs from one processor to another, and with it gradients by 1e-3, though no formula is wrong. Such a
difference moves a few entries, not most of them, and hardly the loss: in float32 losses decide, and the median difference of
the parameters' norms; everything else is shown, and fails only where it is not finite. Both precisions run the same code.

The original's own float32 has such flips too. Between its steps they reach the parameters, the smallest ones most: what depends
on a step is compared on the scale of the largest parameter, and by the median. A manifest may state how far the original's
numbers are from its own in float64 (`float32_error`), or hold both: where that is more than the rule, those cannot decide.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxvqa.golden.runner import LIMIT, Case, Row, differences, failed


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

    def loss(self, output: str, ours: Any) -> Row:
        """Compares a loss, or several: decides in both precisions."""
        return self._row(self.case.attempt(output, lambda: self.case.compare(output, ours)))

    def values(self, output: str, ours: Any, **how: Any) -> Row:
        """Compares an array, `how` as for `Case.compare`: decides in float64."""
        row = self._row(self.case.attempt(output, lambda: self.case.compare(output, ours, **how)))
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

    def norms(
        self, output: str, ours: Any, only: Sequence[bool] | np.ndarray | None = None, *, moved: bool = False
    ) -> Iterator[Row]:
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


def in_both(case: Case, compute: Callable[[Precision], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a training case in float32 and in float64, of which those that decide are marked so."""
    for dtype in (np.float32, np.float64):
        precision = Precision(case, dtype)
        try:
            with jax.enable_x64(dtype == np.float64):
                yield from compute(precision)
        except Exception as error:  # the other precision goes on
            yield failed(case.name, f"({precision.name})", error)


OPTIMIZERS = {"adam": "adam", "adamw": "adam", "adamax": "adamax", "sgd": "sgd"}
"""PyTorch's optimiser -> `config.optim.name`."""


def optim_config(given: Mapping[str, Any]) -> tuple[ml_collections.ConfigDict, frozenset[str]]:
    """Translates PyTorch's options of an optimiser into `config.optim`, with PyTorch's defaults.

    Args:
      given: `name`, `betas`, `eps`, `weight_decay`, `momentum`, `nesterov`, `clip_norm`; others are not read.

    Returns:
      The config, and the names that it read.
    """
    name = str(given["name"]).lower()
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimiser {given['name']!r}; there is {', '.join(OPTIMIZERS)}")
    b1, b2 = given.get("betas", (0.9, 0.999))
    decay = given.get("weight_decay", 0.0)
    table = ((".*", decay),) if decay else ()
    config = {
        **{"name": OPTIMIZERS[name], "b1": b1, "b2": b2, "eps": given.get("eps", 1e-8)},
        **{"momentum": given.get("momentum", 0.0), "nesterov": given.get("nesterov", False)},
        **{"clip_norm": given.get("clip_norm", 0.0) or 0.0, "lr_scale": (), "freeze": ()},
        # AdamW's decay does not go through the rule.
        **{"decay": table if name == "adamw" else (), "coupled_decay": () if name == "adamw" else table},
    }
    read = frozenset({"name", "betas", "eps", "weight_decay", "momentum", "nesterov", "clip_norm"})
    return ml_collections.ConfigDict(config), read
