"""BLIP fine-tuned to find images for texts, and texts for images.

arg                  hardware     time        score
small                2 CPU cores  1 minute    none: to see that everything runs
"""

import ml_collections

from configs import blip_pretrain, common

VARIANTS = ("published", "small")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = blip_pretrain.base(blip_pretrain.RETRIEVAL, writes=False)
    config.name = "blip_retrieval"
    del variants
    return config
