"""BLIP's pre-training: contrast, matching and writing on images with captions.

arg                  hardware     time        score
(none)               2 CPU cores  not run     not measured: phantoms by their regions
small                2 CPU cores  1 minute    none: to see that everything runs
"""

from typing import Any

import ml_collections

from configs import common
from jaxvqa.data.images import CLIP_MEAN, CLIP_STD

VARIANTS = ("published", "pixels", "small")

SHARDING = (
    (r"text_tower/embed/embedding", (None, "fsdp")),
    (r".*/(up|query|key|value)/kernel", ("fsdp", "tensor")),
    (r".*/(down|output)/kernel", ("tensor", "fsdp")),
    (r".*", ()),
)

BOUNDS = ((r"temperature", (0.001, 0.5)), (r".*", None))
"""The original clamps the temperature before each step (docs/originals/blip.md, section 5, step 1)."""

PRETRAINING: dict[str, Any] = {
    "positives": "pair",
    "groups": 1,
    "queue": 57600,
    "momentum": 0.995,
    "momentum_dropout": True,
    "alpha": 0.4,
    "alpha_epochs": 2.0,
    "smoothing": 0.1,
    "negatives": {"choice": "drawn", "similarity": "momentum", "floor": 1e-4, "among": "group"},
}
"""`config.loss` of pre-training (docs/originals/blip.md, section 5)."""

RETRIEVAL: dict[str, Any] = PRETRAINING | {
    "positives": "image",
    "alpha_epochs": 1.0,
    "negatives": {"choice": "drawn", "similarity": "online", "floor": 0.0, "among": "batch"},
}
"""That of retrieval (docs/originals/blip.md, section 6)."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = base(PRETRAINING)
    config.name = "blip_pretrain"
    del variants
    return config


def base(loss: dict[str, Any], **model: Any) -> ml_collections.ConfigDict:
    """What pre-training and retrieval share; `model`: fields that differ from the published ones."""
    config = common.base()
    config.data = common.data_section(
        *(common.TEXTS, common.IMAGES, common.REGIONS), **{"mean": CLIP_MEAN, "std": CLIP_STD}
    )
    config.task = "image_text"
    config.compile.vocab_size = 30524
    config.model = common.model("blip", **model)
    config.loss = ml_collections.ConfigDict(loss)
    config.optim.bounds = BOUNDS
    config.sharding.params = SHARDING
    config.evals = ml_collections.ConfigDict()
    return config
