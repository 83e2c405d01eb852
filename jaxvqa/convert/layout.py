"""One way of writing a network's tensors."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvqa.convert.layers import Stacked
from jaxvqa.convert.table import Report, Table, to_jax, to_torch


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of writing a tower's tensors.

    Attributes:
      sign: regular expression of a key that only this layout has.
      table: its rules.
      stacked: maps that are split before the rules are applied.
      prefix: what files of the bare tower lack before each key.
      renamed: (regular expression, what stands for it now) of older names in keys.
    """

    sign: str
    table: Table
    stacked: tuple[Stacked, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()

    def current(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors under today's names."""
        result = dict(tensors)
        for old, new in self.renamed:
            result = {re.sub(old, new, key): value for key, value in result.items()}
        return result

    def prefixed(self, tensors: Mapping[str, np.ndarray]) -> bool:
        """Whether the keys are those of a whole model, and not of the bare tower."""
        return any(key.startswith(self.prefix) for key in tensors)

    def read(self, tensors: Mapping[str, np.ndarray], target: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
        """The parameters from the original's tensors; see `to_jax`."""
        tensors = self.current(tensors)
        if not self.prefixed(tensors):
            tensors = {self.prefix + key: value for key, value in tensors.items()}
        for stacked in self.stacked:
            tensors = stacked.split(tensors)
        return to_jax(tensors, self.table, target)

    def write(self, params: Mapping[str, Any], *, prefixed: bool = True) -> dict[str, np.ndarray]:
        """The original's tensors from the parameters; see `to_torch`."""
        tensors = to_torch(params, self.table)
        for stacked in self.stacked:
            tensors = stacked.join(tensors)
        return tensors if prefixed else {key.removeprefix(self.prefix): value for key, value in tensors.items()}
