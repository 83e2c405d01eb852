"""CMSA's multi-task pre-training: one of its image branches learns an image task, and whether a question fits the image.

    python -m jaxvqa.main --config=configs/mtpt.py:VARIANT --workdir=runs/ORGAN
    python -m jaxvqa.main --config=configs/cmsa.py --config.init_from.abdomen.workdir=runs/abdomen \\
        --config.init_from.head.workdir=runs/brain --config.init_from.chest.workdir=runs/chest

    VARIANT              hardware     time        score
    abdomen              1 CPU core   14 minutes  66.4 mean intersection over union of organs, 80.0 % fits
    brain                1 CPU core   10 minutes  92.5 % of 3 classes, 83.0 % fits
    chest                1 CPU core   6 minutes   90.5 % of 2 classes, 85.5 % fits
    brain,real           1 GPU        not run     not measured: the published set and recipe at full size
    brain,real,compact   2 CPU cores  not run     not measured: the small network for real images
    brain,small          2 CPU cores  1 minute    none: to see that everything runs

The images are phantoms, of other patients than those of configs/cmsa.py; "fits" is whether a question fits the image. With
`real` they are the published sets, which have to be put into place first (tfds_builders/mtpt/README.md).
"""

import ml_collections

from jaxvqa.configs import cmsa, common

ORGANS = ("abdomen", "brain", "chest")
VARIANTS = (*ORGANS, "real", "compact", "small")
CLASSES = {"abdomen": 14, "brain": 3, "chest": 2}
PHANTOM_RECIPES = {"abdomen": ("20 epochs", 0.002), "brain": ("40 epochs", 0.005), "chest": ("20 epochs", 0.002)}
"""Organ -> how long the phantoms are trained on, and the learning rate."""


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant: an organ (abdomen by default), and what else is joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    organ = next((organ for organ in ORGANS if organ in variants), "abdomen")
    config = common.base()
    config.data = common.data_section(
        *(common.WORDS, common.IMAGES),
        question_list=f"mtpt/{organ}_questions",
        augment={"crop": 8, "degrees": 15.0, "brightness": 0.0},
    )
    config.compile.vocab_size, config.compile.num_classes = 1177, CLASSES[organ]
    config.name = f"mtpt-{organ}"
    config.task = "multi_task_pretraining"
    config.sharding.params = ((r".*/(theta|phi|value)/kernel", ("fsdp", "tensor")), (r".*", ()))

    # The published sizes and recipe (docs/originals/cmsa.md, section 10).
    config.model = common.model("mtpt", task="segment" if organ == "abdomen" else "classify", spatial=False)
    config.loss = ml_collections.ConfigDict({"image": 1.0, "compatibility": 1.0})
    config.data.examples = f"mtpt/{organ}"
    config.batch_size = 10
    config.optim.name = "adamax"
    config.optim.lr = 0.01
    config.optim.clip_norm = 0.25
    config.total = "100 epochs"
    falls = ((epoch, (1 - (epoch - 1) / 100) ** 0.9) for epoch in range(20, 100, 20))
    config.optim.schedule = ml_collections.ConfigDict({"name": "epochs", "table": ((0, 1.0), *falls)})
    config.log_every = "1 epoch"
    config.checkpoint.every = "5 epochs"
    config.main_eval = "test"
    config.evals = ml_collections.ConfigDict()
    config.evals.test = common.evaluation("test", every="5 epochs", batch_size=20, type="scores", predict="scores")

    if "real" not in variants:
        _phantoms(config, organ)
    if "compact" in variants:
        _compact(config)
    if "small" in variants:
        _small(config)
    return config


def _compact(config: ml_collections.ConfigDict) -> None:
    config.name += "-compact"
    config.data.image_size = cmsa.COMPACT_IMAGE
    config.model.update(cmsa.COMPACT)


def _phantoms(config: ml_collections.ConfigDict, organ: str) -> None:
    _compact(config)
    config.name = f"mtpt-phantom_{organ}"
    config.data.examples = f"mtpt/phantom_{organ}"
    config.data.question_list = f"mtpt/phantom_{organ}_questions"
    config.total, config.optim.lr = PHANTOM_RECIPES[organ]
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE)


def _small(config: ml_collections.ConfigDict) -> None:
    """Runs end to end in about a minute on 2 CPU cores; its numbers mean nothing."""
    config.name += "-small"
    config.data.image_size = cmsa.SMALL_IMAGE
    config.data.limit = 80
    config.model.update(cmsa.SMALL)
    config.total = "2 epochs"
