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

from jaxvqa.errors import ConfigError, nearest
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.pooling import adaptive_average_pool, global_average, window_average
from jaxvqa.models.towers.densenet import DenseNet
from jaxvqa.models.towers.inception_resnet import InceptionResNetV2
from jaxvqa.models.towers.inception_v4 import InceptionV4
from jaxvqa.models.towers.polynet import PolyNet
from jaxvqa.models.towers.repvgg import RepVGG
from jaxvqa.models.towers.resizer import Resizer
from jaxvqa.models.towers.resnest import ResNeSt
from jaxvqa.models.towers.resnet import ResNet
from jaxvqa.models.towers.se_resnet import SEResNet
from jaxvqa.models.towers.vgg import VGG
from jaxvqa.models.towers.xception import Xception
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
      tower: makes the network that reads the image.
      head: makes what classifies by its maps.
      resizer: makes what changes the image before, or None.
      image_size: height and width of images that it takes; most take others as well.
    """

    tower: Callable[..., nn.Module]
    head: Callable[..., nn.Module]
    resizer: Callable[..., nn.Module] | None = None
    image_size: int = 224


def _average(*levels: str, **fields: Any) -> Callable[..., nn.Module]:
    return partial(AverageHead, levels=levels, **fields)


_RESNET = ("stem", "pool", "layer1", "layer2", "layer3", "layer4")  # the stem's map as it is before its normalisation
_VGG = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6")
_WINDOWS = (224, 112, 56, 28, 14, 7)  # written for images of 224: of larger ones they see the top left part only

BACKBONES: Mapping[str, Backbone] = {
    "resnet18": Backbone(partial(ResNet, depth=18), _average("layer4")),
    "resnet34": Backbone(partial(ResNet, depth=34), _average("layer4")),
    "resnet50": Backbone(partial(ResNet, depth=50), _average("layer4")),
    "resnet101": Backbone(partial(ResNet, depth=101), _average("layer4")),
    "resnet50HGap": Backbone(partial(ResNet, depth=50), _average(*_RESNET)),
    "resnest50": Backbone(ResNeSt, _average("layer4")),
    "resnest101": Backbone(partial(ResNeSt, blocks=(3, 4, 23, 3), stem_width=64), _average("layer4")),
    "resnest50HGap": Backbone(ResNeSt, _average(*_RESNET)),
    "vgg16": Backbone(partial(VGG, depth=16), HiddenHead),
    "vgg16_bn": Backbone(partial(VGG, depth=16, norm=True), HiddenHead),
    "vgg19": Backbone(partial(VGG, depth=19), HiddenHead),
    "vgg19_bn": Backbone(partial(VGG, depth=19, norm=True), HiddenHead),
    "vgg16HGap": Backbone(partial(VGG, depth=16), _average(*_VGG)),
    "vgg16HGap_bn": Backbone(partial(VGG, depth=16, norm=True), _average(*_VGG, windows=_WINDOWS)),
    "vgg16HGap_resizer": Backbone(partial(VGG, depth=16), _average(*_VGG, windows=_WINDOWS), Resizer),
    "vgg19HGap": Backbone(partial(VGG, depth=19), _average(*_VGG, windows=_WINDOWS)),
    "vgg16_add": Backbone(partial(VGG, depth=16), partial(ScalesHead, levels=_VGG[2:], add=True)),
    "vgg16_multi_scales": Backbone(partial(VGG, depth=16), partial(ScalesHead, levels=_VGG[2:], add=False)),
    "densenet121": Backbone(DenseNet, _average("norm5", relu=True)),
    "densenet169": Backbone(partial(DenseNet, blocks=(6, 12, 32, 32)), _average("norm5", relu=True)),
    "densenet201": Backbone(partial(DenseNet, blocks=(6, 12, 48, 32)), _average("norm5", relu=True)),
    "RepVGG-B0": Backbone(RepVGG, _average("stage4")),
    "RepVGG-B1": Backbone(partial(RepVGG, widths=(64, 128, 256, 512, 2048)), _average("stage4")),
    "RepVGG-B2": Backbone(partial(RepVGG, widths=(64, 160, 320, 640, 2560)), _average("stage4")),
    "se_resnet50": Backbone(SEResNet, _average("layer4", windows=(7,), stride=1)),
    "xception": Backbone(Xception, _average("bn4", relu=True)),
    "inceptionv4": Backbone(InceptionV4, _average("features21")),
    "inceptionresnetv2": Backbone(InceptionResNetV2, _average("conv2d_7b", windows=(8,)), image_size=299),
    "polynet": Backbone(PolyNet, _average("stage_c", windows=(9,), stride=1, dropout=0.2), image_size=331),
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
        backbone = self._backbone()
        sizes = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(self.sizes).items()}
        if backbone.resizer:
            image = backbone.resizer(dtype=self.dtype, name="resizer")(image, train=train)
        stages = backbone.tower(**sizes, dtype=self.dtype, name="tower").stages(image, train=train)
        logits, out = backbone.head(self.num_answers, self.dtype, name="head")(stages, train=train)
        return widened(logits), dict(stages) | out

    def _backbone(self) -> Backbone:
        if self.backbone not in BACKBONES:
            hint = nearest(self.backbone, BACKBONES)
            raise ConfigError(f"model.backbone is {self.backbone!r}; there is {', '.join(BACKBONES)}.{hint}")
        backbone = BACKBONES[self.backbone]
        tower: Any = backbone.tower.func if isinstance(backbone.tower, partial) else backbone.tower
        known = [f.name for f in dataclasses.fields(tower) if f.name not in ("parent", "name", "dtype")]
        faults = [
            f"model.sizes.{f} is none of {self.backbone}'s.{nearest(f, known)}" for f in self.sizes if f not in known
        ]
        if faults:
            raise ConfigError("\n".join(faults))
        return backbone
