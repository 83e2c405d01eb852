"""BLIP that describes images.

    arg                  hardware     time        score
    (none)               1 CPU core   8 minutes   BLEU-1 83.1 from blip_pretrain.py: phantoms by their regions
    pixels               2 CPU cores  not run     not measured: phantoms by their pixels
    small                2 CPU cores  1 minute    none: to see that everything runs
    coco                 8 GPUs       not run     published: BLEU-4 39.4, CIDEr 131.4
    published            8 GPUs       not run     as coco

It starts from a pre-training: `--config.init_from.model.workdir=RUN`.
"""

import ml_collections

from jaxvqa.configs import blip_pretrain, common
from jaxvqa.init_from import OTHER_GRID

VARIANTS = ("coco", "published", "pixels", "small")

TAKEN = ((r"vision_tower/(position|class_token)", OTHER_GRID), (r".*", True))


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = blip_pretrain.base({"smoothing": 0.1}, reads=False, matches=False, features=0, temperature=0.0)
    config.task = "image_captioning"
    config.optim.bounds = ()
    config.sharding.memory = ()
    config.data.prompt = "a picture of "
    del config.data.positives_by  # nothing is contrasted
    config.data.max_tokens = 40
    config.generate = ml_collections.ConfigDict(blip_pretrain.GENERATE | {"max_length": 20, "min_length": 5})
    config.init_from.model = common.start_from(TAKEN, blip_pretrain.WITHOUT)
    if variants & {"coco", "published"}:
        config.name = "blip_caption-coco"
        blip_pretrain.finetuning(config, image_size=384, batch_size=256, epochs=5, lr=1e-5)
        config.data.update({"examples": "coco_captions/captions", "images": "coco_captions/images"})
        evaluations(config, "1 epoch", 256)
    else:
        config.name = "blip_caption-phantom_vqa"
        blip_pretrain.phantom_vqa(config, pixels="pixels" in variants)
        config.data.max_tokens = 48
        config.model.features = 0
        config.generate.update({"max_length": 48, "beams": 1})
        evaluations(config, "25 %", 100)
    if "small" in variants:
        blip_pretrain.small(config)
        config.init_from.model.without = ""
    return config


def evaluations(config: ml_collections.ConfigDict, every: str, batch_size: int) -> None:
    """The loss, by which the best state is chosen, and written captions, with a black image beside them at the end."""
    config.evals = ml_collections.ConfigDict()
    row = {"batch_size": batch_size}
    # The tokenizer lowers what it reads, and the captions are trained on without punctuation.
    written = row | {"type": "generation", "plain_words": True}
    config.evals.val = common.evaluation("val", every=every, **written)
    config.evals.val_blank = common.evaluation("val", every=config.total, predict="answers_blank", **written)
    config.evals.likelihood = common.evaluation("val", every=every, type="likelihood", predict="likelihood", **row)
    config.main_eval = "val"
    config.best.metric, config.best.mode = "likelihood/loss", "min"
