"""The networks that systems are put together from, by name.

Three kinds, each with one contract, so that a system may take any of a kind:

- **in stages** (`ResNet`, `VGG`, `DenseNet`, …): `stages(image, train=)` returns the maps [B, P, Q, D] of an image by name,
  from the largest to the smallest. image: float[B, H, W, C], normalised; with `train` batch normalisation takes the batch's
  statistics and updates the running ones (collection `batch_stats`).
- **image encoders** (`VisionTransformer`, `PatchResNet`, `Regions`): a call with an image returns a vector [B, E] and, among
  the named intermediates, `tokens` [B, 1 + N, D]: one for the whole image, then its patches.
- **language models** (`GPT2`, `BERT`, `PaLM`): in pieces, see `jaxvqa.models.towers.decoder`.

Everywhere `dtype` is the type of the multiplications and of what a network returns; parameters, statistics and softmaxes are
float32. None has a classifier.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxvqa.errors import ConfigError, choose, nearest
from jaxvqa.models.towers.bert import BERT
from jaxvqa.models.towers.clip import TextTransformer, VisionTransformer
from jaxvqa.models.towers.densenet import DenseNet
from jaxvqa.models.towers.efficientnet_lite import EfficientNetLite
from jaxvqa.models.towers.gpt2 import GPT2
from jaxvqa.models.towers.inception_resnet import InceptionResNetV2
from jaxvqa.models.towers.inception_v4 import InceptionV4
from jaxvqa.models.towers.med import MED
from jaxvqa.models.towers.palm import PaLM
from jaxvqa.models.towers.polynet import PolyNet
from jaxvqa.models.towers.regions import Regions
from jaxvqa.models.towers.repvgg import RepVGG
from jaxvqa.models.towers.resnest import ResNeSt
from jaxvqa.models.towers.resnet import STAGES, PatchResNet, ResNet
from jaxvqa.models.towers.se_resnet import SEResNet
from jaxvqa.models.towers.vgg import VGG
from jaxvqa.models.towers.vit import GridViT, RegionViT, ViT
from jaxvqa.models.towers.xception import Xception

Tower = tuple[type[nn.Module], Mapping[str, Any]]
"""A class, and the fields of a published size that differ from its defaults."""

LANGUAGE_MODELS: Mapping[str, Tower] = {
    "gpt2": (GPT2, {}),
    "distilgpt2": (GPT2, {"depth": 6}),
    "gpt2-medium": (GPT2, {"width": 1024, "depth": 24, "heads": 16}),
    "gpt2-large": (GPT2, {"width": 1280, "depth": 36, "heads": 20}),
    "gpt2-xl": (GPT2, {"width": 1600, "depth": 48, "heads": 25}),
    "bert": (BERT, {}),
    "bert-base-uncased": (BERT, {}),
    "pubmedbert": (BERT, {}),
    "bert-clinical": (BERT, {"vocab_size": 28996}),  # Bio_ClinicalBERT
    "bert-large-uncased": (BERT, {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096}),
    "palm": (PaLM, {}),
}
IMAGE_ENCODERS: Mapping[str, Tower] = {
    "clip": (VisionTransformer, {}),
    "ViT-B/32": (VisionTransformer, {}),
    "ViT-B/16": (VisionTransformer, {"patch": 16}),
    "ViT-L/14": (VisionTransformer, {"patch": 14, "width": 1024, "depth": 24, "heads": 16, "features": 768}),
    "resnet": (PatchResNet, {}),
    "regions": (Regions, {}),
    "vit-base": (ViT, {}),
    "vit-large": (ViT, {"width": 1024, "depth": 24, "heads": 16, "drop_path": 0.1}),
    "region-vit": (RegionViT, {}),
    "efficientnet_lite0-vit": (GridViT, {"network": EfficientNetLite, "depth": 2}),
}
TEXT_ABOUT_IMAGES: Mapping[str, Tower] = {"med": (MED, {})}
TEXT_ENCODERS: Mapping[str, Tower] = {
    "ViT-B/32": (TextTransformer, {}),
    "ViT-B/16": (TextTransformer, {}),
    "ViT-L/14": (TextTransformer, {"width": 768, "heads": 12, "features": 768}),
}
"""By the name of the image encoder that they were trained with."""

IN_STAGES: Mapping[str, Tower] = {
    **{f"resnet{depth}": (ResNet, {"depth": depth}) for depth in STAGES},
    "resnest50": (ResNeSt, {}),
    "resnest101": (ResNeSt, {"blocks": (3, 4, 23, 3), "stem_width": 64}),
    **{f"vgg{depth}": (VGG, {"depth": depth}) for depth in (16, 19)},
    **{f"vgg{depth}_bn": (VGG, {"depth": depth, "norm": True}) for depth in (16, 19)},
    "densenet121": (DenseNet, {}),
    "densenet169": (DenseNet, {"blocks": (6, 12, 32, 32)}),
    "densenet201": (DenseNet, {"blocks": (6, 12, 48, 32)}),
    "RepVGG-B0": (RepVGG, {}),
    "RepVGG-B1": (RepVGG, {"widths": (64, 128, 256, 512, 2048)}),
    "RepVGG-B2": (RepVGG, {"widths": (64, 160, 320, 640, 2560)}),
    "se_resnet50": (SEResNet, {}),
    "xception": (Xception, {}),
    "inceptionv4": (InceptionV4, {}),
    "inceptionresnetv2": (InceptionResNetV2, {}),
    "polynet": (PolyNet, {}),
    "efficientnet_lite0": (EfficientNetLite, {}),
}
TOWERS: Mapping[str, Mapping[str, Tower]] = {
    "language model": LANGUAGE_MODELS,
    "image encoder": IMAGE_ENCODERS,
    "text encoder": TEXT_ENCODERS,
    "text about images": TEXT_ABOUT_IMAGES,
    "network in stages": IN_STAGES,
}
"""Kind -> published name -> the tower."""


def fields_of(module: type[nn.Module]) -> dict[str, Any]:
    """A module's own fields by name, without those that linen adds."""
    return {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}


def make(kind: str, name: str, sizes: Mapping[str, Any], where: str, sizes_at: str, /, **fixed: Any) -> nn.Module:
    """Makes a tower.

    Args:
      kind: a key of `TOWERS`.
      name: which one of the kind.
      sizes: fields that differ from the published ones.
      where: config field that names the tower, for messages.
      sizes_at: config field that has the sizes.
      **fixed: fields that the system decides, which `sizes` cannot change, and linen's `name`.

    Raises:
      ConfigError: there is no such tower, or it has no such fields; names all of them.
    """
    known = TOWERS[kind]
    if name not in known:
        raise ConfigError(f"{where} is {name!r}, not a {kind}{choose(name, known)}")
    module, published = known[name]
    free = [f for f in fields_of(module) if f not in fixed]
    faults = [f"{sizes_at}.{f} is not a size of {name}.{nearest(f, free)}" for f in sizes if f not in free]
    if faults:
        raise ConfigError("\n".join(faults))
    given = {f: tuple(v) if isinstance(v, list) else v for f, v in sizes.items()}
    return module(**{**published, **given, **fixed})
