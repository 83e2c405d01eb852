"""BLIP's pre-training on images with captions: contrast, matching, and writing, by one network.

    arg                  hardware     time        score
    (none)               2 CPU cores  21 minutes  R@1 56.0 % of texts, 54.3 % of images on val: regions
    pixels               2 CPU cores  78 minutes  R@1 2.8 % of texts, 4.5 % of images: phantoms by their pixels
    small                2 CPU cores  1 minute    none: to see that everything runs
    published            8 GPUs       not run     published: docs/originals/blip.md, section 17
    coco                 8 GPUs       not run     not measured: the published recipe on COCO's captions alone
    pubmed               4 GPUs       not run     published: docs/originals/blip.md, section 17, MedVL

`published` is the base size; its images and captions are lists in the form of the original's (`caption_list`, see
docs/adding_a_data_set.md). It starts from DeiT and BERT in the original; `pubmed` from the published pre-training:

    python -m jaxvqa.convert --system=blip_pretrain --from=model_base.pth --to=runs/blip --tokenizer=DIR
    … --config.init_from.model.workdir=runs/blip

`config.loss.groups` is the number of the original's processes: what a batch of so many groups contrasts, and where it finds its
hard negatives, is the same on any number of devices.
"""

from typing import Any

import ml_collections

from jaxvqa.configs import common

DATA_SETS = ("published", "coco", "pubmed")
VARIANTS = (*DATA_SETS, "pixels", "small")

SHARDING = (
    (r"text_tower/embed/embedding", (None, "fsdp")),
    (r".*/(up|query|key|value|transform)/kernel", ("fsdp", "tensor")),
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


GENERATE: dict[str, Any] = {
    "max_length": 10,
    "min_length": 1,
    "beams": 3,
    "repetition_penalty": 1.0,
    "sample": False,
    "top_p": 0.9,
    "seed": 0,
}
"""`config.generate` of what BLIP writes (docs/originals/blip.md, sections 7 and 8)."""

WITHOUT = "the original starts from BLIP's pre-training (configs/blip_pretrain.py)."


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = base(PRETRAINING)
    chosen = next((name for name in DATA_SETS if name in variants), "")
    config.name = "blip_pretrain" + (f"-{chosen}" if chosen else "-phantom_vqa")
    if chosen:
        published(config)
        {"published": _published, "coco": _coco, "pubmed": _pubmed}[chosen](config)
    else:
        phantom_vqa(config, pixels="pixels" in variants)
    if "small" in variants:
        small(config)
    return config


def base(loss: dict[str, Any], **model: Any) -> ml_collections.ConfigDict:
    """What pre-training and retrieval share; `model`: fields that differ from the published ones."""
    config = common.base()
    config.data = common.data_section(common.CAPTIONS, common.IMAGES, common.REGIONS, common.RANDOM_AUGMENT)
    config.task = "image_text"
    config.compile.vocab_size = 30524
    config.model = common.model(model.pop("name", "blip"), **model)
    config.loss = ml_collections.ConfigDict(loss)
    config.optim.bounds = BOUNDS
    config.sharding.params = SHARDING
    config.sharding.memory = ((r".*/(image|text)", ("fsdp", None)), (r".*", ()))
    return config


# --- the embedded phantoms -----------------------------------------------------------------------------------------------


def phantom_vqa(config: ml_collections.ConfigDict, *, pixels: bool) -> None:
    """A small network from nothing, which reads the phantoms' regions, or their pixels."""
    config.data.update({"examples": "phantom_vqa/captions", "images": "phantom_vqa/images"})
    config.data.update({"max_regions": 16, "region_width": 320, "image_size": 96, "vocab_size": 400})
    config.data.update({"max_tokens": 40, "max_words": 50})
    # A fine-tuning has the same tokens.
    config.data.vocabulary_parts = ("phantom_vqa/questions", "phantom_vqa/captions")
    # Captions say what is left and right, and how many lesions there are: images are not mirrored, and cropped little.
    config.data.augment.update({"flip": False, "scale": 0.8, "sound": True})
    sizes = {"width": 128, "depth": 2, "heads": 4}
    config.model.vision = "vit-base" if pixels else "region-vit"
    config.model.vision_sizes = {**sizes, "patch": 8} if pixels else sizes
    config.model.text_sizes = {**sizes, "hidden": 512, "positions": 64, "dropout": 0.0, "init_std": 0.02}
    config.compile.vocab_size = 400
    if "queue" in config.loss:
        config.model.features = 64
        config.loss.queue = 1024
        # At the rate of the others it falls to a hundredth before features mean anything.
        config.optim.lr_scale = ((r"temperature", 0.1), (r".*", 1.0))
    config.batch_size = 64
    config.total = "30 epochs"
    config.optim.lr = 1e-3
    config.optim.clip_norm = 1.0
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE)
    config.checkpoint.every = "25 %"
    if "queue" in config.loss:
        config.evals = ml_collections.ConfigDict()
        wordings = {"wordings": common.PHANTOM_WORDINGS}
        config.evals.val = common.retrieval("val", every="25 %", batch_size=100, k_test=32, **wordings)
        config.main_eval = "val"
        config.best.metric, config.best.mode = "val/r_mean", "max"


# --- a network that was trained for itself ---------------------------------------------------------------------------------

FROM_NETWORK = ((r"vision_tower/network/.*", True), (r".*", False))
"""What an image encoder over a network's map takes of that network, converted."""


def borrowed_network(config: ml_collections.ConfigDict) -> None:
    """Two blocks over the map of an EfficientNet-Lite0, for radiographs (docs/blip.md)."""
    config.data.image_size = 96
    config.data.mean, config.data.std = (127 / 255,) * 3, (128 / 255,) * 3  # as the network was trained
    # Left and right mean something in a radiograph.
    config.data.augment.update({"flip": False, "sound": True})
    config.model.vision = "efficientnet_lite0-vit"
    config.model.vision_sizes = {"width": 384, "heads": 6}


# --- the published recipes -----------------------------------------------------------------------------------------------


def published(config: ml_collections.ConfigDict) -> None:
    """What all published recipes share (docs/originals/blip.md, section 14)."""
    config.data.tokenizer = "bert-base-uncased"
    config.data.cache_mib = 4096.0
    config.optim.decay = ((r".*", 0.05),)
    if "groups" in config.loss:
        config.loss.groups = 8
    config.log_every = "50 steps"


def finetuning(config: ml_collections.ConfigDict, *, image_size: int, batch_size: int, epochs: int, lr: float) -> None:
    """What the recipes of fine-tuning share (docs/originals/blip.md, section 14)."""
    published(config)
    config.data.image_size = image_size
    config.batch_size = batch_size
    config.total = f"{epochs} epochs"
    config.optim.lr = lr
    schedule = {"name": "cosine_per_epoch", "warmup": "0 steps", "warmup_from": 0.0, "floor": 0.0}
    config.optim.schedule = ml_collections.ConfigDict(schedule)


def evaluations(config: ml_collections.ConfigDict, split: str, **changes: Any) -> None:
    """Retrieval over a split at the end of each epoch, which says which state is the best."""
    config.evals = ml_collections.ConfigDict()
    config.evals[split] = common.retrieval(split, every="1 epoch", batch_size=64, **changes)
    config.main_eval = split
    config.best.metric, config.best.mode = f"{split}/r_mean", "max"


def _pretraining(config: ml_collections.ConfigDict, *, batch_size: int, epochs: int, lr: float, warmup: int) -> None:
    config.data.augment.scale = 0.2
    config.batch_size = batch_size
    config.total = f"{epochs} epochs"
    config.optim.lr = lr
    schedule = {
        "name": "decay_per_epoch",
        "warmup": f"{warmup} steps",
        "warmup_from": 1e-6,
        "decay_rate": 0.9,
        "floor": 1e-6,
    }
    config.optim.schedule = ml_collections.ConfigDict(schedule)


def _published(config: ml_collections.ConfigDict) -> None:
    config.data.update({"examples": "caption_list/captions", "images": "caption_list/images"})
    config.evals = ml_collections.ConfigDict()
    _pretraining(config, batch_size=600, epochs=20, lr=3e-4, warmup=3000)


def _coco(config: ml_collections.ConfigDict) -> None:
    _published(config)
    config.data.update({"examples": "coco_captions/captions", "images": "coco_captions/images"})
    evaluations(config, "val", k_test=256)


def _pubmed(config: ml_collections.ConfigDict) -> None:
    """MedVL's recipe: long captions, whose panels of one figure are each for themselves in pre-training.

    Retrieval cuts texts to 35 tokens, as the original; `--config.evals.val.max_tokens=0` reads all 200.
    """
    _pretraining(config, batch_size=40, epochs=60, lr=3e-5, warmup=300)
    config.data.update({"examples": "pubmed_figures/captions", "images": "pubmed_figures/images"})
    config.data.update({"max_tokens": 200, "max_words": 300})
    evaluations(config, "val", k_test=256, one_to_one=True, max_tokens=35)
    config.loss.groups = 4
    config.loss.queue = 57600


def small(config: ml_collections.ConfigDict) -> None:
    """Runs end to end on 2 CPU cores in little time; its numbers mean nothing."""
    config.name += "-small"
    config.data.limit = 160
    config.data.tokenizer = ""
    config.data.vocab_size = 300
    config.data.image_size = 32
    config.data.max_tokens = 24
    if config.model.vision == "vit-large":
        config.model.vision = "vit-base"
    patch = {"patch": 16} if config.model.vision == "vit-base" else {}
    config.model.vision_sizes = {"width": 32, "depth": 1, "heads": 2, **patch}
    config.model.text_sizes = {"width": 32, "depth": 1, "heads": 2, "hidden": 64, "positions": 64}
    if "queue" in config.loss:
        config.model.features = 16
        config.loss.groups = 1
        config.loss.queue = 64
    config.batch_size = 16
    config.total = "2 epochs"
    config.log_every = "5 steps"
    config.checkpoint.every = "1 epoch"
    for row in config.evals.values():
        row.every, row.batch_size = config.total, 16
        if "k_test" in row:
            row.k_test, row.texts_per_step = 8, 8
