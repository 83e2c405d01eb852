"""BLIP that answers questions: it writes its answers, or ranks those of a list.

    arg                  hardware     time        score
    (none)               1 CPU core   14 minutes  98.0 % of val from blip_pretrain.py: phantoms by their regions
    shared_words         1 CPU core   10 minutes  96.7 % of val from nothing: what vqa_rad starts from
    pixels               2 CPU cores  not run     not measured: phantoms by their pixels
    easy_vqa             1 CPU core   32 minutes  93.8 % of test, by regions, still rising
    vqa_rad              2 CPU cores  not run     not measured
    vqa_rad,frozen       1 CPU core   16 minutes  52.1 % of the 308 from shared_words and a network, three seeds' mean
    vqa_rad,pixels       1 CPU core   8 minutes   50.8 % of the 308 from nothing, two seeds' mean
    table                2 CPU cores  not run     not measured: questions of your own
    small                2 CPU cores  1 minute    none: to see that everything runs
    vqa_v2               16 GPUs      not run     published: 78.24 % on test-dev
    published            16 GPUs      not run     as vqa_v2

It starts from a pre-training: `--config.init_from.model.workdir=RUN`, whose text model becomes the question's encoder and the
answers' decoder. `vqa_rad` takes both of them from a run of `shared_words`, which has the same tokens, by that option, and a
network for its image encoder by `--config.init_from.vision.workdir=DIR` (a converted EfficientNet-Lite0); `frozen` keeps that
network as it was taken, and changes nothing in other variants. `vqa_rad,pixels` is a small network from nothing.
`shared_words` and `vqa_rad` need both data sets, phantom_vqa and vqa_rad, since their tokenizer reads the questions of both.
"""

from typing import Any

import ml_collections

from jaxvqa.configs import blip_pretrain, common
from jaxvqa.init_from import OTHER_GRID

DATA_SETS = ("vqa_v2", "published", "easy_vqa", "vqa_rad", "table")
VARIANTS = (*DATA_SETS, "shared_words", "frozen", "pixels", "small")

TAKEN = (
    (r"vision_tower/(position|class_token)", OTHER_GRID),
    (r"(vision_tower/.*)", r"\1"),
    (r"question_tower/(.*)", r"text_tower/\1"),
    (r"answer_tower/(.*)", r"text_tower/\1"),
)
"""Of a pre-training: its image encoder, and its text model twice."""

OTHER_IMAGES = ((r"question_tower/.*cross_attention/.*", False), (r"(question|answer)_tower/.*", True), (r".*", False))
"""Of a run on other images, how it reads questions and writes answers, and not how it looks."""

SHARED_WORDS: dict[str, Any] = {
    "vocabulary_parts": ("phantom_vqa/questions", "vqa_rad/questions"),
    "vocab_size": 1200,
}
"""A tokenizer of the words of both."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = blip_pretrain.base({"smoothing": 0.1}, name="blip_vqa")
    config.task = "answer_writing"
    config.optim.bounds = ()
    config.sharding.memory = ()
    config.sharding.params = (
        (r"(question|answer)_tower/embed/embedding", (None, "fsdp")),
        *blip_pretrain.SHARDING[1:],
    )
    del config.data.positives_by  # nothing is contrasted
    config.data.answers = ml_collections.ConfigDict(common.ANSWERS["answers"])
    config.data.update({"max_tokens": 35, "max_answers": 10, "max_answer_tokens": 10})
    config.ranking = ml_collections.ConfigDict({"first": 128})
    config.generate = ml_collections.ConfigDict(blip_pretrain.GENERATE | {"attend_padding": True})
    config.init_from.model = common.start_from(TAKEN, blip_pretrain.WITHOUT)
    chosen = next((name for name in DATA_SETS if name in variants), "")
    config.compile.num_answers = 3128
    if chosen in ("vqa_v2", "published"):
        config.name = "blip_vqa-vqa_v2"
        blip_pretrain.finetuning(config, image_size=480, batch_size=256, epochs=10, lr=2e-5)
        config.model.vision_sizes = {"drop_path": 0.1}
        config.data.update({"examples": "vqa_v2/questions", "images": "vqa_v2/images"})
        config.data.answers.update({"rule": "soft", "min_count": 9})
        evaluations(config, "1 epoch", 64)
    else:
        blip_pretrain.phantom_vqa(config, pixels="pixels" in variants or chosen in ("vqa_rad", "table"))
        config.name = f"blip_vqa-{chosen or 'phantom_vqa'}"
        name = chosen or "phantom_vqa"
        config.data.update({"examples": f"{name}/questions", "images": f"{name}/images"})
        config.data.update({"max_tokens": 24, "max_answers": 2, "max_answer_tokens": 8})
        config.data.answers.update({"rule": "soft" if not chosen else "exact", "min_count": 1 if chosen else 10})
        config.generate.update({"beams": 1, "attend_padding": False})
        config.ranking.first = 16
        config.total = "4 epochs"
        if chosen:
            config.data.vocabulary_parts = ()  # a tokenizer of its own texts
        if "shared_words" in variants or chosen == "vqa_rad":
            config.data.update(SHARED_WORDS)
            config.compile.vocab_size = SHARED_WORDS["vocab_size"]
            config.model.text_sizes["init_std"] = 0.05
        if chosen == "easy_vqa":
            config.data.update({"image_size": 64, "max_regions": 26, "max_answers": 1})
            config.data.augment.operations = 0  # colours are asked about
            config.model.text_sizes["init_std"] = 0.06
            config.total = "12 epochs"
        if chosen == "table":
            common.of_table(config)
            config.data.max_tokens = 35
        if chosen == "vqa_rad":
            _vqa_rad(config, pixels="pixels" in variants, frozen="frozen" in variants)
        evaluations(config, "25 %", 128, split="val" if chosen in ("", "table") else "test")
    if "small" in variants:
        blip_pretrain.small(config)
        config.data.answers.min_count = 1
        for start in config.init_from.values():
            start.without = ""
    return config


def _vqa_rad(config: ml_collections.ConfigDict, *, pixels: bool, frozen: bool) -> None:
    """Radiology: the text models of answered phantoms, and the map of a network that was trained on photographs."""
    sizes = config.model.vision_sizes
    blip_pretrain.borrowed_network(config)
    config.data.update({"max_tokens": 24, "max_answers": 1, "cache_mib": 1200.0})
    config.model.text_sizes["dropout"] = 0.1
    config.batch_size = 32
    config.total = "20 epochs"
    # Many questions are about an image that others in training are about: it is shown as it is.
    config.data.augment.update({"operations": 0, "scale": 1.0})
    if pixels:
        config.model.vision, config.model.vision_sizes = "vit-base", {**sizes, "patch": 16}
        config.init_from = ml_collections.ConfigDict()
        return
    config.model.vision_sizes = {"width": 128, "heads": 4, "map_norm": True}
    config.init_from.model = common.start_from(OTHER_IMAGES)
    config.init_from.vision = common.start_from(blip_pretrain.FROM_NETWORK)
    if frozen:
        config.optim.freeze = ((r"vision_tower/network/.*", True), (r".*", False))


def evaluations(config: ml_collections.ConfigDict, every: str, batch_size: int, split: str = "val") -> None:
    """Answers that are ranked, and that are written; at the end also ranked before a black image."""
    config.evals = ml_collections.ConfigDict()
    kind = "vqa_rad" if config.data.examples.startswith("vqa_rad") else "vqa"
    row: dict[str, Any] = {"batch_size": batch_size}
    ranked = row | {"type": kind, "train_split": config.data.train_split}
    config.evals[split] = common.evaluation(split, every=every, predict="ranked", **ranked)
    config.evals.written = common.evaluation(split, every=every, type="generation", **row)
    config.evals[f"{split}_blank"] = common.evaluation(split, every=config.total, predict="ranked_blank", **ranked)
    config.main_eval = split
