"""RepVGG's keys (github.com/DingXiaoH/RepVGG), as it is trained and folded."""

from jaxvqa.convert.layers import BATCH_NORM, CONV, conv_norm
from jaxvqa.convert.table import nested

_REPVGG_BLOCK = [
    *nested("rbr_identity", "identity", BATCH_NORM),
    *conv_norm("rbr_dense.conv", "rbr_dense.bn", "dense"),
    *conv_norm("rbr_1x1.conv", "rbr_1x1.bn", "point"),
    *nested("rbr_reparam", "folded", CONV),
]
REPVGG = [
    *nested("stage0", "stem", _REPVGG_BLOCK),
    *nested("stage{s}.{i}", "stage_{s}_block_{i}", _REPVGG_BLOCK),
]
"""Both forms: a block has its branches or the one convolution that they are worth."""
