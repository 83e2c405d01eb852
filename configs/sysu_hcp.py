"""SYSU-HCP at VQA-Med 2021: classifies the abnormality that an image shows (Gong et al., CLEF 2021 working notes).

    python -m jaxvqa.main --config=configs/sysu_hcp.py:VARIANT

    VARIANT                           hardware     time       score
    (none)                            1 CPU core   6 minutes  89.2 % of val, the embedded phantoms; mirrored too 91.3 %
    no_hagap                          1 CPU core   6 minutes  87.8 %: means of the last map alone
    smoothing                         1 CPU core   6 minutes  90.1 %
    mixup                             1 CPU core   6 minutes  87.0 %
    superloss                         1 CPU core   6 minutes  85.1 %
    table                             2 CPU cores  not run    not measured: questions of your own, by the image alone
    small                             2 CPU cores  1 minute   none: to see that everything runs
    vqa_med_2019,plane,sample         1 CPU core   5 minutes  68.3 % of val
    vqa_med_2019,organ,sample         1 CPU core   5 minutes  56.4 %
    vqa_med_2019,modality,sample      1 CPU core   5 minutes  18.9 %
    vqa_med_2019,abnormality,sample   1 CPU core   5 minutes  4.2 %, of train 95.2 %
    vqa_med_2021                      1 GPU        not run    the published recipe and size; not measured alone
    vqa_med_2021,BACKBONES            1 GPU        not run    38.2 % of test by the vote of eight of these

BACKBONES is any name of the original's networks, at its published size. Scores are means of three seeds, the last two rows and
abnormality aside: docs/results.md.

The published answers are the vote of eight such runs (configs/sysu_hcp_ensemble.py): resnet50, resnet50HGap, resnest50,
resnest50HGap, vgg16, vgg16HGap, vgg19, vgg19HGap; 0.382 accuracy and 0.416 BLEU on the test set of 2021. Each starts from
ImageNet weights, which `--config.init_from.model.workdir=DIR` takes, and was tested at 384 pixels
(`--config.data.eval_size=384`). The released weights have seen the validation images too
(`--config.data.train_split=train+extra+val`). The answers of questions are the images' classes; a mask of the modality that
the question names is for predictions only: `--config.data.mask_file=modelmask.json
--config.evals.val.predict=answers_masked_unless_confident`, or `answers_masked_as_written`, which gives no answer where the
original's script stops.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxvqa import optim
from jaxvqa.configs import common
from jaxvqa.losses import MIXUP_ALPHA, SMOOTHING
from jaxvqa.models.sysu_hcp import BACKBONES

IDEAS = {"mixup": "mixup", "smoothing": "label_smooth", "superloss": "superloss"}
"""Variant -> flag of `config.loss`."""

QUESTION_TYPES = ("modality", "plane", "organ", "abnormality")

VARIANTS = ("vqa_med_2021", "vqa_med_2019", *QUESTION_TYPES, "sample", "no_hagap", *IDEAS, *BACKBONES, "table", "small")

VQA_MED = {"examples": "vqa_med/questions_sysu_hcp", "images": "vqa_med/images_sysu_hcp"}

IMAGE_SIZES = dict.fromkeys(("resnet50", "resnet50HGap", "resnest50", "resnest50HGap"), 256)
"""Network -> pixels that the published one was trained with, where they are not its usual ones."""

SMALL_SIZES: Mapping[str, Mapping[str, Any]] = {
    "resnest": {"blocks": (1, 1, 1, 1), "stem_width": 4, "bottleneck_width": 8, "features": 16},
    "resnet": {"width": 8},
    "vgg": {"widths": (8, 8, 16, 16, 16)},
    "densenet": {"blocks": (1, 1, 1, 1), "growth": 8, "width": 16},
    "RepVGG": {"blocks": (1, 1, 1, 1), "widths": (8, 8, 16, 16, 32)},
}
"""How the names of networks begin -> sizes for `small`; the others keep the published ones."""

SHARDING = (
    (r"head/.*/kernel", ("fsdp", None)),
    (r"tower/.*/kernel", (None, None, None, "fsdp")),
    (r".*", ()),
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = common.base()
    config.data = common.data_section(
        *(common.ANSWERS, common.IMAGES), eval_size=0, mask_file="", augment={"crop_and_flip": 8}
    )
    config.compile.num_answers = 330
    config.name = "sysu_hcp"
    config.task = "image_classification"
    config.sharding.params = SHARDING

    # The published model and recipe (docs/originals/sysu_hcp.md, sections 2 to 10).
    default = "resnest50" if "no_hagap" in variants else "resnest50HGap"
    backbone = next((name for name in BACKBONES if name in variants), default)
    config.model = common.model("sysu_hcp", backbone=backbone)
    config.loss = ml_collections.ConfigDict(
        {
            **{"mixup": True, "label_smooth": True, "smoothing": SMOOTHING, "superloss": True, "flags": "original"},
            **{"mixup_alpha": MIXUP_ALPHA, "mixup_off_epoch": 0},
        }
    )
    config.data.image_size = IMAGE_SIZES.get(backbone, BACKBONES[backbone].image_size)
    config.batch_size = 32
    config.total = "100 epochs"  # the released weights are those of epoch 50, of the two ResNeSts those of epoch 30
    config.optim.name = "sgd"
    config.optim.lr = 1e-3
    config.optim.nesterov = True
    config.optim.coupled_decay = ((r".*", 5e-4),)
    config.optim.restart_epochs = (20, 40, 60, 80)
    config.optim.schedule = ml_collections.ConfigDict({"name": "epochs", "table": optim.sysu_table(100)})
    # What classifies starts anew, as in the original: the classes of another run are others.
    config.init_from.model = common.start_from(((r"head/.*", False), (r".*", True)))

    if "vqa_med_2021" in variants:
        _vqa_med(config)
    else:
        _scratch(config, compact=backbone not in variants)
        (_vqa_med_2019 if "vqa_med_2019" in variants else _phantom_vqa)(config, variants)
        if "table" in variants:
            common.of_table(config)
            config.data.question_types = ()
        for variant, flag in IDEAS.items():
            config.loss[flag] = variant in variants
    config.name += "".join(f"-{name}" for name in VARIANTS[2:-2] if name in variants)
    if "small" in variants:
        _small(config)
    return config


NOT_TRAINED = "the original starts from a network trained on ImageNet; from scratch, 4,412 images are few."


def _vqa_med(config: ml_collections.ConfigDict) -> None:
    config.name = "sysu_hcp-vqa_med_2021"
    config.data.update(VQA_MED)
    config.init_from.model.without = NOT_TRAINED
    config.log_every = "1 epoch"
    config.checkpoint.every = "5 epochs"
    # repair_names mends the names of six garbled classes in the answers.
    row: dict[str, Any] = {"type": "vqa_med", "train_split": "train", "batch_size": 50, "repair_names": False}
    config.main_eval = "val"
    config.evals = ml_collections.ConfigDict()
    config.evals.val = common.evaluation("val", every="10 epochs", **row)
    config.evals.val_flip = common.evaluation("val", every="10 epochs", predict="answers_flip", **row)
    config.evals.test = common.evaluation("test", every=config.total, **row)


def _scratch(config: ml_collections.ConfigDict, *, compact: bool) -> None:
    """A recipe for networks that start from nothing; `compact`: a small one, for 2 CPU cores."""
    config.loss.flags = "each"
    if compact:
        config.data.image_size = 64
        config.model.sizes.update({"blocks": (1, 1, 1, 1), "stem_width": 16, "bottleneck_width": 32, "features": 64})
    config.optim.name = "adam"
    config.optim.clip_norm = 1.0
    config.optim.restart_epochs = ()
    config.optim.coupled_decay = ()
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE)


def _phantom_vqa(config: ml_collections.ConfigDict, variants: set[str]) -> None:
    """The embedded phantoms."""
    config.name = "sysu_hcp-phantom_vqa"
    config.data.examples = "phantom_vqa/questions"
    config.data.images = "phantom_vqa/images"
    config.data.question_types = tuple(name for name in QUESTION_TYPES if name in variants) or ("abnormality",)
    config.data.answers.min_count = 10
    config.data.answers.rule = "soft"
    config.compile.num_answers = 9
    config.total = "12 epochs"
    config.main_eval = "val"
    config.evals = ml_collections.ConfigDict()
    config.evals.val = common.evaluation("val", every="2 epochs", batch_size=128, train_split="train")
    config.evals.val_flip = common.evaluation("val", every=config.total, batch_size=128, predict="answers_flip")


def _vqa_med_2019(config: ml_collections.ConfigDict, variants: set[str]) -> None:
    """Classes of one type of question, yes and no aside; `sample`: of a part of the release."""
    config.name = "sysu_hcp-vqa_med_2019"
    sample = "sample_" if "sample" in variants else ""
    config.data.examples = f"vqa_med/{sample}questions_2019"
    config.data.images = f"vqa_med/{sample}images_2019"
    config.data.question_types = tuple(name for name in QUESTION_TYPES if name in variants) or ("modality",)
    config.compile.num_answers = 44
    config.total = "60 epochs" if sample else "20 epochs"
    config.log_every = "2 epochs"
    config.checkpoint.every = "20 epochs"
    config.main_eval = "val"
    config.evals = ml_collections.ConfigDict()
    for name, split in (("on_train", "train"), ("val", "val")):
        row: dict[str, Any] = {"type": "vqa_med", "train_split": "train", "batch_size": 60}
        config.evals[name] = common.evaluation(split, every=config.total, **row)


def _small(config: ml_collections.ConfigDict) -> None:
    """Runs end to end on 2 CPU cores in little time; its numbers mean nothing."""
    config.name += "-small"
    config.init_from.model.without = ""
    sizes = next((sizes for name, sizes in SMALL_SIZES.items() if config.model.backbone.startswith(name)), None)
    if sizes:
        config.model.sizes = ml_collections.ConfigDict(dict(sizes))
        if not config.model.backbone.startswith("vgg"):  # the fixed windows of some need 224
            config.data.image_size = 64
    config.data.limit = 128
    config.batch_size = 16
    config.total = "2 epochs"
    config.log_every = "4 steps"
    for row in config.evals.values():
        row.every = config.total
        row.batch_size = 32
