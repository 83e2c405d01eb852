"""The systems' networks, by name.

A model knows no data, no mesh and no flags. `build` makes one from the `model` part of a config.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxvqa.errors import ConfigError, nearest
from jaxvqa.models.cmsa import CMSA
from jaxvqa.models.flamingo import Flamingo
from jaxvqa.models.mevf import BAN, SAN
from jaxvqa.models.mtpt import MTPT
from jaxvqa.models.rwsan import RWSAN
from jaxvqa.models.sysu_hcp import SysuHcp

MODELS: dict[str, type[nn.Module]] = {
    "rwsan": RWSAN,
    "cmsa": CMSA,
    "ban": BAN,
    "san": SAN,
    "mtpt": MTPT,
    "sysu_hcp": SysuHcp,
    "flamingo": Flamingo,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def build(config: Mapping[str, Any], **sizes: Any) -> nn.Module:
    """Makes a model from `config`: its `name` in `MODELS`, and the fields of that class; `dtype` as text.

    Args:
      config: the `model` part of a config.
      **sizes: fields that follow from the data, such as `vocab_size` and `num_answers`.

    Raises:
      ConfigError: an unknown name or dtype, or unknown, missing or doubled fields; all of them in one message.
    """
    fields = dict(config.items())
    name = fields.pop("name", None)
    if name not in MODELS:
        raise ConfigError(f"model.name is {name!r}; there is {', '.join(MODELS)}.{nearest(str(name), MODELS)}")
    # `parent` and `name` are fields that linen adds.
    known = {f.name: f for f in dataclasses.fields(MODELS[name]) if f.name not in ("parent", "name")}
    faults = [f"model.{f} is no field of {name!r}.{nearest(f, known)}" for f in (*fields, *sizes) if f not in known]
    faults += [f"model.{f} is set, but it follows from the data." for f in fields if f in sizes]
    fields |= sizes
    faults += [
        f"model.{name_} is missing."
        for name_, f in known.items()
        if f.default is dataclasses.MISSING and name_ not in fields
    ]
    if "dtype" in fields:
        dtype = fields["dtype"]
        if dtype not in DTYPES:
            faults.append(f"model.dtype is {dtype!r}; there is {', '.join(DTYPES)}.{nearest(str(dtype), DTYPES)}")
        fields["dtype"] = DTYPES.get(dtype)
    if {"width", "heads"} <= known.keys():
        width, heads = (fields.get(f, known[f].default) for f in ("width", "heads"))
        if width % heads:
            faults.append(f"model.width is {width}, which model.heads = {heads} does not divide.")
    if faults:
        raise ConfigError("\n".join(faults))
    return MODELS[name](**fields)
