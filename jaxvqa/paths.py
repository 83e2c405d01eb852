"""Parameter trees seen as flat maps from a path ("encoder/attention/key/kernel") to a leaf, and tables of rules over them.

Whatever is chosen per parameter (frozen or not, decay, rate multiplier, sharding, what not to load) is an ordered
table of `(regex, value)` rows: the first row whose regex matches the whole path wins.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxvqa.errors import ConfigError, nearest

Table = Sequence[tuple[str, Any]]


def path_of(key_path: Sequence[Any]) -> str:
    """Joins a JAX key path to "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in the tree's own order."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of a flat {path: leaf} map: the inverse of `flatten` for trees of dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def tops(chosen: Collection[str], every: Iterable[str]) -> list[str]:
    """The tops of the subtrees that hold chosen paths alone, as few as there can be; "" where all are chosen."""
    every, chosen = list(every), set(chosen)
    of_all = Counter(top for path in every for top in _above(path))
    of_chosen = Counter(top for path in chosen for top in _above(path))
    whole = (next(top for top in _above(path) if of_all[top] == of_chosen[top]) for path in every if path in chosen)
    return list(dict.fromkeys(whole))


def under(tops: Collection[str], every: Iterable[str]) -> list[str]:
    """Those of the paths that one of `tops` is, or stands above."""
    return [path for path in every if any(top in tops for top in _above(path))]


def _above(path: str) -> Iterator[str]:
    """A path's prefixes, from the empty one to itself."""
    parts = path.split("/")
    yield ""
    yield from ("/".join(parts[: i + 1]) for i in range(len(parts)))


def lookup(table: Table, tree: Any, what: str) -> Any:
    """Gives each leaf of `tree` the value of the first row of `table` that matches its path.

    Args:
      table: rows of (regex over the whole path, value).
      tree: any tree; only its structure and paths are read.
      what: name of the table for messages, as the config spells it.

    Returns:
      A tree of the same structure.

    Raises:
      ConfigError: names every path that no row matches, and every row that matches no path: both are misspellings.
    """
    paths = list(flatten(tree))
    rows = [(re.compile(regex), value) for regex, value in table]
    found = {path: next((i for i, (regex, _) in enumerate(rows) if regex.fullmatch(path)), None) for path in paths}
    faults = [f"no row matches the parameter {path!r}" for path, row in found.items() if row is None]
    for regex, _ in rows:
        if not any(regex.fullmatch(path) for path in paths):
            faults.append(f"the row {regex.pattern!r} matches no parameter.{nearest(regex.pattern, paths)}")
    if faults:
        raise ConfigError(f"config.{what} does not fit the model's parameters:\n  " + "\n  ".join(faults))
    return jax.tree_util.tree_map_with_path(lambda path, _: rows[found[path_of(path)]][1], tree)  # type: ignore[index]
