"""BLIP that says whether a sentence is true of two images.

    arg                  hardware     time        score
    (none)               1 CPU core   24 minutes  89.8 % of val: pairs of phantoms, by their regions
    pixels               2 CPU cores  not run     not measured: pairs of phantoms by their pixels
    small                2 CPU cores  1 minute    none: to see that everything runs
    nlvr2                16 GPUs      not run     published: 82.48 % on dev, 83.08 % on test-P
    published            16 GPUs      not run     as nlvr2

It starts from a pre-training: `--config.init_from.model.workdir=RUN`, each of whose cross-attentions becomes two, one an image.
"""

import ml_collections

from jaxvqa.configs import blip_pretrain, common
from jaxvqa.init_from import OTHER_GRID

VARIANTS = ("nlvr2", "published", "pixels", "small")

TAKEN = (
    (r"vision_tower/(position|class_token)", OTHER_GRID),
    (r"(text_tower/block_\d+)/second_cross_attention/(.*)", r"\1/cross_attention/\2"),
    (r"head_\d/.*|.*/merge/.*", False),
    (r".*", True),
)
"""Of a pre-training: all that it has; its cross-attention for both images."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = blip_pretrain.base({}, name="blip_nlvr")
    config.task = "image_pairs"
    config.optim.bounds = ()
    config.sharding.memory = ()
    del config.data.positives_by  # nothing is contrasted
    config.data.update({"max_words": 40, "max_tokens": 64})
    config.data.augment.swap = True
    config.init_from.model = common.start_from(TAKEN, blip_pretrain.WITHOUT)
    if variants & {"nlvr2", "published"}:
        config.name = "blip_nlvr-nlvr2"
        blip_pretrain.finetuning(config, image_size=384, batch_size=256, epochs=15, lr=3e-5)
        config.model.vision_sizes = {"drop_path": 0.1}
        config.data.update({"examples": "nlvr2/pairs", "images": "nlvr2/images"})
        evaluations(config, "1 epoch", 64)
    else:
        blip_pretrain.phantom_vqa(config, pixels="pixels" in variants)
        config.name = "blip_nlvr-phantom_vqa"
        config.data.update({"examples": "phantom_vqa/pairs", "max_tokens": 32})
        config.model.merge_from = 1
        config.total = "20 epochs"
        config.optim.lr = 2e-4  # at pre-training's rate what it had learned is lost
        evaluations(config, "25 %", 200)
    if "small" in variants:
        blip_pretrain.small(config)
        config.model.merge_from = 0
        config.init_from.model.without = ""
    return config


def evaluations(config: ml_collections.ConfigDict, every: str, batch_size: int) -> None:
    """Accuracy, and at the end what is left of it without the images, and without the second one."""
    config.evals = ml_collections.ConfigDict()
    row = {"batch_size": batch_size}
    controls = {"train_split": config.data.train_split}
    config.evals.val = common.evaluation("val", every=every, **row, **controls)
    for control in ("blank", "first"):
        config.evals[f"val_{control}"] = common.evaluation(
            "val", every=config.total, predict=f"answers_{control}", **row
        )
    config.main_eval = "val"
