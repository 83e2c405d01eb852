"""BLIP fine-tuned to find the texts of an image, and the images of a text.

    arg                  hardware     time        score
    (none)               2 CPU cores  not run     not measured: phantoms by their regions
    pixels               2 CPU cores  not run     not measured: phantoms by their pixels
    small                2 CPU cores  1 minute    none: to see that everything runs
    coco                 8 GPUs       not run     published: R@1 81.9 of texts, 64.3 of images
    flickr30k            8 GPUs       not run     published: R@1 97.3 of texts, 87.3 of images
    pubmed               1 GPU        not run     published: docs/originals/blip.md, section 17, MedVL
    published            8 GPUs       not run     as coco

It starts from a pre-training: `--config.init_from.model.workdir=RUN`.
"""

from typing import Any

import ml_collections

from configs import blip_pretrain, common
from jaxvqa.init_from import OTHER_GRID

DATA_SETS = ("coco", "flickr30k", "pubmed", "published")
VARIANTS = (*DATA_SETS, "pixels", "small")

RETRIEVAL: dict[str, Any] = blip_pretrain.PRETRAINING | {
    "positives": "image",
    "alpha_epochs": 1.0,
    "negatives": {"choice": "drawn", "similarity": "online", "floor": 0.0, "among": "batch"},
}
"""`config.loss` of retrieval (docs/originals/blip.md, section 6)."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = blip_pretrain.base(RETRIEVAL, writes=False)
    config.data.max_tokens = 35
    chosen = next((name for name in DATA_SETS if name in variants), "")
    config.name = "blip_retrieval" + (f"-{chosen}" if chosen else "-phantom_vqa")
    config.init_from.model = common.start_from(TAKEN, blip_pretrain.WITHOUT)
    if chosen:
        _published(config, "coco" if chosen == "published" else chosen)
    else:
        blip_pretrain.phantom_vqa(config, pixels="pixels" in variants)
    if "small" in variants:
        blip_pretrain.small(config)
        config.init_from.model.without = ""
    return config


TAKEN = ((r"(image|text|id|place)", False), (r"vision_tower/(position|class_token)", OTHER_GRID), (r".*", True))
"""Of a pre-training, the network and its momentum copies; its queue would be of no image here."""


def _published(config: ml_collections.ConfigDict, name: str) -> None:
    """The recipes of docs/originals/blip.md, sections 14 and 16.4."""
    blip_pretrain.finetuning(config, image_size=384, batch_size=256, epochs=6, lr=1e-5)
    config.data.update({"examples": f"{name}/captions", "images": f"{name}/images"})
    config.model.vision_sizes = {"remat": 4}
    blip_pretrain.evaluations(config, "val", k_test=128 if name == "flickr30k" else 256, one_to_one=name == "pubmed")
    if name == "coco":
        config.data.update({"examples": "coco_captions/captions", "images": "coco_captions/images"})
    if name == "flickr30k":
        config.loss.negatives.among = "group"
    if name == "pubmed":
        config.data.update({"examples": "pubmed_figures/captions", "images": "pubmed_figures/images"})
        config.data.update({"image_size": 224, "max_tokens": 200, "max_words": 200, "positives_by": "figure_id"})
        config.model.vision_sizes = {}
        config.batch_size, config.loss.groups = 8, 1
