"""SYSU-HCP's checkpoints (github.com/Rodger-Huang/SYSU-HCP-at-ImageCLEF-VQA-Med-2021): keys and the layout of the file.

A file is `backbone_epoch-E_ACC_ACCPP.pth`, an outer dict of `epoch`, `run_id` and `state_dict`, whose keys begin with
`module.`, or the tensors alone, with or without that prefix. Only its name states the backbone.
docs/originals/sysu_hcp.md, section 11.

The networks with HAGAP list every tensor of their tower twice: as part of the ImageNet network that they were made from, and
under its own name. The latter is the one that counts, as in the original's own loading, and both are written. That ImageNet
network's classifier is in the file too, and nothing uses it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxvqa.convert.layers import COUNTER, LINEAR, in_collections, under
from jaxvqa.convert.layout import Constant, Layout
from jaxvqa.convert.original import Checkpoint, Config, Original, System, image
from jaxvqa.convert.table import Rule, Table, Tensors, nested
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
from jaxvqa.data.med_text import DiseaseList
from jaxvqa.errors import CheckpointError, choose
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


def infer_sizes(tensors: Tensors, backbone: str) -> dict[str, Any]:
    """Reads off the number of classes; nothing where its tensor is missing."""
    names = [r.key for r in KEYS[backbone].rules if re.fullmatch(r"params/head/classifier.*/bias", r.path)]
    found = [len(tensors[name]) for name in names if name in tensors and tensors[name].ndim]
    return {"num_answers": found[-1]} if found else {}


def _classifier(network: str, first: str) -> tuple[Constant, ...]:
    """ImageNet's classifier, in front of the first key of the tower's own name. It begins as zeros: no output depends on it."""

    def weight(tensors: Tensors, key: str) -> np.ndarray:
        norms = [value for name, value in tensors.items() if name.startswith(network) and name.endswith("running_var")]
        return np.zeros((IMAGENET_CLASSES, len(norms[-1])), np.float32)

    return (
        Constant(first, f"{network}.fc.weight", weight),
        Constant(first, f"{network}.fc.bias", lambda tensors, key: np.zeros(IMAGENET_CLASSES, np.float32)),
    )


CONSTANTS = {
    "resnet50HGap": _classifier("resnet50", r"conv1\.weight"),
    "resnest50HGap": _classifier("resnest50", r"conv1\.0\.weight"),
}
"""Backbone -> what its file holds and nothing uses."""


def layout(config: Config) -> Layout:
    """How a network is written."""
    backbone = _known(config.get("backbone"))
    return Layout(KEYS[backbone], constants=CONSTANTS.get(backbone, ()))


def _known(backbone: str | None) -> str:
    if backbone is None or backbone not in KEYS:
        raise CheckpointError(f"The model's backbone is {backbone!r}{choose(backbone, KEYS)}")
    return backbone


ORIGINAL = Original(
    layouts=lambda config: [layout(config)],
    infer=lambda file, given: infer_sizes(file.tensors, _known(given.get("backbone"))),
    start={"name": "sysu_hcp", "num_answers": 1},
    inputs=lambda tensors, config: {"image": image(*2 * (BACKBONES[config["backbone"]].image_size,))},
    entries={"epoch": 0, "run_id": 0},
    wrapped=True,
    variants=tuple((f" --config=configs/sysu_hcp.py:vqa_med_2021,{name}", {"backbone": name}) for name in KEYS),
)


def _settings(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    return {"model": checkpoint.config, "assets": {"masks": []}}


SYSTEMS = {
    "sysu_hcp": System(
        ORIGINAL,
        "configs/sysu_hcp.py:vqa_med_2021",
        answers=DiseaseList,
        options=("masks",),
        counts={"answers": "num_answers"},
        settings=_settings,
    ),
    "sysu_hcp_tower": System(ORIGINAL, "configs/sysu_hcp.py:vqa_med_2021", part=""),
}
