"""The systems' networks, by name; one of a user's own package is named by its place, as "package.module:Name".

A model knows no data, no mesh and no flags. `build` makes one from the `model` part of a config.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxvqa.errors import ConfigError, choose, nearest
from jaxvqa.models import towers
from jaxvqa.models.blip import BLIP, BlipNlvr, BlipVqa
from jaxvqa.models.cmsa import CMSA
from jaxvqa.models.flamingo import Flamingo
from jaxvqa.models.mevf import BAN, SAN
from jaxvqa.models.mtpt import MTPT
from jaxvqa.models.rwsan import RWSAN
from jaxvqa.models.sysu_hcp import BACKBONES, SysuHcp
from jaxvqa.named import Named
from jaxvqa.types import Config

MODELS: dict[str, type[nn.Module]] = {
    "rwsan": RWSAN,
    "cmsa": CMSA,
    "ban": BAN,
    "san": SAN,
    "mtpt": MTPT,
    "sysu_hcp": SysuHcp,
    "flamingo": Flamingo,
    "blip": BLIP,
    "blip_vqa": BlipVqa,
    "blip_nlvr": BlipNlvr,
}
NAMED = Named(
    "a model",
    MODELS,
    "a class of flax.linen.Module",
    lambda found: isinstance(found, type) and issubclass(found, nn.Module),
)
"""What `config.model.name` may say."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

FOLLOWING = (
    *("vocab_size", "num_answers", "classes", "image_token", "dtype"),
    *("mlmi", "types", "pooler", "with_readout", "twin", "network"),
)
"""Fields that a config does not have: a task gives those of models, Flamingo those of its language models; a tower's name says
the network in it."""

SIZES: Mapping[str, tuple[str, Mapping[str, towers.Tower]]] = {
    "sizes": ("backbone", {name: towers.IN_STAGES[backbone.tower] for name, backbone in BACKBONES.items()}),
    "branch_sizes": ("branch", towers.IN_STAGES),
    "language_sizes": ("language", towers.LANGUAGE_MODELS),
    "vision_sizes": ("vision", towers.IMAGE_ENCODERS),
    "text_sizes": ("text", towers.TEXT_ABOUT_IMAGES),
}
"""Group of `config.model` with fields of a tower -> the field that names the tower, and the towers by name."""


def default_fields(name: str) -> dict[str, Any]:
    """The fields of a model's class that a config has, with their defaults; None for one without."""
    return {
        field: {} if isinstance(value, Mapping) else value for field, value in _fields(model_class(name), {}).items()
    }


def model_class(name: str) -> type[nn.Module]:
    """The model of that name, or of a user's own at "package.module:Name".

    Raises:
      ConfigError: names the known ones, or says what is wrong with the user's own.
    """
    return NAMED.get(name, "model.name")


def tower_fields(config: Config) -> dict[str, Any]:
    """The fields of a model's towers with the values that they have by default, as `language_sizes.depth`.

    Args:
      config: the `model` part of a config. A name that is not known has no fields: `build` says so.
    """
    return {f"{group}.{field}": value for group, tower in _towers(config) for field, value in _fields(*tower).items()}


def meanings(config: Config) -> dict[str, str]:
    """What the fields of a model and its towers mean, by the docstrings of their classes; names as of `tower_fields`."""
    name = config["name"]
    found = {} if NAMED.fault(name) else _attributes(model_class(name))
    for group, (cls, _) in _towers(config):
        found |= {f"{group}.{field}": text for field, text in _attributes(cls).items()}
    return found


def _towers(config: Config) -> Iterator[tuple[str, towers.Tower]]:
    for group, (chosen, known) in SIZES.items():
        if group in config and config.get(chosen) in known:
            yield group, known[config[chosen]]


def _fields(cls: type[nn.Module], published: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: published.get(name, None if field.default is dataclasses.MISSING else field.default)
        for name, field in towers.fields_of(cls).items()
        if name not in FOLLOWING
    }


def _attributes(cls: type) -> dict[str, str]:
    """The entries of the section "Attributes:" of a class's docstring, and of those that it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(one.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for names, text in re.findall(r"^ +([\w, ]+): (.*(?:\n {3,}.*)*)", section.partition("\n\n")[0], re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def build(config: Mapping[str, Any], **sizes: Any) -> nn.Module:
    """Makes a model from `config`: its `name` (see `model_class`), and the fields of that class; `dtype` as text.

    Args:
      config: the `model` part of a config.
      **sizes: fields that follow from the data, such as `vocab_size` and `num_answers`.

    Raises:
      ConfigError: an unknown name or dtype, or unknown, missing or doubled fields; all of them in one message.
    """
    fields = dict(config.items())
    name = fields.pop("name", None)
    cls = model_class(name)
    known = towers.fields_of(cls)
    faults = [f"model.{f} is not a field of {name!r}.{nearest(f, known)}" for f in (*fields, *sizes) if f not in known]
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
            faults.append(f"model.dtype is {dtype!r}{choose(dtype, DTYPES)}")
        fields["dtype"] = DTYPES.get(dtype)
    if name in MODELS and {"width", "heads"} <= known.keys():
        width, heads = (fields.get(f, known[f].default) for f in ("width", "heads"))
        if width % heads:
            faults.append(f"model.width is {width}, which model.heads = {heads} does not divide.")
    if faults:
        raise ConfigError("\n".join(faults))
    return cls(**fields)
