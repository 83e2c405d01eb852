"""Names for what is handed from room to room."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from jaxtyping import Array, Key

Params = Mapping[str, Any]
"""A model's parameters: nested dicts of arrays, or of their shapes or shardings."""

Collections = Mapping[str, Any]
"""A model's other collections by name, such as `batch_stats`: each nested dicts as `Params`."""

Batch = Mapping[str, Array]
"""The entries of a batch by name; the first axis of each is the batch's."""

Arrays = dict[str, Array]
"""Named outputs: attention maps, logits, predictions."""

Rngs = Mapping[str, Key[Array, ""]]
"""The keys of a step's random streams by name."""

Config = ml_collections.ConfigDict
"""A config, or a part of one."""
