"""Tells by a checkpoint's keys which system it is of: they are compared with the tables of all of them."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxvqa.convert import cmsa, flamingo, mevf, mtpt, rwsan, sysu, towers
from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.table import Table
from jaxvqa.errors import CheckpointError

Fits = Callable[[str], bool]
"""Whether a key is one of a layout's."""


def _table(table: Table) -> Fits:
    return lambda key: bool(table.taking(key))


def _flamingo(language: str, tied: bool) -> Fits:
    table = flamingo.table(language, tied=tied)
    stacked = [part.key.replace("{}", "weight") for part in flamingo.STACKED]

    def fits(key: str) -> bool:
        key = key.removeprefix(flamingo.PREFIX)
        return bool(table.taking(key)) or any(key.endswith(end) for end in stacked)

    return fits


def _layout(layout: towers.Layout) -> Fits:
    stacked = [part.key.replace("{}", kind) for part in layout.stacked for kind in ("weight", "bias")]
    excused = [re.compile(pattern) for pattern in layout.table.excused]

    def fits(key: str) -> bool:
        for old, new in layout.renamed:
            key = re.sub(old, new, key)
        whole = (key, layout.prefix + key)
        return any(layout.table.taking(name) for name in whole) or (
            not any(pattern.fullmatch(key) for pattern in excused) and any(key.endswith(end) for end in stacked)
        )

    return fits


@functools.cache
def _layouts() -> Mapping[str, tuple[tuple[str, Fits], ...]]:
    """System -> how each of its layouts is asked for, and which keys it has."""

    def alone(name: str, fits: Iterable[Fits]) -> tuple[tuple[str, Fits], ...]:
        return tuple((f"--system={name}", one) for one in fits)

    backbones = tuple(
        (f"--system=sysu --config=configs/sysu_hcp.py:vqa_med_2021,{name}", _table(table))
        for name, table in sysu.KEYS.items()
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
        "sysu": backbones,
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
    shares = {
        (name, way): sum(map(fits, keys)) / max(len(keys), 1)
        for name, layouts in _layouts().items()
        for way, fits in layouts
    }
    own = {"sysu_tower": "sysu"}.get(system, system)
    if own not in _layouts():
        return
    backbone = f",{model.get('backbone')}" if own == "sysu" else ""
    fitting = max(share for (name, way), share in shares.items() if name == own and way.endswith(backbone))
    best = max(shares.values())
    if fitting > 0.5 or best < 0.8:
        return
    ways = list(dict.fromkeys(way for (_, way), share in shares.items() if share == best))
    names = list(dict.fromkeys(name for (name, _), share in shares.items() if share == best))
    raise CheckpointError(
        f"{file.path} holds no checkpoint of {system}: it looks like a checkpoint of {' or '.join(names)} "
        f"(use {' or '.join(ways[:3])})."
    )
