"""What all configs share: the fields of the loop with their defaults, and the reading of `:arg`."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxvqa import models
from jaxvqa.data import images
from jaxvqa.data.region_features import FEATURE_WIDTH
from jaxvqa.errors import ConfigError, choose


def parse_variants(arg: str | None, known: tuple[str, ...]) -> set[str]:
    """Splits "a,b" into {"a", "b"}.

    Raises:
      ConfigError: for a variant that the config does not know.
    """
    variants = {part for part in (arg or "").split(",") if part}
    unknown = sorted(variants - set(known))
    if unknown:
        raise ConfigError("\n".join(f"This config has no variant {name!r}{choose(name, known)}" for name in unknown))
    return variants


def base() -> ml_collections.ConfigDict:
    """The fields of the loop with their defaults; `jaxvqa.fields` says what each field means."""
    fields = {
        "name": "",
        "seed": 0,
        "dtype": "float32",
        "task": "",
        "batch_size": 64,
        "microbatches": 1,
        "total": "1 epoch",
        "curriculum": (),
        "log_every": "50 steps",
        "main_eval": "",
        "report": True,
        "profile_steps": "",
        "compilation_cache": "~/.cache/jaxvqa/xla",
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "sharding": {"params": (), "memory": ()},
        "checkpoint": {"every": "1 epoch", "keep": 2},
        "best": {"metric": "", "mode": "min", "patience": 0},
        "init_from": {"model": start_from(((".*", True),))},
        "compile": {"target": "v5e:2x4"},
        "optim": OPTIM,
    }
    return ml_collections.ConfigDict(fields)


OPTIM: Mapping[str, Any] = {
    "loss": "mean",
    "name": "adam",
    "lr": 1e-4,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "momentum": 0.9,
    "nesterov": False,
    "restart_epochs": (),
    "clip_norm": 0.0,
    "ema": 0.0,
    "decay": (),
    "coupled_decay": (),
    "lr_scale": (),
    "bounds": (),
    "freeze": (),
    "frozen_dtype": "float32",
    "schedule": {"name": "constant"},
}

COSINE: dict[str, Any] = {"name": "cosine", "warmup": "5 %", "end": 0.01}
"""A schedule for networks that start from nothing."""


def model(name: str, **fields: Any) -> ml_collections.ConfigDict:
    """`config.model` with every field of the class, as its defaults have it but for these."""
    return ml_collections.ConfigDict({"name": name} | models.default_fields(name) | fields)


def start_from(
    table: tuple[tuple[str, bool | str | tuple[str, str]], ...], without: str = ""
) -> ml_collections.ConfigDict:
    """A row of `config.init_from`: the folder of another run (empty: none), and which of its parameters to take.

    Args:
      table: rows (regex over this model's path, True | False | the other path | that and how), see `jaxvqa.init_from.take`.
      without: what the log and the report say when no folder is given; empty: nothing.
    """
    return ml_collections.ConfigDict({"workdir": "", "table": table, "without": without})


# The data section of a config is composed of these pieces.

EXAMPLES: Mapping[str, Any] = {
    "dir": "",
    "examples": "",
    "images": "",
    "image_splits": "",
    "question_types": (),
    "train_split": "train",
    "held_out": 0.0,
    "examples_per_image": 1,
    "limit": 0,
    "cache_mib": 512.0,
    "readers": {"threads": 4, "prefetch_mib": 512.0, "workers": 0},
}
"""Where the examples are, which of them there are, and how they are read: a piece of every data section."""

ANSWERS: Mapping[str, Any] = {"answers": {"file": "", "splits": "train", "min_count": 1, "rule": "exact"}}
"""The answers that a model chooses from."""

WORDS: Mapping[str, Any] = {"vocabulary_splits": "train", "word_vectors": "", "max_tokens": 12}
"""Questions as words."""

IMAGES: Mapping[str, Any] = {"image_size": 224, "augment": {}}
"""Images as pixels; `augment` has the random changes that a system makes in training."""

REGIONS: Mapping[str, Any] = {"max_regions": 100, "region_width": 2048}
"""Images as region features."""

TEXTS: Mapping[str, Any] = {
    "template": "vqa",
    "text_form": "raw",
    "tokenizer": "",
    "vocabulary_parts": (),
    "vocabulary_splits": "train",
    "vocab_size": 1000,
    "max_tokens": 128,
    "max_prompt": 96,
    "shots": 0,
    "shots_by": "seed",
    "shots_split": "train",
    "candidates": "",
}
"""Texts that a model reads and writes, by token."""

CAPTIONS: Mapping[str, Any] = {
    "positives_by": "image_id",
    "in_turn": "",
    "tokenizer": "",
    "vocabulary_parts": (),
    "vocabulary_splits": "train",
    "vocab_size": 1000,
    "max_words": 30,
    "max_tokens": 30,
    "strip_tags": False,
}
"""Captions that are compared with images."""

RANDOM_AUGMENT: Mapping[str, Any] = {
    "mean": images.CLIP_MEAN,
    "std": images.CLIP_STD,
    "augment": {"scale": 0.5, "flip": True, "operations": 2, "level": 5.0, "sound": False},
}
"""BLIP's images in training: crops, mirroring, RandomAugment."""

GENERATE: dict[str, Any] = {
    "max_new_tokens": 20,
    "beams": 1,
    "length_penalty": 1.0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 0,
}
"""`config.generate`: how texts are written."""


PROPOSED_REGIONS = 80
"""The most regions of an image where they are proposed from it."""


def propose_regions(config: ml_collections.ConfigDict) -> None:
    """Regions that see the image alone (`jaxvqa.data.proposals`): a new image can be asked about without a detector."""
    config.data.regions = "shapes"
    config.data.max_regions = PROPOSED_REGIONS
    config.data.region_width = FEATURE_WIDTH


def of_table(config: ml_collections.ConfigDict) -> None:
    """A user's own questions about images (tfds_builders/table): every answer of the training split is a class."""
    config.name = config.name.replace("phantom_vqa", "table")
    config.data.update({"examples": "table/questions", "images": "table/images"})
    config.data.answers.update({"rule": "exact", "min_count": 1})
    if "vocabulary_parts" in config.data:
        config.data.vocabulary_parts = ()


def data_section(*pieces: Mapping[str, Any], **fields: Any) -> ml_collections.ConfigDict:
    """`config.data` of these pieces, with other defaults and more fields: a mapping is added to the group of its name."""
    section: dict[str, Any] = {}
    for piece in (EXAMPLES, *pieces, fields):
        for name, value in piece.items():
            section[name] = {**section.get(name, {}), **value} if isinstance(value, Mapping) else value
    return ml_collections.ConfigDict(section)


PHANTOM_WORDINGS = (
    (r"Computed tomography", "CT"),
    (r"MR image", "MRI"),
    (r"plain film", "radiograph"),
    (r"^(\w+) view of the (\w+), (CT|T\d-weighted MRI|radiograph)", r"\1 \3 of the \2"),
    (r"demonstrates|reveals", "shows"),
    (r"Normal study|Unremarkable appearance", "No focal abnormality"),
)
"""What captions of the embedded phantoms say in several ways, at random."""


def retrieval(split: str, *, every: str, batch_size: int, **changes: Any) -> ml_collections.ConfigDict:
    """A row of `config.evals`: retrieval over a split (`jaxvqa.evaluators.retrieval`); `changes` are fields that differ."""
    row = {
        "type": "retrieval",
        "predict": "match",
        "k_test": 128,
        "texts_per_step": 16,
        "negatives_among": 64,
        "one_to_one": False,
        "max_tokens": 0,
        "wordings": (),
    }
    return evaluation(split, every=every, batch_size=batch_size, **row | changes)


def evaluation(split: str, *, every: str, batch_size: int, **changes: Any) -> ml_collections.ConfigDict:
    """A row of `config.evals`: accuracy over a split; `changes` are fields that differ, or that another `type` has."""
    row = {"type": "vqa", "split": split, "every": every, "batch_size": batch_size, "predict": "answers"}
    return ml_collections.ConfigDict(row | changes)
