"""RWSAN: Deep Residual Weight-Sharing Attention Network with Low-Rank Attention (Qin, Hu, Zhuang, IEEE TMM 2022).

    python -m jaxvqa.main --config=configs/rwsan.py:VARIANT

    VARIANT               hardware     time            score
    (none)                2 CPU cores  3 minutes       91.9 % of val, the embedded phantoms, three seeds
    blind,brief           2 CPU cores  under 1 minute  41.5 %, by the question alone
    table                 2 CPU cores  not run         not measured: questions of your own, regions proposed
    proposed              2 CPU cores  15 minutes      82.5 % of val: regions proposed from the images alone
    small                 2 CPU cores  under 1 minute  none: to see that everything runs
    easy_vqa              2 CPU cores  13 minutes      99.3 % of test, coloured shapes
    vqa_v2                1 H100       hours, not run  none yet; the paper's recipe on VQA v2, judged by val
    vqa_v2,train+val+vg   1 H100       hours, not run  MCAN, which it derives from, states 70.7 on test-dev
    vqa_v2,mini,blind     2 CPU cores  minutes         31.1 % of other questions: a part, without images

`blind`, `brief` (1 epoch) and `small` can be joined to each data set. Dates and machines: docs/results.md.
"""

from typing import Any

import ml_collections

from jaxvqa.configs import common

VARIANTS = ("vqa_v2", "easy_vqa", "table", "mini", "train+val+vg", "proposed", "blind", "brief", "small")

# Parameter path -> mesh axis of each dimension. The wide projections are split by column, their followers by row, so
# that tensor parallelism needs one reduction for each sub-layer.
SHARDING = (
    (r"embed/embedding", ("fsdp", None)),
    (r"lstm/.*kernel", ("fsdp", None)),
    (r".*/(value|key|query|up)/kernel", ("fsdp", "tensor")),
    (r".*/(output|down)/kernel", ("tensor", "fsdp")),
    (r"(region_input|classifier)/kernel", ("fsdp", "tensor")),
    (r".*", ()),
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    config = common.base()
    config.data = common.data_section(
        *(common.ANSWERS, common.WORDS, common.REGIONS),
        **{"blind": False, "cache_mib": 256.0, "max_tokens": 16, "answers": {"min_count": 9, "rule": "soft"}},
    )
    config.compile.vocab_size, config.compile.num_answers = 20572, 3129
    config.name = "rwsan"
    config.task = "answer_classification"
    config.sharding.params = SHARDING

    # The published model, which the defaults of its class are, and recipe (docs/originals/rwsan.md, section 5).
    config.model = common.model("rwsan")
    config.total = "16 epochs"
    config.optim.loss = "sum"
    config.optim.lr = 1e-4
    config.optim.b2 = 0.98
    config.optim.eps = 1e-9
    config.optim.schedule = ml_collections.ConfigDict(
        {"name": "staircase", "warmup_epochs": 3, "decay_epochs": (12, 14), "decay_rate": 0.2}
    )

    if "vqa_v2" in variants:
        _vqa_v2(config, variants)
    elif "easy_vqa" in variants:
        _easy_vqa(config)
    else:
        _phantom_vqa(config)
    if "table" in variants:
        common.of_table(config)
        config.data.max_tokens = 16
    elif "proposed" in variants:
        config.name += "-proposed"
    if variants & {"table", "proposed"}:
        common.propose_regions(config)
    if "blind" in variants:
        config.name += "-blind"
        config.data.blind = True
    if "brief" in variants:
        config.total = "1 epoch"
    if "small" in variants:
        _small(config)
    return config


def _vqa_v2(config: ml_collections.ConfigDict, variants: set[str]) -> None:
    """VQA v2 with bottom-up region features; the paper's tables are not public."""
    config.name = "rwsan-vqa_v2"
    config.data.examples = "vqa_v2/questions"
    config.data.images = "vqa_v2/features"
    config.data.vocabulary_splits = "train+val+test+vg"
    config.data.answers.splits = "train+val"
    config.log_every = "100 steps"
    config.main_eval = "val"
    config.evals = ml_collections.ConfigDict({"val": common.evaluation("val", every="1 epoch", batch_size=256)})
    if "train+val+vg" in variants:
        config.data.train_split = "train+val+vg"
        config.data.answers.rule = (
            "counts"  # Visual Genome's questions have one annotator: a target of 0.3, as published
        )
        config.main_eval = "test"
        config.evals = ml_collections.ConfigDict({"test": common.evaluation("test", every="16 epochs", batch_size=256)})
    if "mini" in variants:
        config.data.vocabulary_splits = "train+val"
        config.data.answers.splits = "train+val"
        config.data.answers.min_count = 3
        config.data.images = ""


def _phantom_vqa(config: ml_collections.ConfigDict) -> None:
    """The embedded phantoms: a narrower model, and a rate that suits minutes instead of days."""
    config.name = "rwsan-phantom_vqa"
    config.data.examples = "phantom_vqa/questions"
    config.data.images = "phantom_vqa/images"
    config.data.max_regions = 15
    config.data.region_width = 320
    config.data.answers.min_count = 3
    config.compile.vocab_size = 200
    config.compile.num_answers = 60
    config.data.max_tokens = 11
    # As narrow as this: in a given time it sees twice the questions that a network of twice the width does, and learns more.
    _narrow(config, width=32)
    config.model.flatten_width = 128
    config.model.fused_width = 256
    # Minutes of training see each question a few times: nothing to regularise.
    config.model.dropout = 0.0
    config.total = "8 epochs"
    config.optim.lr = 1.3e-3
    config.optim.b2 = 0.999
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE | {"warmup": "3 %"})
    row: dict[str, Any] = {"batch_size": 256, "train_split": "train"}
    config.main_eval = "val"
    config.evals = ml_collections.ConfigDict({"val": common.evaluation("val", every="1 epoch", **row)})


def _easy_vqa(config: ml_collections.ConfigDict) -> None:
    """easy-VQA; the question alone gives 67 %. Learns to compare images with words only after six epochs."""
    _phantom_vqa(config)
    config.name = "rwsan-easy_vqa"
    config.data.examples = "easy_vqa/questions"
    config.data.images = "easy_vqa/images"
    config.data.max_regions = 26
    config.data.answers.min_count = 1
    config.data.answers.rule = "exact"
    config.compile.vocab_size = 28
    config.compile.num_answers = 13
    config.model.heads = 2
    config.model.region_rank = 8
    config.model.guided_rank = 32
    config.total = "20 epochs"
    row: dict[str, Any] = {"batch_size": 256, "train_split": "train"}
    config.main_eval = "test"
    config.evals = ml_collections.ConfigDict({"test": common.evaluation("test", every="2 epochs", **row)})


def _narrow(config: ml_collections.ConfigDict, *, width: int) -> None:
    config.model.embed_width = 64
    config.model.width = width
    config.model.encoder_passes = 1
    config.model.decoder_passes = 1
    config.model.guided_rank = 16
    config.model.flatten_width = width
    config.model.fused_width = 2 * width


def _small(config: ml_collections.ConfigDict) -> None:
    """Runs end to end in under a minute on 2 CPU cores; its numbers mean nothing."""
    config.name += "-small"
    _narrow(config, width=32)
    config.data.limit = 512
    config.batch_size = 32
    config.total = "2 epochs"
    config.log_every = "4 steps"
    for row in config.evals.values():
        row.batch_size = 32
