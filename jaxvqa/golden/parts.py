"""Results of which a case stores a part, or a few numbers: which part follows from the name and from what the file holds."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxvqa.golden.cases import Case, Row

Index = tuple[slice, ...]


def compare_all(case: Case, ours: Mapping[str, Any], slices: Mapping[str, Index] | None = None) -> Iterator[Row]:
    """Compares each result that ours have, whole or in part; one that they do not have gives no row.

    Args:
      case: the case.
      ours: name -> the whole array, or for `NAME_summaries` the arrays `NAME_0`, `NAME_1` and so on.
      slices: name -> what `NAME_slice` holds of it, where the manifest does not say it, and it is not the leading entries.
    """
    for name in case.expected:
        whole, _, part = name.rpartition("_")
        if name in ours or (part == "summaries" and f"{whole}_0" in ours) or (whole in ours and part in PARTS):
            yield case.attempt(name, functools.partial(_compare, case, name, ours, slices or {}))


def _compare(case: Case, name: str, ours: Mapping[str, Any], slices: Mapping[str, Index]) -> Row:
    if name in ours:
        return case.compare(name, ours[name])
    whole, _, part = name.rpartition("_")
    if part == "summaries":
        several = [value for key, value in ours.items() if re.fullmatch(rf"{re.escape(whole)}_\d+", key)]
        return case.compare(name, np.stack([summary(x) for x in several]))
    return case.compare(name, PARTS[part](case, name, np.asarray(ours[whole]), slices.get(whole)))


def statistics(x: Any, count: int) -> np.ndarray:
    """Mean, population standard deviation, minimum, maximum, then the first values: `count` numbers."""
    x = np.asarray(x)
    moments = [x.mean(dtype=np.float64), x.std(dtype=np.float64), x.min(), x.max()]
    return np.asarray([*moments, *x.ravel()[: max(count - 4, 0)]][:count], np.float64)


def summary(x: Any) -> np.ndarray:
    """Mean, population standard deviation, largest magnitude and root mean square."""
    x = np.asarray(x, np.float64)
    return np.asarray([x.mean(), x.std(), np.abs(x).max(), np.sqrt(np.square(x).mean())])


def _slice(case: Case, name: str, x: np.ndarray, index: Index | None) -> np.ndarray:
    stated = case.manifest.get("slices", {})
    if f"out_{name}" in stated:
        names = list(stated)
        before = [stated[other] for other in names[: names.index(f"out_{name}") + 1] if "[" in stated[other]]
        if before:  # a text without brackets, such as "same of the second block", means the slice before it
            return x[read_slices(before[-1])]
    return x[index or tuple(slice(size) for size in case.expected[name].shape)]


def read_slices(text: str) -> Index:
    """Reads the first brackets of a text such as "[:, ::4] of (B,16)"."""
    match = re.search(r"\[([^\]]*)\]", text)
    if match is None:
        raise ValueError(f"no slice in {text!r}")
    return tuple(slice(*(int(x) if x.strip() else None for x in part.split(":"))) for part in match[1].split(","))


def _summary(case: Case, name: str, x: np.ndarray, _: Index | None) -> np.ndarray:
    # Of the whole, or of each row.
    return np.stack([summary(row) for row in x]) if case.expected[name].ndim == 2 else summary(x)


PARTS: Mapping[str, Any] = {
    "slice": _slice,
    "summary": _summary,
    "stats": lambda case, name, x, _: statistics(x, case.expected[name].size),
    "tl": lambda case, name, x, _: x[:, :4, :3, :3],
    "br": lambda case, name, x, _: x[:, -4:, -3:, -3:],
    "first": lambda case, name, x, _: x.reshape(len(x), -1)[:, : case.expected[name].shape[-1]],
}
"""Last part of a result's name -> what it holds, of (case, name, the whole, an index)."""
