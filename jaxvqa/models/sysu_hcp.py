"""SYSU-HCP: classifies the abnormality that a medical image shows.

H. Gong, R. Huang, G. Chen, G. Li, "SYSU-HCP at VQA-Med 2021: A Data-centric Model with Efficient Training Methodology for
Medical Visual Question Answering", CLEF 2021 working notes, CEUR-WS 2936. An image goes in, a score for each class comes out;
the question is not read:

    image ── tower ─┬─ stem ── pool ── layer1 ── layer2 ── layer3 ── layer4
                    └───┴───────┴────────┴─────────┴─────────┴─────────┴── means, side by side ── classifier

The means of six depths are the paper's hierarchical adaptive global average pooling ("HAGAP", "HGap" in its code), which some
of its networks have. The others have the head that they came with. Where the paper and its public code differ, this follows
the code.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models import towers
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.pooling import adaptive_average_pool, global_average, window_average
from jaxvqa.models.towers.resizer import Resizer
from jaxvqa.precision import widened

Stages = Mapping[str, Float[Array, "B H W D"]]
"""A tower's maps by name."""


class AverageHead(nn.Module):
    """A linear map of means over one or several maps, side by side.

    Attributes:
      num_answers: number of classes A.
      dtype: type of the multiplications.
      levels: names of the maps.
      windows: side of each map's window, where only the top left window is averaged; none for the whole map.
      stride: step between such windows; the window's side by default.
      relu: whether the maps go through a ReLU before.
      dropout: rate of dropout of what the linear map reads.
    """

    num_answers: int
    dtype: Any
    levels: tuple[str, ...]
    windows: tuple[int, ...] = ()
    stride: int | None = None
    relu: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, stages: Stages, *, train: bool) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Returns logits and `features` float32[B, D], what the linear map reads."""
        maps = [nn.relu(stages[name]) if self.relu else stages[name] for name in self.levels]
        if self.windows:
            means = [window_average(x, w, self.stride or w) for x, w in zip(maps, self.windows, strict=True)]
        else:
            means = [global_average(x) for x in maps]
        features = Dropout(self.dropout)(jnp.concatenate(means, axis=-1), train=train)
        return Linear(self.num_answers, self.dtype, name="classifier")(features), {"features": features}


class HiddenHead(nn.Module):
    """VGG's own: the last map as 7×7 positions, and three linear maps of all of it.

    Attributes:
      num_answers: number of classes A.
      dtype: type of the multiplications.
      level: name of the map.
      hidden: width between the linear maps.
      dropout: rate of dropout there.
    """

    num_answers: int
    dtype: Any
    level: str = "pool5"
    hidden: int = 4096
    dropout: float = 0.5

    @nn.compact
    def __call__(self, stages: Stages, *, train: bool) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Returns logits; and `avgpool` [B, 7, 7, D], `fc1` and `fc2` [B, hidden] before their ReLU, `features` [B, hidden]."""
        out = {"avgpool": adaptive_average_pool(stages[self.level], 7)}
        x = jnp.moveaxis(out["avgpool"], -1, 1).reshape(
            len(out["avgpool"]), -1
        )  # the checkpoints' order: D, rows, columns
        for i in (1, 2):
            x = out[f"fc{i}"] = Linear(self.hidden, self.dtype, name=f"hidden_{i}")(x)
            x = Dropout(self.dropout)(nn.relu(x), train=train)
        return Linear(self.num_answers, self.dtype, name="classifier")(x), out | {"features": x}


class ScalesHead(nn.Module):
    """A linear map of each of several maps' means.

    Attributes:
      num_answers: number of classes A.
      dtype: type of the multiplications.
      levels: names of the maps.
      add: whether the logits are the sum of all, or the last one's. In the latter case nothing trains the others but a loss
        that reads them in `out`; the original returns them all in training, with which its own training cannot do anything.
    """

    num_answers: int
    dtype: Any
    levels: tuple[str, ...]
    add: bool

    @nn.compact
    def __call__(self, stages: Stages, *, train: bool) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Returns logits; and `logits_1`, `logits_2`, … [B, A] of each map, `features` float32[B, D] of the last one."""
        out: dict[str, Array] = {}
        for i, name in enumerate(self.levels, 1):
            out["features"] = global_average(stages[name])
            out[f"logits_{i}"] = Linear(self.num_answers, self.dtype, name=f"classifier_{i}")(out["features"])
        scores = [out[f"logits_{i + 1}"] for i in range(len(self.levels))]
        return functools.reduce(jnp.add, scores) if self.add else scores[-1], out


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a name of the original stands for.

    Attributes:
      tower: the network that reads the image, one of `towers.IN_STAGES`.
      head: makes what classifies by its maps.
      resizer: whether the image is resized by a network of its own before.
      image_size: height and width of images that it takes; most take others as well.
    """

    tower: str
    head: Callable[..., nn.Module]
    resizer: bool = False
    image_size: int = 224


def _average(*levels: str, **fields: Any) -> Callable[..., nn.Module]:
    return partial(AverageHead, levels=levels, **fields)


_RESNET = ("stem", "pool", "layer1", "layer2", "layer3", "layer4")  # the stem's map as it is before its normalisation
_VGG = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
_WINDOWS = (224, 112, 56, 28, 14, 7)  # written for images of 224: of larger ones they see the top left part only
_WINDOWED = _average(*_VGG, windows=_WINDOWS)

_HEADS: Mapping[str, Callable[..., nn.Module]] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnest50", "resnest101"), _average("layer4")),
    **dict.fromkeys(("vgg16", "vgg16_bn", "vgg19", "vgg19_bn"), HiddenHead),
    **dict.fromkeys(("densenet121", "densenet169", "densenet201"), _average("norm5", relu=True)),
    **dict.fromkeys(("RepVGG-B0", "RepVGG-B1", "RepVGG-B2"), _average("stage4")),
    "se_resnet50": _average("layer4", windows=(7,), stride=1),
    "xception": _average("bn4", relu=True),
    "inceptionv4": _average("features21"),
}
"""Networks with the head that they came with."""

BACKBONES: Mapping[str, Backbone] = {
    **{name: Backbone(name, head) for name, head in _HEADS.items()},
    "resnet50HGap": Backbone("resnet50", _average(*_RESNET)),
    "resnest50HGap": Backbone("resnest50", _average(*_RESNET)),
    "vgg16HGap": Backbone("vgg16", _average(*_VGG)),
    "vgg16HGap_bn": Backbone("vgg16_bn", _WINDOWED),
    "vgg16HGap_resizer": Backbone("vgg16", _WINDOWED, resizer=True),
    "vgg19HGap": Backbone("vgg19", _WINDOWED),
    "vgg16_add": Backbone("vgg16", partial(ScalesHead, levels=_VGG[2:], add=True)),
    "vgg16_multi_scales": Backbone("vgg16", partial(ScalesHead, levels=_VGG[2:], add=False)),
    "inceptionresnetv2": Backbone("inceptionresnetv2", _average("conv2d_7b", windows=(8,)), image_size=299),
    "polynet": Backbone("polynet", _average("stage_c", windows=(9,), stride=1, dropout=0.2), image_size=331),
}
"""The original's name -> what it stands for. `sizes` changes a tower's fields."""


class SysuHcp(nn.Module):
    """A backbone with a classifier; the defaults are the published sizes.

    Attributes:
      num_answers: number of classes A.
      backbone: a name of `BACKBONES`.
      sizes: fields of its tower that differ from the published ones; `folded` of a RepVGG among them.
      dtype: type of the multiplications and of the activations between them; parameters, statistics, averages and logits are
        float32.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image",)

    num_answers: int
    backbone: str = "resnest50"
    sizes: Mapping[str, Any] = FrozenDict()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, *, image: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Scores every class.

        Args:
          image: float[B, H, W, 3], normalised.
          train: applies dropout where the head has any, which needs the random stream "dropout", and normalises by the batch's
            statistics, which needs the collection `batch_stats` to be mutable.

        Returns:
          float32[B, A] logits, and the named intermediates: the tower's maps [B, H', W', D] and what the head says.

        Raises:
          ConfigError: there is no such backbone, its tower has no such sizes, or its pools do not fit the image's size.
        """
        if self.backbone not in BACKBONES:
            raise ConfigError(f"model.backbone is {self.backbone!r}{choose(self.backbone, BACKBONES)}")
        backbone = BACKBONES[self.backbone]
        names = ("model.backbone", "model.sizes")
        tower = towers.make("network in stages", backbone.tower, self.sizes, *names, dtype=self.dtype, name="tower")
        if backbone.resizer:
            image = Resizer(dtype=self.dtype, name="resizer")(image, train=train)
        stages = tower.stages(image, train=train)
        logits, out = backbone.head(self.num_answers, self.dtype, name="head")(stages, train=train)
        return widened(logits), dict(stages) | out
