"""BLIP fine-tuned to find the texts of an image, and the images of a text.

    arg                  hardware     time        score
    (none)               2 CPU cores  not run     not measured: phantoms by their regions
    pixels               2 CPU cores  not run     not measured: phantoms by their pixels
    vqa_med_2019         2 CPU cores  not run     not measured: radiographs with their answers as captions
    vqa_med_2019,sample  1 CPU core   17 minutes  R@10 45.8 % of texts, 46.4 % of images, from towers, three seeds' mean
    small                2 CPU cores  1 minute    none: to see that everything runs
    coco                 8 GPUs       not run     published: R@1 81.9 of texts, 64.3 of images
    flickr30k            8 GPUs       not run     published: R@1 97.3 of texts, 87.3 of images
    pubmed               1 GPU        not run     published: docs/originals/blip.md, section 17, MedVL
    published            8 GPUs       not run     as coco

It starts from a pre-training: `--config.init_from.model.workdir=RUN`. `vqa_med_2019` starts from nothing, or from towers that
were trained each for itself, with `--config.data.tokenizer=DIR`, `--config.init_from.text.workdir=DIR` and
`--config.init_from.vision.workdir=DIR` (docs/blip.md); `sample` is of a part of the release.
"""

from typing import Any

import ml_collections

from jaxvqa.configs import blip_pretrain, common
from jaxvqa.init_from import LEADING_ROWS, OTHER_GRID

DATA_SETS = ("coco", "flickr30k", "pubmed", "published")
VARIANTS = (*DATA_SETS, "vqa_med_2019", "sample", "pixels", "small")

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
    elif "vqa_med_2019" in variants:
        _vqa_med_2019(config, "sample_" if "sample" in variants else "")
    else:
        blip_pretrain.phantom_vqa(config, pixels="pixels" in variants)
    if "small" in variants:
        blip_pretrain.small(config)
        for start in config.init_from.values():
            start.without = ""
    return config


TAKEN = ((r"(image|text|id|place)", False), (r"vision_tower/(position|class_token)", OTHER_GRID), (r".*", True))
"""Of a pre-training, the network and its momentum copies; its queue would be of no image here."""


FROM_BERT = (
    (r"text_tower/embed/embedding", (r"language/embed/embedding", LEADING_ROWS)),
    (r"text_tower/(position|embed_norm)/(.*)", r"language/\1/\2"),
    (r"text_tower/block_(\d+)/(?:decoder_)?(attention.*)", r"language/block_\1/\2"),
    (r"text_tower/block_(\d+)/(feed_forward.*)", r"language/block_\1/\2"),
    (r".*", False),
)
"""What a text model takes of a converted BERT: both self-attentions begin as its own; cross-attention and readout are new."""


def _vqa_med_2019(config: ml_collections.ConfigDict, sample: str) -> None:
    """Radiographs and what their questions' answers say; of EfficientNet-Lite0 and the first three of MiniLM's six blocks."""
    config.name = "blip_retrieval-vqa_med_2019"
    config.data.update({"examples": f"vqa_med/{sample}captions_2019", "images": f"vqa_med/{sample}images_2019"})
    blip_pretrain.borrowed_network(config)
    config.data.update({"max_tokens": 28, "max_words": 30})
    # A BERT's first vector hardly differs between texts: with the original's dropout of 0.1 the contrast learned nothing.
    config.model.text_sizes = {"width": 384, "depth": 3, "heads": 12, "hidden": 1536, "dropout": 0.0}
    config.compile.vocab_size = 1000
    # In a queue as long as the data most features are older than the copies remember: against these nothing was learned.
    config.loss.queue, config.loss.momentum = 60, 0.98
    config.batch_size = 20
    config.total = "12 epochs"
    config.optim.lr = 3e-4
    config.optim.lr_scale = ((r"temperature", 0.1), (r".*", 1.0))
    config.optim.clip_norm = 1.0
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE)
    config.checkpoint.every = config.total
    config.log_every = "1 epoch"
    config.evals = ml_collections.ConfigDict()
    config.evals.val = common.retrieval("val", every=config.total, batch_size=20, k_test=32)
    config.main_eval = "val"
    del config.init_from.model
    config.init_from.text = common.start_from(FROM_BERT)
    config.init_from.vision = common.start_from(blip_pretrain.FROM_NETWORK)


def _published(config: ml_collections.ConfigDict, name: str) -> None:
    """The recipes of docs/originals/blip.md, sections 14 and 16.4.

    MedVL's is evaluated with 35 tokens, as the original; `--config.evals.val.max_tokens=0` reads all 200.
    """
    blip_pretrain.finetuning(config, image_size=384, batch_size=256, epochs=6, lr=1e-5)
    config.data.update({"examples": f"{name}/captions", "images": f"{name}/images"})
    config.model.vision_sizes = {"remat": 4}
    own = {"one_to_one": True, "max_tokens": 35} if name == "pubmed" else {}
    blip_pretrain.evaluations(config, "val", k_test=128 if name == "flickr30k" else 256, **own)
    if name == "coco":
        config.data.update({"examples": "coco_captions/captions", "images": "coco_captions/images"})
    if name == "flickr30k":
        config.loss.negatives.among = "group"
    if name == "pubmed":
        config.data.update({"examples": "pubmed_figures/captions", "images": "pubmed_figures/images"})
        config.data.update({"image_size": 224, "max_tokens": 200, "max_words": 200, "positives_by": "figure_id"})
        config.model.vision_sizes = {}
        config.batch_size, config.loss.groups = 8, 1
