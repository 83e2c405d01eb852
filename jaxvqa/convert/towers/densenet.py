"""DenseNet's keys, as torchvision has them under `features`."""

from jaxvqa.convert.layers import BATCH_NORM, CONV_NO_BIAS
from jaxvqa.convert.table import Rule, nested

_DENSE_LAYER = [
    *nested("norm1", "norm_1", BATCH_NORM),
    *nested("conv1", "conv_1", CONV_NO_BIAS),
    *nested("norm2", "norm_2", BATCH_NORM),
    *nested("conv2", "conv_2", CONV_NO_BIAS),
]
DENSENET = [
    *nested("conv0", "stem_conv", CONV_NO_BIAS),
    *nested("norm0", "stem_norm", BATCH_NORM),
    *(
        Rule(f"denseblock{{b}}.denselayer{{i}}.{r.key}", f"block_{{b}}_layer_{{i}}_{r.path}", r.change)
        for r in _DENSE_LAYER
    ),
    *nested("transition{b}.norm", "transition_{b}_norm", BATCH_NORM),
    *nested("transition{b}.conv", "transition_{b}_conv", CONV_NO_BIAS),
    *nested("norm5", "norm", BATCH_NORM),
]
