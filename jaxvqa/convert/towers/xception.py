"""Xception's keys (github.com/Cadene/pretrained-models.pytorch)."""

from jaxvqa.convert.layers import BATCH_NORM, CONV_NO_BIAS, conv_norm
from jaxvqa.convert.table import Rule, nested

_SEPARABLE = [Rule("conv1.weight", "depthwise", "c 1 h w -> h w c"), *nested("pointwise", "pointwise", CONV_NO_BIAS)]


def _xception() -> list[Rule]:
    rules = [*conv_norm("conv1", "bn1", "stem_0"), *conv_norm("conv2", "bn2", "stem_1")]
    for b in range(1, 13):
        key, path, first = f"block{b}", f"block_{b}", int(b > 1)  # the first block begins without a ReLU
        rules += conv_norm(f"{key}.skip", f"{key}.skipbn", f"{path}/shortcut")
        for i in range(3):
            rules += nested(f"{key}.rep.{first + 3 * i}", f"{path}/separable_{i}", _SEPARABLE)
            rules += nested(f"{key}.rep.{first + 3 * i + 1}", f"{path}/norm_{i}", BATCH_NORM)
    for i in (3, 4):
        rules += nested(f"conv{i}", f"separable_{i}", _SEPARABLE)
        rules += nested(f"bn{i}", f"norm_{i}", BATCH_NORM)
    return rules


XCEPTION = _xception()
