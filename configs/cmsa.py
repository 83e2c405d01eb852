"""CMSA: cross-modal self-attention for medical visual question answering (Gong et al., ICMR 2021).

    python -m jaxvqa.main --config=configs/cmsa.py:VARIANT

    VARIANT                        hardware     time        score
    (none)                         1 CPU core   77 minutes  90.8 % of val, the embedded phantoms, pre-trained branches
    blind                          1 CPU core   minutes     not measured; shown a black image the above has 37.1 %
    table                          2 CPU cores  not run      not measured: questions of your own
    small                          2 CPU cores  1 minute    none: to see that everything runs
    vqa_rad                        1 GPU        not run     68.8 % of the 308 published, from pre-trained branches
    vqa_rad,compact                2 CPU cores  26 minutes  61.8 % of the 308 from nothing, mean of three seeds
    vqa_rad,compact,blind          1 CPU core   10 minutes  50.4 % of the 308, by the question alone
    vqa_rad,compact,augment,adam   1 CPU core   50 minutes  61.7 % of the 308: random changes, a cosine
    vqa_rad,compact,ban            1 CPU core   37 minutes  58.1 % of the 308, MEVF's weights, small images
    vqa_rad,san                    1 GPU        not run     not measured: SAN over MEVF's branches
    vqa_rad,ban,distmodal          1 GPU        not run     not measured: BAN over CMSA's three branches
    vqa_rad,image_disjoint         1 GPU        not run     not measured: VQA-RAD split by image
    vqa_rad,no_test_frames         1 GPU        not run     not measured: without test questions in other words

The published recipe pre-trains the three image branches first (configs/mtpt.py), and takes them by
`--config.init_from.abdomen.workdir=DIR`, and the same for `head` and `chest`. Re-runs without that, from ImageNet branches,
reached 56.5 to 58.4 % of the 308 free-form questions. Dates and machines: docs/results.md.
"""

from typing import Any

import ml_collections

from jaxvqa import optim
from jaxvqa.configs import common

VARIANTS = (
    "vqa_rad",
    "table",
    "image_disjoint",
    "no_test_frames",
    "compact",
    "augment",
    "adam",
    "ban",
    "san",
    "distmodal",
    "blind",
    "small",
)

BRANCHES = ("abdomen", "head", "chest")
"""The model's image branches: the variants abdomen, brain and chest of configs/mtpt.py train them."""

COMPACT = {"embed_width": 64, "width": 128, "branch": "resnet18", "branch_sizes": {"width": 16}}
SMALL = {"embed_width": 16, "width": 32, "branch": "resnet10", "branch_sizes": {"width": 8}}
COMPACT_IMAGE, SMALL_IMAGE = 96, 64
"""Sizes of networks and images that the pre-training of the branches has to share (configs/mtpt.py)."""

COMPACT_RATES = (
    *((0, 0.5), (1, 1.0), (2, 1.5), (3, 2.0), (8, 1.5), (11, 1.125), (14, 0.84), (17, 0.63), (20, 0.3), (22, 0.1)),
)
"""The published learning rate's shape over 24 epochs: rows of (epoch, share of the base rate)."""

SHARDING = (
    (r"embed/table_.*", ("fsdp", None)),
    (r"question/.*kernel", ("fsdp", None)),
    (r".*/(theta|phi|value)/kernel", ("fsdp", "tensor")),
    (r".*/project/kernel", ("tensor", "fsdp")),
    (r".*", ()),
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = common.base()
    config.data = common.data_section(
        *(common.ANSWERS, common.WORDS, common.IMAGES),
        **{"blind": False, "organs": (), "maml_size": 84, "autoencoder_size": 128},
        augment={"crop": 0, "degrees": 0.0, "brightness": 0.0},
    )
    config.compile.vocab_size, config.compile.num_answers = 1177, 458
    config.name = "cmsa"
    config.task = "radiology_vqa"
    config.sharding.params = SHARDING

    # The published model, which the defaults of its class are, and recipe (docs/originals/cmsa.md, sections 2 to 8). With
    # model.self_attention the original trains words and question at a fifth of the rate: optim.lr_scale.
    config.model = _model(variants)
    config.loss = ml_collections.ConfigDict({"organ": 0.5, "reconstruction": 0.001, "dynamic": False})
    config.batch_size = 32
    config.optim.name = "adamax"
    config.optim.lr = 0.005
    config.optim.clip_norm = 0.25
    config.total = "80 epochs"
    config.optim.schedule = ml_collections.ConfigDict({"name": "epochs", "table": optim.cmsa_table(80)})
    for branch in BRANCHES:
        table = ((rf"{branch}/(.*)", r"backbone/\1"), (".*", False))
        config.init_from[branch] = common.start_from(table, NOT_TRAINED)

    if "vqa_rad" in variants:
        _vqa_rad(config, variants)
    else:
        _phantom_vqa(config)
        if "table" in variants:
            common.of_table(config)
            # A table says nothing of the part of the body, which the model is not trained to name then.
            config.data.organs, config.loss.organ = (0, 1, 2), 0.0
            config.data.max_tokens = 16
    if "compact" in variants:
        _compact(config)
    if "augment" in variants:
        _augment(config)
    if fusion := _fusion(variants):
        _mevf(config, fusion, distmodal="distmodal" in variants)
    if "adam" in variants:
        config.name += "-adam"
        _adam(config)
    if "blind" in variants:
        config.name += "-blind"
        config.data.blind = True
        config.data.image_size = 32  # of noise, one cell says as much as many
    if "vqa_rad" not in variants or "compact" in variants:
        for branch in set(BRANCHES) & set(config.init_from):
            config.init_from[branch].without = FROM_NOTHING
    if "small" in variants:
        _small(config)
    return config


NOT_TRAINED = (
    "the paper trains each image branch first (configs/mtpt.py); users of the original who left that out lost 11 "
    "points."
)


FROM_NOTHING = "the image branches can be trained first, as the paper does (configs/mtpt.py); here they start anew."
"""What is said of smaller networks and of other data, of which the paper's users can report nothing."""


def _vqa_rad(config: ml_collections.ConfigDict, variants: set[str]) -> None:
    config.name = "cmsa-vqa_rad"
    config.data.examples = "vqa_rad/questions"
    config.data.images = "vqa_rad/images"
    config.data.organs = ("ABD", "HEAD", "CHEST")
    config.data.answers.min_count = 1
    config.data.answers.rule = "exact"
    config.log_every = "1 epoch"
    config.checkpoint.every = "5 epochs"
    if "no_test_frames" in variants:
        config.name += "-no_test_frames"
        config.data.train_split = "train_without_test_frames"
    if "image_disjoint" in variants:
        config.name += "-image_disjoint"
        config.data.examples = "vqa_rad/image_disjoint"
    row: dict[str, Any] = {"type": "vqa_rad", "train_split": config.data.train_split, "batch_size": 64}
    config.main_eval = "test"
    config.evals = ml_collections.ConfigDict()
    config.evals.test = common.evaluation("test", every="20 epochs", **row)
    config.evals.test_blank_image = common.evaluation("test", every=config.total, predict="answers_blank", **row)


def _phantom_vqa(config: ml_collections.ConfigDict) -> None:
    """The embedded phantoms, by a newer recipe than the published one."""
    config.name = "cmsa-phantom_vqa"
    config.data.examples = "phantom_vqa/questions"
    config.data.images = "phantom_vqa/images"
    config.data.organs = (2, 0, 1)  # the data set's labels of abdomen, head and chest
    config.data.answers.min_count = 3
    config.data.answers.rule = "soft"
    config.compile.vocab_size = 200
    config.compile.num_answers = 60
    _compact(config)
    config.name = "cmsa-phantom_vqa"
    config.total = "8 epochs"
    config.model.dropout = 0.2
    _adam(config)
    config.main_eval = "val"
    config.evals = ml_collections.ConfigDict()
    config.evals.val = common.evaluation("val", every="1 epoch", batch_size=128, train_split="train")
    config.evals.val_blank_image = common.evaluation("val", every=config.total, batch_size=128, predict="answers_blank")


def _adam(config: ml_collections.ConfigDict) -> None:
    """Adam and a cosine instead of Adamax and steps."""
    config.optim.name = "adam"
    config.optim.lr = 1e-3
    config.optim.clip_norm = 1.0
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE)


def _compact(config: ml_collections.ConfigDict) -> None:
    """A network that 2 CPU cores train in half an hour: fewer pixels, channels, layers and epochs."""
    config.name += "-compact"
    config.data.image_size = COMPACT_IMAGE
    config.model.update(COMPACT, organ_width=16, organ_hidden=64)
    config.total = "24 epochs"
    config.optim.schedule.table = COMPACT_RATES
    for row in config.evals.values() if "evals" in config else ():
        row.every = config.total if row.predict == "answers_blank" else "4 epochs"


def _augment(config: ml_collections.ConfigDict) -> None:
    """Small random changes of the training images, which the published recipe does not make."""
    config.name += "-augment"
    config.data.augment.crop = 8
    config.data.augment.degrees = 10.0
    config.data.augment.brightness = 0.2


def _fusion(variants: set[str]) -> str:
    return next((fusion for fusion in ("san", "ban") if fusion in variants), "")


def _model(variants: set[str]) -> ml_collections.ConfigDict:
    if fusion := _fusion(variants):
        # As wide word vectors as CMSA's, BioWordVec's, instead of MEVF's 300.
        branches = "distmodal" if "distmodal" in variants else "mevf"
        return common.model(fusion, image_branches=branches, embed_width=200)
    return common.model("cmsa")


def _mevf(config: ml_collections.ConfigDict, fusion: str, *, distmodal: bool) -> None:
    """BAN or SAN over MEVF's auto-encoder and meta-learned network, or BAN over CMSA's three branches."""
    config.name = config.name.replace("cmsa", f"{fusion}-distmodal" if distmodal else f"{fusion}-mevf")
    config.sharding.params = tuple(row for row in SHARDING if not row[0].startswith(".*/"))
    # The branches' paths begin with "image/" here.
    config.init_from = ml_collections.ConfigDict({"model": config.init_from.model})
    if distmodal:
        for branch in BRANCHES:
            table = ((rf"image/{branch}/(.*)", r"backbone/\1"), (".*", False))
            config.init_from[branch] = common.start_from(table, NOT_TRAINED)
        return
    config.total = "20 epochs"
    config.optim.schedule.table = optim.cmsa_table(20)
    for branch in ("maml", "autoencoder"):
        table = ((rf"(image/{branch}/.*)", r"\1"), (".*", False))
        config.init_from[branch] = common.start_from(
            table, "MEVF trains this branch first; its published weights can be converted (docs/checkpoints.md)."
        )


def _small(config: ml_collections.ConfigDict) -> None:
    """Runs end to end in about a minute on 2 CPU cores; its numbers mean nothing."""
    config.name += "-small"
    for row in config.init_from.values():
        row.without = ""
    config.data.image_size = SMALL_IMAGE
    config.data.maml_size = 28
    config.data.autoencoder_size = 32
    config.model.update(SMALL, organ_width=8, organ_hidden=16)
    if "maml_width" in config.model:
        config.model.maml_width = config.model.autoencoder_width = config.model.code_width = 8
    config.data.limit = 256
    config.batch_size = 32
    config.total = "2 epochs"
    config.log_every = "4 steps"
    for row in config.evals.values():
        row.batch_size = 32
