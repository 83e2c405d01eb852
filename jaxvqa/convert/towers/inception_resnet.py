"""Inception-ResNet v2's keys (github.com/Cadene/pretrained-models.pytorch)."""

from jaxvqa.convert.layers import CONV
from jaxvqa.convert.table import Rule, nested
from jaxvqa.convert.towers.inception import rows, unit
from jaxvqa.models.towers import inception_resnet
from jaxvqa.models.towers.inception import Row


def _residual(key: str, path: str, branches: tuple[Row, ...]) -> list[Rule]:
    return [*rows(f"{key}.branch", f"{path}/rows/", branches), *nested(f"{key}.conv2d", f"{path}/project", CONV)]


INCEPTION_RESNET_V2 = [
    *unit("conv2d_1a", "conv_1a"),
    *unit("conv2d_2a", "conv_2a"),
    *unit("conv2d_2b", "conv_2b"),
    *unit("conv2d_3b", "conv_3b"),
    *unit("conv2d_4a", "conv_4a"),
    *rows("mixed_5b.branch", "mixed_5b/", inception_resnet.MIXED_5B),
    *_residual("repeat.{i}", "block_a_{i}", inception_resnet.A),
    *rows("mixed_6a.branch", "mixed_6a/", inception_resnet.MIXED_6A),
    *_residual("repeat_1.{i}", "block_b_{i}", inception_resnet.B),
    *rows("mixed_7a.branch", "mixed_7a/", inception_resnet.MIXED_7A),
    *_residual("repeat_2.{i}", "block_c_{i}", inception_resnet.C),
    *_residual("block8", "last_block", inception_resnet.C),
    *unit("conv2d_7b", "conv_7b"),
]
