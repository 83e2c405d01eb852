"""ResNeSt's keys (github.com/zhanghang1989/ResNeSt)."""

from jaxvqa.convert.layers import BATCH_NORM, CONV, CONV_NO_BIAS, conv_norm
from jaxvqa.convert.table import nested

_RESNEST_BLOCK = [
    *conv_norm("conv1", "bn1", "first"),
    *nested("conv2.conv", "split/conv", CONV_NO_BIAS),
    *nested("conv2.bn0", "split/conv_norm", BATCH_NORM),
    *nested("conv2.fc1", "split/reduce", CONV),
    *nested("conv2.bn1", "split/reduce_norm", BATCH_NORM),
    *nested("conv2.fc2", "split/expand", CONV),
    *conv_norm("conv3", "bn3", "third"),
    *conv_norm("downsample.1", "downsample.2", "shortcut"),
]
RESNEST = [
    *conv_norm("conv1.0", "conv1.1", "stem_0"),
    *conv_norm("conv1.3", "conv1.4", "stem_1"),
    *conv_norm("conv1.6", "bn1", "stem_2"),
    *nested("layer{s}.{i}", "stage_{s}/block_{i}", _RESNEST_BLOCK),
]
