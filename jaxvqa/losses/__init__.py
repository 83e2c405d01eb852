"""What training descends: losses of classes, of texts, and of images and texts that belong together."""

from jaxvqa.losses.classes import (
    LOSSES,
    MIXUP_ALPHA,
    SMOOTHING,
    SUPERLOSS_LAMBDA,
    ExampleLoss,
    Mixup,
    choose_loss,
    cross_entropy,
    label_smoothing,
    label_smoothing_superloss,
    lambert_w,
    superloss,
    superloss_of_nll,
)
from jaxvqa.losses.text import text_loss

__all__ = [
    "LOSSES",
    "MIXUP_ALPHA",
    "SMOOTHING",
    "SUPERLOSS_LAMBDA",
    "ExampleLoss",
    "Mixup",
    "choose_loss",
    "cross_entropy",
    "label_smoothing",
    "label_smoothing_superloss",
    "lambert_w",
    "superloss",
    "superloss_of_nll",
    "text_loss",
]
