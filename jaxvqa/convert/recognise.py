"""Says by a checkpoint's keys which system it is of: they are compared with the tables of all of them."""

import functools
from collections.abc import Mapping
from typing import Any

from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.systems import SYSTEMS
from jaxvqa.errors import CheckpointError


@functools.cache
def _layouts() -> tuple[tuple[str, str, Layout], ...]:
    """(system, how it is asked for, layout) of all that files are known by."""
    return tuple(
        (name, f"--system={name}{more}", layout)
        for name, system in SYSTEMS.items()
        if name != "sysu_hcp_tower"  # the same files
        for original in system.originals
        for more, config in original.variants
        for layout in original.layouts(config)
    )


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
    shares = [(name, way, sum(map(layout.takes, keys)) / max(len(keys), 1)) for name, way, layout in _layouts()]
    own = {"sysu_hcp_tower": "sysu_hcp"}.get(system, system)
    backbone = f",{model.get('backbone')}" if own == "sysu_hcp" else ""
    fitting = max((share for name, way, share in shares if name == own and way.endswith(backbone)), default=0)
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
