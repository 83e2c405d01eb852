"""What all configs share: the fields of the loop with their defaults, and the reading of `:arg`."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from jaxvqa.errors import ConfigError, nearest


def parse_variants(arg: str | None, known: tuple[str, ...]) -> set[str]:
    """Splits "a,b" into {"a", "b"}.

    Raises:
      ConfigError: for a variant that the config does not know.
    """
    variants = {part for part in (arg or "").split(",") if part}
    unknown = sorted(variants - set(known))
    if unknown:
        raise ConfigError(
            f"This config has no variant {', '.join(map(repr, unknown))}; it has {', '.join(known)}."
            + "".join(nearest(name, known) for name in unknown)
        )
    return variants


def base() -> ml_collections.ConfigDict:
    """The fields of the loop, each with a default and its meaning."""
    config = ml_collections.ConfigDict()
    config.name = ""  # shown in logs and the report
    config.seed = 0  # decides parameters, dropout, data order: same seed, same run
    config.dtype = "float32"  # of matmuls: float32 | bfloat16; parameters and reductions stay float32
    config.task = ""  # a row of jaxvqa.tasks.TASKS
    config.batch_size = 64  # examples a step, over all devices
    config.microbatches = 1  # gradient accumulation: parts that a batch is cut into
    config.total = "1 epoch"  # durations: steps, epochs, examples, %
    config.curriculum = ()  # rows (from epoch, splits of data.train_split to draw from); empty: all of it
    config.log_every = "50 steps"
    config.main_eval = ""  # the one of config.evals that a run is judged by; empty where there is but one
    config.report = True  # write report.html at the end
    config.profile_steps = ""  # "10:20" records these steps
    config.compilation_cache = "~/.cache/jaxvqa/xla"  # empty: none; JAX_COMPILATION_CACHE_DIR and XDG_CACHE_HOME win

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.sharding = ml_collections.ConfigDict()
    config.sharding.params = ()  # rows (regex over the parameter path, mesh axis for each dimension); empty: whole
    config.sharding.memory = ()  # the same for queues and histories

    config.optim = ml_collections.ConfigDict()
    config.optim.loss = "mean"  # what is descended: the mean over the examples, or their sum
    config.optim.name = "adam"  # adam | adamax | sgd
    config.optim.lr = 1e-4
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8  # outside the root
    config.optim.momentum = 0.9  # sgd
    config.optim.nesterov = False  # sgd
    config.optim.restart_epochs = ()  # sgd: at whose start momentum is forgotten; from the first on without Nesterov
    config.optim.clip_norm = 0.0  # global gradient norm; 0: no clipping
    config.optim.ema = 0.0  # decay of the moving averages of parameters and batch statistics to evaluate with; 0: none
    config.optim.decay = ()  # rows (regex, decoupled weight decay)
    config.optim.coupled_decay = ()  # rows (regex, weight decay that is part of the gradient, as in PyTorch's SGD)
    config.optim.lr_scale = ()  # rows (regex, rate multiplier)
    config.optim.bounds = ()  # rows (regex, None or (low, high)): within what parameters are kept; an end may be None
    config.optim.freeze = ()  # rows (regex, fixed or not)
    config.optim.frozen_dtype = "float32"  # of the parameters that are fixed: bfloat16 halves their memory
    config.optim.schedule = ml_collections.ConfigDict({"name": "constant"})

    config.checkpoint = ml_collections.ConfigDict({"every": "1 epoch", "keep": 2})
    # The metric of an evaluation, as "likelihood/loss": the state with its `mode` (min | max) is kept in WORKDIR/best too, and
    # `patience` evaluations without a better one end the run; 0: none do.
    config.best = ml_collections.ConfigDict({"metric": "", "mode": "min", "patience": 0})
    config.init_from = ml_collections.ConfigDict()  # other runs, whose parameters this one starts from, one row each
    config.init_from.model = start_from(((".*", True),))

    config.compile = ml_collections.ConfigDict()
    config.compile.target = "v5e:2x4"  # --mode=compile: a TPU topology, "h100:8", or "local"
    return config


def start_from(table: tuple[tuple[str, bool | str], ...], without: str = "") -> ml_collections.ConfigDict:
    """A row of `config.init_from`: the folder of another run (empty: none), and which of its parameters to take.

    Args:
      table: rows (regex over this model's path, True | False | the other path), see `jaxvqa.checkpoints.init_from`.
      without: what the log and the report say when no folder is given; empty: nothing.
    """
    return ml_collections.ConfigDict({"workdir": "", "table": table, "without": without})


# The data section of a config is composed of these pieces; `jaxvqa.fields` says what each field means.

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
    "tokeniser": "",
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

GENERATE: Mapping[str, Any] = {
    "max_new_tokens": 20,
    "beams": 1,
    "length_penalty": 1.0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "seed": 0,
}
"""`config.generate`: how texts are written."""


def data_section(*pieces: Mapping[str, Any], **fields: Any) -> ml_collections.ConfigDict:
    """`config.data` of these pieces, with other defaults and more fields: a mapping is added to the group of its name."""
    section: dict[str, Any] = {}
    for piece in (EXAMPLES, *pieces, fields):
        for name, value in piece.items():
            section[name] = {**section.get(name, {}), **value} if isinstance(value, Mapping) else value
    return ml_collections.ConfigDict(section)


def evaluation(split: str, *, every: str, batch_size: int, **changes: Any) -> ml_collections.ConfigDict:
    """A row of `config.evals`: accuracy over a split; `changes` are fields that differ, or that another `type` has."""
    row = {"type": "vqa", "split": split, "every": every, "batch_size": batch_size, "predict": "answers"}
    return ml_collections.ConfigDict(row | changes)
