"""One way of writing a network's tensors: a key table, and what stands in a file besides what the table takes."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from jaxvqa.convert.layers import Stacked, with_counters
from jaxvqa.convert.table import Report, Table, Tensors, to_jax, to_torch


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that the original writes and nothing here reads: a mask, a counter, the classifier of another task.

    Attributes:
      beside: regular expression of the key (a whole key) that it stands in front of.
      key: its own key, with the groups of `beside` as `\\1`.
      make: (all tensors, the key beside it) -> the array that the original begins with.
      after: whether it stands behind that key instead.
    """

    beside: str
    key: str
    make: Callable[[Tensors, str], np.ndarray]
    after: bool = False


def _unchanged(key: str) -> str:
    return key


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of writing a network's tensors.

    Attributes:
      table: its rules.
      sign: regular expression of a key that only this layout has, where a network has several.
      stacked: linear layers that are split before the rules are applied.
      prefix: what files of a part, such as a bare tower, lack before each key.
      renamed: (regular expression, what stands for it in the table) of other names in keys.
      spelled: the table's key -> the key that is written.
      constants: what the original writes besides.
    """

    table: Table
    sign: str = ""
    stacked: tuple[Stacked, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    spelled: Callable[[str], str] = _unchanged
    constants: tuple[Constant, ...] = ()

    @functools.cached_property
    def _others(self) -> re.Pattern[str]:
        """Keys that no rule takes: those that the table excuses, and what is split before."""
        ends = [part.key.replace("{}", kind) for part in self.stacked for kind in ("weight", "bias")]
        return re.compile("|".join([*self.table.excused, *(rf"(.*\.)?{re.escape(end)}" for end in ends)]) or "(?!)")

    def takes(self, key: str) -> bool:
        """Whether a file's key is one of this layout's."""
        for old, new in self.renamed:
            key = re.sub(old, new, key)
        return any(self.table.taking(name) or self._others.fullmatch(name) for name in {key, self.prefix + key})

    def bare(self, tensors: Mapping[str, Any]) -> bool:
        """Whether the keys are those of a part, which lack the prefix."""
        return not any(key.startswith(self.prefix) for key in tensors)

    def as_bare(self) -> "Layout":
        """The same, written without the prefix."""
        return dataclasses.replace(self, spelled=lambda key: key.removeprefix(self.prefix))

    def current(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The tensors under the names that the table has."""
        before = self.prefix if self.bare(tensors) else ""
        result = dict(tensors)
        for old, new in self.renamed:
            result = {re.sub(old, new, key): value for key, value in result.items()}
        return {before + key: value for key, value in result.items()}

    def read(self, tensors: Tensors, target: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
        """Our variables from the original's tensors under current names; see `to_jax`."""
        for stacked in self.stacked:
            tensors = stacked.split(tensors)
        return to_jax(tensors, self.table, target)

    def places(self, keys: Iterable[str], collections: Collection[str]) -> dict[str, str]:
        """The original's own arrays of some of our collections, each once.

        Args:
          keys: a file's, in its order, under current names.
          collections: ours that count.

        Returns:
          The first of the names of each -> our path, in the file's order; of what is stacked, the path of its first part.
        """
        found: dict[str, str] = {}
        for key in keys:
            alone = next((name for part in self.stacked if (name := part.first(key))), key)
            path = self.table.path(alone)
            if path.partition("/")[0] in collections:
                found.setdefault(path, key)
        return {key: path for path, key in found.items()}

    def tensors(self, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The original's tensors under current names, without what it writes besides; see `to_torch`."""
        tensors = to_torch(variables, self.table)
        for stacked in self.stacked:
            tensors = stacked.join(tensors)
        return tensors

    def write(
        self, variables: Mapping[str, Any], batches: int = 0, unused: Tensors | None = None
    ) -> dict[str, np.ndarray]:
        """The original's tensors from our variables; see `to_torch`.

        Args:
          variables: parameters and the other collections.
          batches: how many batches the statistics of batch normalisation have seen.
          unused: the tensors that nothing reads, by their key, as `Original.load` gave them: those are written. Without them
            the file has all of `constants`, as the original begins with them.
        """
        tensors = with_counters(self.tensors(variables), batches)
        result: dict[str, np.ndarray] = {}
        for key, value in tensors.items():
            around: tuple[dict[str, np.ndarray], ...] = ({}, {})
            for constant in self.constants:
                if match := re.fullmatch(constant.beside, key):
                    name = match.expand(constant.key)
                    if unused is None or name in unused:
                        around[constant.after][name] = (
                            constant.make(tensors, key) if unused is None else np.asarray(unused[name])
                        )
            result |= around[False] | {key: value} | around[True]
        return {self.spelled(key): value for key, value in result.items()}
