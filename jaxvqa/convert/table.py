"""Key tables: one list of rules that renames and reshapes parameters in both directions.

A rule is (key in the original's checkpoint, our path, how the array changes):

    Rule("encoder.{i}.fc.weight", "encoder/block_{i}/up/kernel", "o i -> i o")

`{i}` stands for a number and must come back on the other side. The change is an einops pattern from the original's axes to
ours, empty when nothing changes; sizes that it leaves open come from the array it makes. The same table read from right to
left writes the original's checkpoint.

Both directions are strict: each original key is used or excused, each of our leaves is filled, every shape is checked, and
one error lists all faults: the first of each kind, and how many more there are.

Several rules may name the same path: a parameter that the original holds under several names. Loading takes the name that
comes last in the checkpoint, as the original's own loading does; writing gives every name.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import einops
import numpy as np
from flax import traverse_util

from jaxvqa.errors import CheckpointError, nearest

Tensors = Mapping[str, np.ndarray]
"""An original's tensors by their keys, in the checkpoint's order."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      key: the original's key, with placeholders such as `{i}` for numbers.
      path: our path, parts separated by `/`, with the same placeholders.
      change: einops pattern from the original's axes to ours; empty: the array stays as it is.
      dtype: type that the original has it in; empty: ours.
    """

    key: str
    path: str
    change: str = ""
    dtype: str = ""

    def __post_init__(self) -> None:
        if sorted(self.placeholders) != sorted(dict.fromkeys(_PLACEHOLDER.findall(self.path))):
            raise ValueError(f"The placeholders of {self.key!r} and {self.path!r} differ.")

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the placeholders, in the order of the key."""
        return tuple(dict.fromkeys(_PLACEHOLDER.findall(self.key)))


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of a system.

    Attributes:
      rules: the rules, in the order in which the original writes its keys. Neighbours that begin with the same
        placeholder are written together for each of its numbers.
      excused: regular expressions of keys (whole keys) that hold nothing of ours.
    """

    rules: tuple[Rule, ...]
    excused: tuple[str, ...] = ()

    def taking(self, key: str) -> list[tuple[Rule, dict[str, int]]]:
        """The rules that take a key of the original's, with the numbers for their placeholders."""
        return _fitting(self._by_key.get(_form(key), ()), "key", key)

    def making(self, path: str) -> list[tuple[Rule, dict[str, int]]]:
        """The rules that make one of our paths, with the numbers for their placeholders."""
        return _fitting(self._by_path.get(_form(path), ()), "path", path)

    def path(self, key: str) -> str:
        """Our path of a key of the original's; empty where no rule takes it."""
        return _match(self, key)[1]

    # A network has hundreds of names, and a table hundreds of rules: few are of one form.
    @functools.cached_property
    def _by_key(self) -> dict[str, list[Rule]]:
        return _by_form(self.rules, "key")

    @functools.cached_property
    def _by_path(self) -> dict[str, list[Rule]]:
        return _by_form(self.rules, "path")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion used.

    Attributes:
      used: (original key, our path, shape of our array) of each array that was taken.
      shadowed: (original key, the key that won) of names whose value another name of the same parameter replaced.
      excused: original keys left out by a rule of the table.
      dtypes: original key -> dtype as NumPy names it, in the checkpoint's order; `to_torch` writes such a layout again.
      differing: those of `shadowed` whose values are not those of the name that won.
    """

    used: tuple[tuple[str, str, tuple[int, ...]], ...]
    shadowed: tuple[tuple[str, str], ...]
    excused: tuple[str, ...]
    dtypes: Mapping[str, str]
    differing: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: "Report") -> "Report":
        """That of two files."""
        dtypes = {**self.dtypes, **other.dtypes}
        differing = self.differing + other.differing
        return Report(
            self.used + other.used, self.shadowed + other.shadowed, self.excused + other.excused, dtypes, differing
        )

    def __str__(self) -> str:
        """A table of what went where."""
        width = max((len(key) for key, _, _ in self.used), default=0)
        lines = [f"{key:{width}}  ->  {path}  {list(shape)}" for key, path, shape in self.used]
        lines += [f"{key}: not used, {winner} is the same parameter and comes later" for key, winner in self.shadowed]
        lines += [f"{key}: not used, excused" for key in self.excused]
        count = sum(int(np.prod(shape)) for _, _, shape in self.used)
        lines.append(f"{len(self.used)} arrays, {count:,} values")
        return "\n".join(lines)


def nested(key: str, path: str, rules: Iterable[Rule]) -> list[Rule]:
    """Puts `key` and `path` before every rule: a block that occurs in several places is written down once."""
    return [dataclasses.replace(r, key=f"{key}.{r.key}", path=f"{path}/{r.path}") for r in rules]


def to_jax(tensors: Tensors, table: Table, target: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Turns a checkpoint's tensors into our parameters.

    Args:
      tensors: original key -> array, in the checkpoint's order.
      table: the system's rules.
      target: nested dict with the shape and dtype of each parameter, such as `jax.eval_shape` of `init` gives.

    Returns:
      The parameters as a nested dict of NumPy arrays in the target's dtypes, and a report.

    Raises:
      CheckpointError: lists each key that no rule takes, each parameter without a value and each wrong shape.
    """
    wanted = traverse_util.flatten_dict(dict(target), sep="/")
    faults: dict[str, list[str]] = {}
    excused: list[str] = []
    unexpected: list[str] = []
    values: dict[str, np.ndarray] = {}
    source: dict[str, str] = {}  # path -> the key it was taken from
    shadowed: list[tuple[str, str, np.ndarray]] = []  # (key, path, value)
    for key, tensor in tensors.items():
        rule, path = _match(table, key)
        if rule is None or path not in wanted:
            if any(re.fullmatch(pattern, key) for pattern in table.excused):
                excused.append(key)
            else:
                unexpected.append(key)
                why = "no rule of this system takes it" if rule is None else f"the model has no {path}"
                faults.setdefault("unexpected", []).append(f"{key} {list(tensor.shape)}: {why}.")
            continue
        leaf = wanted[path]
        try:
            value = _rearrange(tensor, rule.change, tuple(leaf.shape))
        except ValueError as error:
            fault = f"{key} {list(tensor.shape)} for {path} {list(leaf.shape)}: {error}."
            faults.setdefault("wrong shape:", []).append(fault)
            value = np.zeros(leaf.shape, leaf.dtype)
        if np.issubdtype(leaf.dtype, np.integer) != np.issubdtype(value.dtype, np.integer):
            faults.setdefault("wrong type:", []).append(f"{key} is {value.dtype}, {path} is {leaf.dtype}.")
        if path in source:
            shadowed.append((source[path], path, values[path]))
        values[path] = np.asarray(value, leaf.dtype, order="C")
        source[path] = key
    for path in wanted:
        if path not in values:
            names = _names(table, path)
            name = " or ".join(names) or "no rule of this system makes it"
            hint = nearest(names[0], unexpected) if names else ""
            faults.setdefault("missing", []).append(f"{name} for {path} {list(wanted[path].shape)}.{hint}")
    if faults:
        raise _does_not_fit(tensors, table, faults, nothing_fits=not values)
    report = Report(
        used=tuple((source[path], path, values[path].shape) for path in values),
        shadowed=tuple((key, source[path]) for key, path, _ in shadowed),
        excused=tuple(excused),
        dtypes={key: str(tensor.dtype) for key, tensor in tensors.items() if key not in excused},
        differing=tuple((key, source[path]) for key, path, value in shadowed if not _same(value, values[path])),
    )
    return traverse_util.unflatten_dict({path: values[path] for path in wanted}, sep="/"), report


def to_torch(params: Mapping[str, Any], table: Table, dtypes: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Turns our parameters into the original's tensors.

    Args:
      params: nested dict of arrays.
      table: the system's rules.
      dtypes: original key -> dtype, in the order to write: a `Report`'s. Without it, the table's order and the
        parameters' own dtypes.

    Returns:
      Original key -> array, in the original's order; every name of a parameter that has several.

    Raises:
      CheckpointError: lists each parameter that no rule takes, and each key of `dtypes` that no parameter gives.
    """
    leaves = traverse_util.flatten_dict(dict(params), sep="/")
    faults: list[str] = []
    found: list[tuple[Rule, dict[str, int], str]] = []
    for path in leaves:
        rules = table.making(path)
        if not rules:
            faults.append(f"no rule of this system takes {path} {list(np.shape(leaves[path]))}.")
        found += [(rule, numbers, path) for rule, numbers in rules]
    tensors: dict[str, np.ndarray] = {}
    for rule, numbers, path in _in_order(table.rules, found):
        key = _fill(rule.key, numbers)
        before, _, after = rule.change.partition("->")
        try:
            array = _rearrange(np.asarray(leaves[path]), f"{after} -> {before}" if rule.change else "", None)
            tensors[key] = array.astype(rule.dtype) if rule.dtype else array
        except ValueError as error:
            faults.append(f"wrong shape: {path} {list(np.shape(leaves[path]))} for {key}: {error}.")
    if dtypes is not None:
        faults += [f"the layout asks for {key}, which no parameter gives." for key in dtypes if key not in tensors]
        # A file may hold one name only of a parameter that has several.
        kept = {path for rule, numbers, path in found if _fill(rule.key, numbers) in dtypes}
        faults += [f"the layout has no place for {path}." for path in leaves if path not in kept]
    if faults:
        raise CheckpointError(
            "The parameters cannot be written for this system:\n" + "\n".join(f"  {f}" for f in faults)
        )
    if dtypes is not None:
        return {key: np.asarray(tensors[key], np.dtype(dtype), order="C") for key, dtype in dtypes.items()}
    return {key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other, equal_nan=np.issubdtype(one.dtype, np.floating))


MOST_FAULTS = 10
"""So many faults of each kind are listed."""


def _does_not_fit(
    tensors: Tensors, table: Table, faults: Mapping[str, list[str]], *, nothing_fits: bool
) -> CheckpointError:
    """The error for a checkpoint with faults, by kind; one line where what stands before the keys explains them all."""
    count = sum(map(len, faults.values()))
    start = f"The checkpoint does not fit the model; {count} faults"
    prefix, fitting = _prefix_in_the_way(tensors, table)
    if 2 * fitting > len(tensors):
        which = "all keys begin" if fitting == len(tensors) else f"{fitting} of {len(tensors)} keys begin"
        return CheckpointError(f"{start}: {which} with {prefix!r}, and fit without it: give --prefix={prefix}.")
    if nothing_fits:
        some = ", ".join(list(tensors)[:3])
        return CheckpointError(
            f"{start}: none of its {len(tensors)} keys is one of this system's; the first are {some}."
        )
    lines = []
    for kind, these in faults.items():
        lines += [f"  {kind} {fault}" for fault in these[:MOST_FAULTS]]
        if len(these) > MOST_FAULTS:
            lines.append(f"  {kind.rstrip(':')}: {len(these) - MOST_FAULTS} more")
    end = "Check that the system is the right one, and that the config has the checkpoint's sizes."
    return CheckpointError("\n".join([f"{start}:", *lines, end]))


def _prefix_in_the_way(tensors: Tensors, table: Table) -> tuple[str, int]:
    """What stands before most of the keys that would fit without it, and how many these are."""
    counts: dict[str, int] = {}
    for key in tensors:
        parts = key.split(".")
        for depth in range(1, min(len(parts), 4)):
            if table.taking(".".join(parts[depth:])) and not table.taking(key):
                prefix = ".".join(parts[:depth]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    return max(counts.items(), key=lambda item: item[1], default=("", 0))


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Turns a template into a regular expression with one group a placeholder."""
    pattern, seen = "", set()
    for i, part in enumerate(_PLACEHOLDER.split(template)):
        if i % 2 == 0:
            pattern += re.escape(part)
        elif part in seen:
            pattern += f"(?P={part})"
        else:
            pattern += f"(?P<{part}>0|[1-9][0-9]*)"
            seen.add(part)
    return re.compile(pattern)


def _form(name: str) -> str:
    """A name, or a template, with every number and placeholder written as 0: what fits a template has its form."""
    return re.sub(r"[0-9]+", "0", _PLACEHOLDER.sub("0", name))


def _by_form(rules: Iterable[Rule], side: str) -> dict[str, list[Rule]]:
    """The rules by the form of their `side`, key or path."""
    result: dict[str, list[Rule]] = {}
    for rule in rules:
        result.setdefault(_form(getattr(rule, side)), []).append(rule)
    return result


def _fitting(rules: Iterable[Rule], side: str, name: str) -> list[tuple[Rule, dict[str, int]]]:
    """The rules whose `side` a name fits, with the placeholders' numbers."""
    matches = [(rule, _pattern(getattr(rule, side)).fullmatch(name)) for rule in rules]
    return [(rule, {k: int(v) for k, v in match.groupdict().items()}) for rule, match in matches if match]


def _fill(template: str, numbers: Mapping[str, int]) -> str:
    return _PLACEHOLDER.sub(lambda m: str(numbers[m[1]]), template)


def _match(table: Table, key: str) -> tuple[Rule | None, str]:
    """Finds the one rule that takes a key, and the path it gives."""
    found = table.taking(key)
    if len(found) > 1:
        raise ValueError(f"Two rules take the key {key}: {found[0][0]} and {found[1][0]}.")
    return (found[0][0], _fill(found[0][0].path, found[0][1])) if found else (None, "")


def _names(table: Table, path: str) -> list[str]:
    """Lists the original's names of one of our paths."""
    return [_fill(rule.key, numbers) for rule, numbers in table.making(path)]


def _in_order(
    rules: Sequence[Rule], found: list[tuple[Rule, dict[str, int], str]], depth: int = 0
) -> list[tuple[Rule, dict[str, int], str]]:
    """Sorts as the original writes: by rule, but neighbours with the same next placeholder by its number first."""
    ordered: list[tuple[Rule, dict[str, int], str]] = []
    start = 0
    while start < len(rules):
        name = rules[start].placeholders[depth : depth + 1]
        end = start + 1
        while name and end < len(rules) and rules[end].placeholders[depth : depth + 1] == name:
            end += 1
        run = rules[start:end]
        these = {id(rule) for rule in run}
        inside = [entry for entry in found if id(entry[0]) in these]
        if not name:
            ordered += inside
        else:
            for number in sorted({entry[1][name[0]] for entry in inside}):
                same = [entry for entry in inside if entry[1][name[0]] == number]
                ordered += _in_order(run, same, depth + 1)
        start = end
    return ordered


def _rearrange(array: np.ndarray, change: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """Applies an einops pattern, with open sizes taken from `shape`; raises ValueError when it does not give `shape`."""
    if change:
        sizes: dict[str, int] = {}
        if shape is not None:
            axes = change.partition("->")[2].split()
            if len(axes) == len(shape) and not any(c in "()." for c in change.partition("->")[2]):
                inside = {
                    name for group in re.findall(r"\(([^)]*)\)", change.partition("->")[0]) for name in group.split()
                }
                sizes = {axis: size for axis, size in zip(axes, shape, strict=True) if axis in inside}
        try:
            array = einops.rearrange(array, change, **sizes)
        except einops.EinopsError:
            raise ValueError(f"the axes do not fit '{change}'") from None
    if shape is not None and array.shape != shape:
        raise ValueError(f"it becomes {list(array.shape)}")
    return array
