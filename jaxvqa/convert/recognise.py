"""Tells by a checkpoint's keys which system it is of: they are compared with the tables of all of them."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxvqa.convert import cmsa, flamingo, mevf, mtpt, rwsan, sysu_hcp, towers
from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layers import Stacked
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Table
from jaxvqa.errors import CheckpointError

Fits = Callable[[str], bool]
"""Whether a key is one of a layout's."""


def _table(table: Table, stacked: Iterable[Stacked] = ()) -> Fits:
    """Whether a rule takes a key, the table excuses it, or it is several linear layers side by side."""
    excused = re.compile("|".join(table.excused) or "(?!)")
    ends = tuple(part.key.replace("{}", kind) for part in stacked for kind in ("weight", "bias"))
    return lambda key: bool(table.taking(key) or excused.fullmatch(key) or (ends and key.endswith(ends)))


def _flamingo(language: str, tied: bool) -> Fits:
    fits = _table(flamingo.table(language, tied=tied), flamingo.STACKED)
    return lambda key: fits(key.removeprefix(flamingo.PREFIX))


def _layout(layout: Layout) -> Fits:
    fits = _table(layout.table, layout.stacked)

    def named_now(key: str) -> bool:
        for old, new in layout.renamed:
            key = re.sub(old, new, key)
        return fits(key) or fits(layout.prefix + key)

    return named_now


@functools.cache
def _layouts() -> Mapping[str, tuple[tuple[str, Fits], ...]]:
    """System -> how each of its layouts is asked for, and which keys it has."""

    def alone(name: str, fits: Iterable[Fits]) -> tuple[tuple[str, Fits], ...]:
        return tuple((f"--system={name}", one) for one in fits)

    backbones = tuple(
        (f"--system=sysu_hcp --config=configs/sysu_hcp.py:vqa_med_2021,{name}", _table(table))
        for name, table in sysu_hcp.KEYS.items()
    )
    variants = [(language, tied) for language in flamingo.BLOCKS for tied in (True, False)]
    return {
        "rwsan": alone("rwsan", [_table(rwsan.KEYS)]),
        "cmsa": alone("cmsa", [_table(cmsa.KEYS)]),
        **{name: alone(name, [_table(table)]) for name, table in mevf.KEYS.items()},
        "mtpt": alone("mtpt", [_table(mtpt.KEYS["decoder"]), _table(mtpt.KEYS["compatibility"])]),
        "flamingo": alone("flamingo", [_flamingo(*variant) for variant in variants]),
        **{name: alone(name, map(_layout, towers.TOWERS[name].layouts)) for name in ("gpt2", "bert", "clip_vision")},
        "autoencoder": alone("autoencoder", [_table(mevf.AUTOENCODER_FILE)]),
        "backbone": alone("backbone", [_table(mtpt.BACKBONE_FILE)]),
        "sysu_hcp": backbones,
    }


def check(file: TorchFile, system: str, model: Mapping[str, Any]) -> None:
    """Sees whether a file is of another system than the one that was asked for.

    Args:
      file: the file.
      system: the system that was asked for.
      model: the `model` part of its config, whose `backbone` counts for SYSU-HCP's networks.

    Raises:
      CheckpointError: its keys are those of other systems; says which, and how to ask for them.
    """
    keys = [key for key in file.tensors if not key.endswith("num_batches_tracked")]
    shares = [
        (name, way, sum(map(fits, keys)) / max(len(keys), 1))
        for name, layouts in _layouts().items()
        for way, fits in layouts
    ]
    own = {"sysu_hcp_tower": "sysu_hcp"}.get(system, system)
    if own not in _layouts():
        return
    backbone = f",{model.get('backbone')}" if own == "sysu_hcp" else ""
    fitting = max(share for name, way, share in shares if name == own and way.endswith(backbone))
    best = max(share for _, _, share in shares)
    # Systems share layers: a file is another's where that one knows all of its keys, or this one hardly any.
    if fitting == best or best < 0.8 or (fitting > 0.5 and best < 1):
        return
    ways = list(dict.fromkeys(way for _, way, share in shares if share == best))
    names = list(dict.fromkeys(name for name, _, share in shares if share == best))
    raise CheckpointError(
        f"{file.path} holds no checkpoint of {system}: it looks like a checkpoint of {' or '.join(names)} "
        f"(use {' or '.join(ways[:3])})."
    )
