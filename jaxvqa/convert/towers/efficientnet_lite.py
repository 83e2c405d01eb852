"""EfficientNet-Lite's keys (the package `efficientnet_lite_pytorch`), and its checkpoints, which are published alone."""

from jaxvqa.convert.layers import BATCH_NORM, COUNTER, conv_norm, in_collections
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import Original, image
from jaxvqa.convert.table import Rule, Table, nested
from jaxvqa.models.towers.efficientnet_lite import EfficientNetLite

_BLOCK = [
    *conv_norm("_expand_conv", "_bn0", "expand"),
    Rule("_depthwise_conv.weight", "depthwise", "c 1 h w -> h w c"),
    *nested("_bn1", "depthwise_norm", BATCH_NORM),
    *conv_norm("_project_conv", "_bn2", "project"),
]
EFFICIENTNET_LITE = [
    *conv_norm("_conv_stem", "_bn0", "stem"),
    *nested("_blocks.{i}", "block_{i}", _BLOCK),
    *conv_norm("_conv_head", "_bn1", "head"),
]

ORIGINAL = Original(
    layouts=lambda config: [Layout(Table(in_collections(EFFICIENTNET_LITE), (COUNTER, r"_fc\..*")))],
    infer=lambda file, given: {},
    inputs=lambda tensors, config: {"image": image(32, 32)},
    module=lambda config: EfficientNetLite(**config),
    call={"train": False, "method": "stages"},
    name="EfficientNet-Lite0",
)
"""Lite0; its classifier is left out."""
