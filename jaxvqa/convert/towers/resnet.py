"""The keys of torchvision's residual networks, without their classifier."""

from jaxvqa.convert.layers import conv_norm
from jaxvqa.convert.table import nested

_BLOCK = [
    *conv_norm("conv1", "bn1", "first"),
    *conv_norm("conv2", "bn2", "second"),
    *conv_norm("conv3", "bn3", "third"),  # of a bottleneck
    *conv_norm("downsample.0", "downsample.1", "shortcut"),
]
RESNET = [*conv_norm("conv1", "bn1", "stem"), *nested("layer{s}.{i}", "stage_{s}/block_{i}", _BLOCK)]
