"""SYSU-HCP's checkpoints (github.com/Rodger-Huang/SYSU-HCP-at-ImageCLEF-VQA-Med-2021): keys and the layout of the file.

A file is `backbone_epoch-E_ACC_ACCPP.pth`, an outer dict of `epoch`, `run_id` and `state_dict`, whose keys begin with
`module.`, or the tensors alone, with or without that prefix. Only its name tells the backbone. SYSU spec, section 11.

The networks with HAGAP list every tensor of their tower twice: as part of the ImageNet network that they were made from, and
under its own name. The latter is the one that counts, as in the original's own loading, and both are written. That ImageNet
network's classifier is in the file too, and nothing uses it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import files
from jaxvqa.convert.layers import COUNTER, LINEAR, counted_batches, in_collections, under, with_counters
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax, to_torch
from jaxvqa.convert.towers.densenet import DENSENET
from jaxvqa.convert.towers.inception_resnet import INCEPTION_RESNET_V2
from jaxvqa.convert.towers.inception_v4 import INCEPTION_V4
from jaxvqa.convert.towers.polynet import POLYNET
from jaxvqa.convert.towers.repvgg import REPVGG
from jaxvqa.convert.towers.resizer import RESIZER
from jaxvqa.convert.towers.resnest import RESNEST
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.convert.towers.se_resnet import SE_RESNET
from jaxvqa.convert.towers.vgg import vgg
from jaxvqa.convert.towers.xception import XCEPTION
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build
from jaxvqa.models.sysu_hcp import BACKBONES

IMAGENET_CLASSES = 1000
"""Of the classifier that the networks with HAGAP hold and do not use."""


# --- whole networks ----------------------------------------------------------------------------------------------------


def _table(*rules: Iterable[Rule], excused: str = "") -> Table:
    return Table(in_collections(rule for part in rules for rule in part), (COUNTER, *filter(None, [excused])))


def _plain(tower: list[Rule], classifier: str) -> Table:
    return _table(under("tower", tower), nested(classifier, "head/classifier", LINEAR))


def _twice(attribute: str, tower: list[Rule]) -> Table:
    """A tower under an attribute, with its unused classifier, and under its own names."""
    last = nested("classifier", "head/classifier", LINEAR)
    return _table(nested(attribute, "tower", tower), under("tower", tower), last, excused=rf"{attribute}\.fc\..*")


def _plain_vgg(depth: int, norm: bool) -> Table:
    head = [
        *nested("classifier.0", "head/hidden_1", LINEAR),
        *nested("classifier.3", "head/hidden_2", LINEAR),
        *nested("classifier.6", "head/classifier", LINEAR),
    ]
    return _table(under("tower", vgg(depth, norm, "features.{n}")), head)


def _twice_vgg(depth: int, norm: bool = False, *, resizer: bool = False, scales: int = 0) -> Table:
    tower = [*vgg(depth, norm, "vgg.{n}"), *vgg(depth, norm, "conv{part}.{m}")]
    head = nested("classifier", "head/classifier", LINEAR)
    if scales:
        head = [r for i in range(1, scales + 1) for r in nested(f"fc{i}", f"head/classifier_{i}", LINEAR)]
    return _table(nested("resizer", "resizer", RESIZER) if resizer else [], under("tower", tower), head)


KEYS: Mapping[str, Table] = {
    **{f"resnet{depth}": _plain(RESNET, "fc") for depth in (18, 34, 50, 101)},
    "resnet50HGap": _twice("resnet50", RESNET),
    **{f"resnest{depth}": _plain(RESNEST, "fc") for depth in (50, 101)},
    "resnest50HGap": _twice("resnest50", RESNEST),
    "vgg16": _plain_vgg(16, False),
    "vgg16_bn": _plain_vgg(16, True),
    "vgg19": _plain_vgg(19, False),
    "vgg19_bn": _plain_vgg(19, True),
    "vgg16HGap": _twice_vgg(16),
    "vgg16HGap_bn": _twice_vgg(16, True),
    "vgg16HGap_resizer": _twice_vgg(16, resizer=True),
    "vgg19HGap": _twice_vgg(19),
    "vgg16_add": _twice_vgg(16, scales=4),
    "vgg16_multi_scales": _twice_vgg(16, scales=4),
    **{
        f"densenet{depth}": _table(
            under("tower", [Rule(f"features.{r.key}", r.path, r.change) for r in DENSENET]),
            nested("classifier", "head/classifier", LINEAR),
        )
        for depth in (121, 169, 201)
    },
    **{f"RepVGG-{size}": _plain(REPVGG, "linear") for size in ("B0", "B1", "B2")},
    "se_resnet50": _plain(SE_RESNET, "last_linear"),
    "xception": _plain(XCEPTION, "last_linear"),
    "inceptionv4": _plain(INCEPTION_V4, "last_linear"),
    "inceptionresnetv2": _plain(INCEPTION_RESNET_V2, "last_linear"),
    "polynet": _plain(POLYNET, "last_linear"),
}
"""Backbone -> its table."""

UNUSED = {"resnet50HGap": "resnet50.fc", "resnest50HGap": "resnest50.fc"}
"""Backbone -> key of the classifier that nothing uses."""

SIZED: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, Any]]] = {
    "resnest": (
        "resnest50",
        {"layers": "blocks", "stem_width": "stem_width", "bottleneck_width": "bottleneck_width", "radix": "radix"},
        {"groups": 1, "deep_stem": True, "avg_down": True, "avd": True, "avd_first": False},
    ),
    "RepVGG": ("RepVGG-B0", {"num_blocks": "blocks", "width_multiplier": "widths"}, {}),
    "densenet": (
        "densenet121",
        {"block_config": "blocks", "growth_rate": "growth", "num_init_features": "width", "bn_size": "bottleneck"},
        {},
    ),
}
"""The original's class -> a backbone of that class; its option -> the tower's field; options that have one value here."""

SIZES = ("num_answers",)
"""Fields of the model that a checkpoint tells. The backbone's name has to be given, as do sizes other than the published."""


def infer_sizes(tensors: Mapping[str, np.ndarray], backbone: str) -> dict[str, Any]:
    """Reads off the number of classes; nothing where its tensor is missing."""
    names = [
        r.key for r in KEYS[backbone].rules if r.path.startswith("params/head/classifier") and r.path.endswith("bias")
    ]
    found = [len(tensors[name]) for name in names if name in tensors and tensors[name].ndim]
    return {"num_answers": found[-1]} if found else {}


def model_config(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a name and options of the original's classes into the `model` part of a config.

    Args:
      model: a backbone's name, or `resnest`, `RepVGG` or `densenet` for one of other sizes.
      options: the arguments of its class.

    Raises:
      CheckpointError: lists each option that is not known, or not offered here.
    """
    rest = dict(options)
    config: dict[str, Any] = {"name": "sysu_hcp", "backbone": model, "num_answers": rest.pop("num_classes")}
    if model in SIZED:
        config["backbone"], names, fixed = SIZED[model]
        config["sizes"] = {names[name]: rest.pop(name) for name in names if name in rest}
        rest = {name: value for name, value in rest.items() if name not in fixed or value != fixed[name]}
    if model == "RepVGG":
        factors = config["sizes"].pop("widths")
        widths = [round(64 * factors[0]), *(round(n * f) for n, f in zip((64, 128, 256, 512), factors, strict=True))]
        config["sizes"]["widths"] = (min(64, widths[0]), *widths[1:])
    _known(config["backbone"])
    if rest:
        raise CheckpointError(f"{model} is not offered with {', '.join(f'{k} = {v!r}' for k, v in rest.items())}.")
    return config


@dataclasses.dataclass
class Converted:
    """A checkpoint of the original in our terms.

    Attributes:
      variables: `params` and `batch_stats`, nested dicts of float32 arrays.
      epoch: number of the epoch after which the file was written, from 0; None when it does not say.
      run_id: the original's number of the run, or None.
      batches: how many batches the statistics have seen.
      sizes: the fields `SIZES` of the model.
      unused: the tensors that nothing uses, by their key, for `save`.
      report: what was used.
    """

    variables: dict[str, Any]
    epoch: int | None
    run_id: int | None
    batches: int
    sizes: dict[str, Any]
    unused: dict[str, np.ndarray]
    report: Report


def load(path: files.Source, config: Mapping[str, Any]) -> Converted:
    """Reads a checkpoint of the original.

    Args:
      path: a `.pth` file in the original's layout or with the tensors alone, or `.safetensors`.
      config: the `model` part of a config, with the `backbone`. The number of classes is read from the file; where the config
        has one it must agree.

    Raises:
      CheckpointError: the file cannot be read, or does not fit; lists all faults.
    """
    backbone = _known(config.get("backbone"))
    file = files.read(path)
    # 1 stands for a size that neither tells: its tensor is missing, and shall be reported with all the other faults.
    sizes = {"num_answers": 1} | infer_sizes(file.tensors, backbone)
    sizes |= {name: value for name, value in config.items() if name in SIZES}
    shapes = target({"name": "sysu_hcp"} | dict(config.items()) | sizes)
    variables, report = to_jax(file.tensors, KEYS[backbone], shapes)
    unused = {key: file.tensors[key] for key in report.excused if not key.endswith("num_batches_tracked")}
    numbers = (files.number(file, name) for name in ("epoch", "run_id"))
    epoch, run_id = (None if value is None else int(value) for value in numbers)
    return Converted(variables, epoch, run_id, counted_batches(file.tensors), sizes, unused, report)


def save(
    path: str | Path,
    variables: Mapping[str, Any],
    backbone: str,
    *,
    epoch: int = 0,
    run_id: int = 0,
    batches: int = 0,
    unused: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a checkpoint that the original reads: same keys, order, shapes, dtypes and outer layout.

    A `.safetensors` file holds the tensors alone.

    Args:
      path: the file to write; `.pth`, `.pt` or `.safetensors`.
      variables: our `params` and `batch_stats`.
      backbone: the network's name.
      epoch: number of the epoch after which this is written, from 0.
      run_id: the original's number of the run.
      batches: how many batches the statistics have seen.
      unused: the tensors that nothing uses, as `load` gave them. Zeros where they are not given: the original asks for them,
        and no output depends on them.
    """
    tensors = to_original(variables, backbone, batches, unused)
    files.write(path, files.TorchFile(tensors, prefixed=True, extra={"epoch": epoch, "run_id": run_id}))


def target(config: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes and dtypes of the variables of a model of this config."""
    side = BACKBONES[config["backbone"]].image_size
    return jax.eval_shape(lambda key: build(config).init(key, image=jnp.zeros((1, side, side, 3))), jax.random.key(0))


def to_original(
    variables: Mapping[str, Any], backbone: str, batches: int, unused: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Turns our variables into the original's tensors, with what it writes besides: counters and the unused classifier."""
    tensors = with_counters(to_torch(variables, KEYS[_known(backbone)]), batches)
    if backbone not in UNUSED:
        return tensors
    classifier = UNUSED[backbone]
    network = classifier.removesuffix("fc")
    own = {key: value for key, value in tensors.items() if key.startswith(network)}
    width = len(next(value for key, value in reversed(own.items()) if key.endswith("running_var")))
    shapes = {f"{classifier}.weight": (IMAGENET_CLASSES, width), f"{classifier}.bias": (IMAGENET_CLASSES,)}
    rest = {key: (unused or {}).get(key, np.zeros(shape, np.float32)) for key, shape in shapes.items()}
    return own | rest | {key: value for key, value in tensors.items() if key not in own}


def _known(backbone: str | None) -> str:
    if backbone is None or backbone not in KEYS:
        hint = nearest(str(backbone), KEYS)
        raise CheckpointError(f"The model's backbone is {backbone!r}; there are keys of {', '.join(KEYS)}.{hint}")
    return backbone
