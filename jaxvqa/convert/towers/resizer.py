"""The learned resizer's keys."""

from jaxvqa.convert.layers import BATCH_NORM, CONV, conv_norm
from jaxvqa.convert.table import nested

RESIZER = [
    *nested("conv1", "conv_1", CONV),
    *nested("conv2", "conv_2", CONV),
    *nested("bn2", "norm_2", BATCH_NORM),
    *conv_norm("residual_blocks.res1.conv1", "residual_blocks.res1.bn1", "block_first"),
    *conv_norm("residual_blocks.res1.conv2", "residual_blocks.res1.bn2", "block_second"),
    *nested("conv3", "conv_3", CONV),
    *nested("bn3", "norm_3", BATCH_NORM),
    *nested("conv4", "conv_4", CONV),
]
