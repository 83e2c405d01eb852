"""SE-ResNet's keys (github.com/Cadene/pretrained-models.pytorch)."""

from jaxvqa.convert.layers import CONV, conv_norm
from jaxvqa.convert.table import nested

_SE_BLOCK = [
    *conv_norm("conv1", "bn1", "first"),
    *conv_norm("conv2", "bn2", "second"),
    *conv_norm("conv3", "bn3", "third"),
    *nested("se_module.fc1", "squeeze", CONV),
    *nested("se_module.fc2", "excite", CONV),
    *conv_norm("downsample.0", "downsample.1", "shortcut"),
]
SE_RESNET = [
    *conv_norm("layer0.conv1", "layer0.bn1", "stem"),
    *nested("layer{s}.{i}", "stage_{s}/block_{i}", _SE_BLOCK),
]
