"""Flamingo: answers, captions and reports in words (F. Scherer and others, MLMI; after Alayrac et al., NeurIPS 2022).

    python -m jaxvqa.main --config=configs/flamingo.py:VARIANT

    VARIANT              hardware     time        score
    (none)               2 CPU cores  18 minutes  89.9 % of val, the embedded phantoms, from nothing
    captions             1 CPU core   11 minutes  BLEU-1 79.1 of their captions
    pixels               2 CPU cores  stopped     55.8 % after 57,600 questions: images instead of regions
    table                2 CPU cores  not run     not measured: questions of your own, regions proposed
    proposed             2 CPU cores  26 minutes  65.9 % of val: regions proposed from the images alone
    classify             2 CPU cores  not run     not measured: a class head beside the text
    blind                2 CPU cores  not run     not measured; shown a black image the first has 38.5 %
    small                2 CPU cores  1 minute    none: to see that everything runs
    mimic_cxr            1 GPU        not run     not measured: pre-training on reports
    roco,flamingo_mode   1 GPU        not run     not measured: pre-training on captions, vision, GPT-2 fixed
    vqa_rad,mlmi         1 GPU        not run     published: 126 of 225 test answers by the class head
    vqa_rad,held_out     1 GPU        not run     not measured: chosen by held-out training images
    imageclef,mlmi       1 GPU        not run     published: 122 of 500 exact on validation, BLEU-1 0.273

The published size is ViT-B/32, a resampler of 64 latents, and GPT-2 with a cross-attention after every third block: 250 million
parameters, of which 78 million are trained where vision and GPT-2 stay as they are (`flamingo_mode`). Both are taken from other
files, as the last run is by a fine-tuning:

    python -m jaxvqa.convert --system=gpt2 --from=DIR --to=runs/gpt2
    python -m jaxvqa.convert --system=clip_vision --from=DIR --to=runs/clip
    … --config.data.tokenizer=DIR --config.init_from.language.workdir=runs/gpt2 --config.init_from.vision.workdir=runs/clip
    … --config.data.tokenizer=DIR --config.init_from.model.workdir=runs/roco/best

A trained run also answers after examples (`config.data.shots`), drawn or with the most similar images, or by the likelihood
of given answers: the classes, those of a JSON list, or yes and no.

    … --mode=eval --config.data.shots=3 --config.data.max_prompt=90 --config.data.shots_by=image
    … --mode=eval --config.evals.val.predict=ranked --config.data.candidates=answers.json

VQA-RAD has no validation split, and `vqa_rad` chooses its best state, and when to stop, by the **test** split, as the original
does: its scores are of the best of up to 80 looks at the test. `vqa_rad,held_out` chooses by a tenth of the training images.

`mlmi` computes as MLMI's code of July 2022 does, which checkpoints of theirs need (`jaxvqa.models.flamingo_quirks`).
Recipes and published scores: docs/originals/flamingo.md, sections 11 and 21; dates and machines of ours: docs/results.md.
"""

from typing import Any

import ml_collections

from jaxvqa.configs import common
from jaxvqa.data.images import IMAGENET_MEAN, IMAGENET_STD
from jaxvqa.errors import ConfigError
from jaxvqa.init_from import LEADING_ROWS
from jaxvqa.models.flamingo_quirks import FREEZE

DATA_SETS = ("mimic_cxr", "roco", "vqa_rad", "imageclef")
VARIANTS = (
    *DATA_SETS,
    "captions",
    "pixels",
    "proposed",
    "table",
    "classify",
    "held_out",
    "flamingo_mode",
    "mlmi",
    "blind",
    "small",
)

NOT_TRAINED = "a network that starts from nothing needs far more data than there is; the original starts from {}."

SHARDING = (
    (r"language/embed/embedding", (None, "fsdp")),
    (r".*/(up|query|key|value)/kernel", ("fsdp", "tensor")),
    (r".*/(down|output)/kernel", ("tensor", "fsdp")),
    (r".*", ()),
)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Returns the config of a variant; several are joined by commas."""
    variants = common.parse_variants(arg, VARIANTS)
    if "held_out" in variants and "vqa_rad" not in variants:
        raise ConfigError("The variant held_out is for vqa_rad, which has no validation split; the others have one.")
    config = common.base()
    config.data = common.data_section(
        *(common.ANSWERS, common.TEXTS, common.IMAGES, common.REGIONS),
        **{"blind": False, "classify": False, "max_regions": 16, "region_width": 320},
        **{"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "answers": {"form": "vqa"}},
        augment={"crop": 0, "degrees": 0.0, "flip": False, "colour": 0.0},
    )
    config.generate = ml_collections.ConfigDict(common.GENERATE)
    config.compile.vocab_size, config.compile.num_answers = 50261, 332
    config.name = "flamingo"
    config.task = "text_generation"
    config.sharding.params = SHARDING
    # Training shows one image; that all have the same vector lets several stand before a prompt (data.shots).
    config.model = common.model("flamingo", media_numbered=False)
    config.loss = ml_collections.ConfigDict(
        {"text": True, "text_smoothing": 0.0, "class_smoothing": 0.0, "prompt": True}
    )
    config.data.classify = "classify" in variants
    config.data.blind = "blind" in variants

    chosen = next((name for name in DATA_SETS if name in variants), "")
    if chosen:
        _published(config, mlmi="mlmi" in variants)
        {"mimic_cxr": _mimic_cxr, "roco": _roco, "vqa_rad": _vqa_rad, "imageclef": _imageclef}[chosen](config)
        if "held_out" in variants:
            _hold_out(config)
        if "flamingo_mode" in variants:
            config.optim.freeze = FREEZE["flamingo_mode"]
    else:
        _phantom_vqa(config, captions="captions" in variants, pixels="pixels" in variants)
    if "table" in variants:
        common.of_table(config)
        # Tables ask as many questions about an image as they like, and longer ones.
        config.data.update({"examples_per_image": 1, "max_tokens": 64, "max_prompt": 48})
    if variants & {"proposed", "table"}:
        common.propose_regions(config)
    config.name += "".join(f"-{name}" for name in VARIANTS[4:] if name in variants - {"small", "table"})
    if "small" in variants:
        _small(config)
    return config


# --- the embedded phantoms -----------------------------------------------------------------------------------------------


def _phantom_vqa(config: ml_collections.ConfigDict, *, captions: bool, pixels: bool) -> None:
    """A small network from nothing, which reads the phantoms' regions, or sees by a residual network.

    Gates of 0 keep a trained language model whole until there is something to see. Here nothing is trained: through gates of 0
    nothing that sees would learn, and what is seen gives the gates no direction either, so they start open.
    """
    config.name = "flamingo-phantom_vqa"
    model = config.model
    model.patches = True
    model.latents = 16
    model.latent_scale = 0.02
    model.cross_heads = 4
    model.cross_head_width = 32
    model.every = 1
    model.gate = 0.5
    model.language_sizes = {"width": 128, "depth": 2, "heads": 4, "positions": 96, "dropout": 0.0}
    model.vision = "resnet" if pixels else "regions"
    model.vision_sizes = {"depth": 10, "width": 32, "features": 0} if pixels else {}
    config.loss.prompt = False
    config.data.examples = "phantom_vqa/captions" if captions else "phantom_vqa/questions"
    config.data.images = "phantom_vqa/images"
    config.data.vocabulary_parts = ("phantom_vqa/questions", "phantom_vqa/captions")
    config.data.template = "caption" if captions else "vqa"
    config.data.image_size = 96
    config.data.max_tokens = 40 if captions else 24
    config.data.max_prompt = 6 if captions else 22
    config.data.examples_per_image = 1 if captions else 5  # all that there are about an image, which is encoded once
    config.data.answers.min_count = 10
    config.data.answers.rule = "soft"
    config.compile.vocab_size = 700
    config.compile.num_answers = 60
    config.generate.max_new_tokens = 36 if captions else 6
    config.batch_size = 32 if captions else 80
    config.total = "12 epochs"
    config.optim.lr = 1.5e-3
    config.optim.clip_norm = 1.0
    config.optim.schedule = ml_collections.ConfigDict(common.COSINE)
    config.checkpoint.every = "25 %"
    _evaluations(config, every="25 %", batch_size=128, captions=captions)


# --- the published size --------------------------------------------------------------------------------------------------


def _published(config: ml_collections.ConfigDict, *, mlmi: bool) -> None:
    """The network, and what all its recipes share (docs/originals/flamingo.md, sections 1 and 11)."""
    config.model.language_sizes = {"positions": 256} if mlmi else {}
    config.model.vision_sizes = {"heads": 8} if mlmi else {}
    config.model.compat = "2022" if mlmi else ""
    config.data.tokenizer = "gpt2"
    config.data.cache_mib = 4096.0
    config.optim.lr = 1e-4
    config.optim.decay = ((r"resampler/.*", 0.0), (r".*", 0.01))
    config.data.augment.degrees = 10.0
    config.optim.schedule = ml_collections.ConfigDict({"name": "linear", "warmup": "569 steps", "end": 1.0})
    config.optim.freeze = FREEZE["vision"]
    config.log_every = "50 steps"
    config.compile.vocab_size = 50261
    # GPT-2 as it is published but for the new tokens; MLMI's form has positions and a last normalisation of its own.
    own = ((r"language/(position|readout)/.*", False),) if mlmi else ()
    gpt2 = ((r"language/embed/embedding", LEADING_ROWS), *own, (r"language/.*", True), (r".*", False))
    config.init_from.language = common.start_from(gpt2, NOT_TRAINED.format("GPT-2"))
    config.init_from.vision = common.start_from(
        ((r"vision/.*", True), (r".*", False)), NOT_TRAINED.format("PubMedCLIP")
    )


def _pretraining(config: ml_collections.ConfigDict, name: str, texts: str, **changes: Any) -> None:
    """Texts about images: `texts` is the data set's part of them."""
    config.name = f"flamingo-{name}"
    config.data.update(
        {"examples": f"{name}/{texts}", "images": f"{name}/images", "template": "caption", "max_prompt": 16}
    )
    config.batch_size = 96
    config.total = "200 epochs"
    config.update_from_flattened_dict(changes)
    _evaluations(config, every="1 epoch", batch_size=96, captions=True, texts_every="10 epochs")


def _mimic_cxr(config: ml_collections.ConfigDict) -> None:
    config.model.language_sizes.maps = False  # memory grows linearly with the tokens
    changes = {"data.mean": (0.4719,) * 3, "data.std": (0.3029,) * 3, "data.max_tokens": 256}
    _pretraining(config, "mimic_cxr", "reports", **changes, **{"generate.max_new_tokens": 180})
    config.optim.freeze = FREEZE["flamingo_mode"]
    config.optim.decay = ((r".*", 0.01),)


def _roco(config: ml_collections.ConfigDict) -> None:
    changes = {"data.mean": (0.3570, 0.3621, 0.3636), "data.std": (0.2924, 0.2941, 0.2951)}
    _pretraining(config, "roco", "captions", **changes, **{"generate.max_new_tokens": 100})


def _vqa_rad(config: ml_collections.ConfigDict) -> None:
    config.name = "flamingo-vqa_rad"
    config.data.update({"examples": "vqa_rad/questions", "images": "vqa_rad/images"})
    config.data.update({"classify": True, "text_form": "rad", "max_tokens": 64, "max_prompt": 48})
    config.data.answers.form = "rad"
    config.data.augment.colour = 0.4
    config.compile.num_answers = 458
    config.total = "80 epochs"
    config.optim.lr = 1e-5
    config.optim.freeze = FREEZE["flamingo_mode"]
    _finetuning(config, batch_size=64, patience=5)
    _evaluations(config, every="1 epoch", batch_size=64, split="test", texts_every="5 epochs", classes="vqa_rad")


def _finetuning(config: ml_collections.ConfigDict, *, batch_size: int, patience: int) -> None:
    """Starts from all of a pre-trained network but the class head."""
    config.loss.class_smoothing = 0.2
    config.batch_size = batch_size
    config.optim.schedule.warmup = "30 steps"
    config.checkpoint.every = "5 epochs"
    config.best.patience = patience
    head = ((r"class_.*", False),) if config.data.classify else ()
    config.init_from.model = common.start_from((*head, (r".*", True)))


def _hold_out(config: ml_collections.ConfigDict) -> None:
    """Chooses by the likelihood of every tenth training image's questions, and tests once, at the end.

    Images are held out, not questions, whose answers others about the same image may give away. The test is of the last state;
    that of the best one is `--mode=eval --workdir=WORKDIR/best`.
    """
    config.data.held_out = 0.1
    for row in config.evals.values():
        row.every = config.total
    config.evals.likelihood.split, config.evals.likelihood.every = "held_out", "1 epoch"


def _imageclef(config: ml_collections.ConfigDict) -> None:
    config.name = "flamingo-imageclef"
    config.data.update({"examples": "vqa_med/questions_2021", "images": "vqa_med/images_2021"})
    config.data.update({"mean": (0.2570,) * 3, "std": (0.2710,) * 3})
    config.data.answers.form = "verbatim"
    config.data.augment.flip = True
    config.total = "120 epochs"
    config.optim.clip_norm = 1.0
    _finetuning(config, batch_size=32, patience=10)
    _evaluations(config, every="1 epoch", batch_size=50, texts_every="10 epochs", classes="vqa_med")
    if config.data.classify:
        config.best.metric, config.best.mode = "likelihood/class_accuracy", "max"


def _evaluations(
    config: ml_collections.ConfigDict,
    *,
    every: str,
    batch_size: int,
    captions: bool = False,
    split: str = "val",
    texts_every: str = "",
    classes: str = "vqa",
) -> None:
    """The loss often, which decides the best state; generated texts less often, and at the end with a black image too."""
    row: dict[str, Any] = {"batch_size": batch_size}
    config.main_eval = split
    config.evals = ml_collections.ConfigDict()
    if config.data.classify:
        fields: dict[str, dict[str, Any]] = {"vqa_rad": {"train_split": "train"}, "vqa_med": {"repair_names": False}}
        config.evals.classes = common.evaluation(
            split, every=every, type=classes, predict="classes", **row, **fields.get(classes, {})
        )
    controls = {} if captions else {"train_split": config.data.train_split}
    texts = row | {"type": "generation"} | ({"plain_words": False} if captions else {})
    config.evals[split] = common.evaluation(split, every=texts_every or every, **texts, **controls)
    config.evals[f"{split}_blank"] = common.evaluation(split, every=config.total, predict="answers_blank", **texts)
    if not captions:
        config.evals.nearest = common.evaluation(
            split, every=config.total, type="generation", predict="embeddings", **row
        )
    config.evals.likelihood = common.evaluation(split, every=every, type="likelihood", predict="likelihood", **row)
    config.best.metric = "likelihood/loss"


def _small(config: ml_collections.ConfigDict) -> None:
    """Runs end to end on 2 CPU cores in little time; its numbers mean nothing."""
    config.name += "-small"
    for start in config.init_from.values():
        start.without = ""
    config.data.limit = 160
    config.data.tokenizer = ""
    config.data.vocabulary_parts = ()
    config.data.vocab_size = 400
    config.data.image_size = 32
    config.data.examples_per_image = 1
    config.data.answers.min_count = 1
    config.model.language_sizes = {"width": 32, "depth": 2, "heads": 2, "positions": 512}
    config.model.vision = "clip"
    config.model.vision_sizes = {"width": 32, "depth": 1, "heads": 2, "patch": 8, "features": 16}
    config.model.patches = False
    config.model.latents = 4
    config.model.cross_heads = 2
    config.model.cross_head_width = 16
    config.optim.freeze = ()
    config.batch_size = 16
    config.total = "2 epochs"
    config.log_every = "5 steps"
    config.checkpoint.every = "1 epoch"
    config.generate.max_new_tokens = 6
    for row in config.evals.values():
        row.every = config.total
        row.batch_size = 16
