"""What each field of a config may be: ranges, choices, durations, tables and paths; all faults are told at once.

In a row's name `*` stands for one part or several, as in `evals.*.batch_size`; the first row that fits a field counts. Who
adds a numeric field to a config or a model adds it to `RANGES`, or a test fails.
"""

import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import ml_collections

from jaxvqa import optim, sharding
from jaxvqa.best import Best
from jaxvqa.configs import field_names
from jaxvqa.errors import ConfigError, nearest
from jaxvqa.inputs import expand_home


@dataclass(frozen=True)
class Range:
    """What a number may be.

    Attributes:
      low, high: the bounds, both allowed.
      above, below: whether a bound itself is not allowed.
      whole: whether it has to be a whole number.
      also: other values that have a meaning of their own.
      many: whether the field holds several, each within the range.
      count: how many, if that is fixed.
      meaning: what the number is, with its unit, for messages.
    """

    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    also: tuple[Any, ...] = ()
    many: bool = False
    count: int | None = None
    meaning: str = ""

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = [f"{'above' if self.above else 'at least'} {self.low:g}"] if math.isfinite(self.low) else []
        if math.isfinite(self.high) and self.high < INT32:
            bounds.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        also = "".join(f", or {value}" for value in self.also if value is not None)
        several = f"{self.count or 'several'}, each " if self.many else ""
        meaning = f" ({self.meaning})" if self.meaning else ""
        return f"{several}{kind}{' ' if bounds else ''}{' and '.join(bounds)}{also}{meaning}"

    def allows(self, value: Any) -> bool:
        """Whether a value is in the range."""
        if self.many:
            several = isinstance(value, Sequence) and not isinstance(value, str)
            return several and self.count in (None, len(value)) and all(map(self._allows_one, value))
        return self._allows_one(value)

    def _allows_one(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value in self.also
        if self.whole and not isinstance(value, int):
            return False
        inside = self.low <= value <= self.high and math.isfinite(value)
        open_end = (self.above and value == self.low) or (self.below and value == self.high)
        return value in self.also or (inside and not open_end)


INT32 = 2**31 - 1


def _count(low: int = 1, meaning: str = "", **more: Any) -> Range:
    return Range(low, INT32, whole=True, meaning=meaning, **more)


_PIXELS = _count(1, "pixels a side")
_RATE = Range(0, 1, below=True, meaning="share that is set to 0")
_SHARE = Range(0, 1, below=True)
_WEIGHT = Range(0, meaning="weight in the loss")
_SEED = Range(0, 2**32 - 1, whole=True)

RANGES: tuple[tuple[str, Range], ...] = (
    ("seed", _SEED),
    ("batch_size", _count(meaning="examples a step")),
    ("microbatches", _count(meaning="parts of a batch")),
    ("evals.*.batch_size", _count(meaning="examples at once")),
    ("checkpoint.keep", _count(meaning="newest checkpoints that stay")),
    ("best.patience", _count(0, "evaluations; 0: no end")),
    ("compile.vocab_size", _count()),
    ("compile.num_*", _count()),
    ("mesh.*", _count(also=(-1,), meaning="devices; -1: all that are left")),
    # data
    ("data.cache_mib", Range(0, meaning="MiB")),
    ("data.limit", _count(0, "examples of each split; 0: all")),
    ("data.held_out", Range(0, 1, below=True, meaning="share of the images that are not trained on")),
    ("data.max_tokens", _count()),
    ("data.max_prompt", _count()),
    ("data.max_regions", _count()),
    ("data.region_width", _count()),
    ("data.vocab_size", _count()),
    ("data.shots", _count(0)),
    ("data.examples_per_image", _count()),
    ("data.image_size", _PIXELS),
    ("data.eval_size", _count(0, "pixels a side; 0: data.image_size")),
    ("data.maml_size", _PIXELS),
    ("data.autoencoder_size", _PIXELS),
    ("data.augment.crop*", _count(0, "pixels")),
    ("data.augment.degrees", Range(0, 180, meaning="degrees either way")),
    ("data.augment.brightness", Range(0, 1)),
    ("data.augment.colour", Range(0, 1)),
    ("data.mean", Range(0, 1, many=True, count=3, meaning="of red, green and blue")),
    ("data.std", Range(0, 1, above=True, many=True, count=3, meaning="of red, green and blue")),
    ("data.answers.min_count", _count(0)),
    ("data.readers.threads", _count()),
    ("data.readers.workers", _count(0, "processes; 0: threads alone")),
    ("data.readers.prefetch_mib", Range(0, above=True, meaning="MiB")),
    # writing
    ("generate.max_new_tokens", _count()),
    ("generate.beams", _count()),
    ("generate.length_penalty", Range()),
    ("generate.temperature", Range(0)),
    ("generate.top_k", _count(0, "0: all")),
    ("generate.top_p", Range(0, 1, above=True)),
    ("generate.seed", _SEED),
    # losses
    ("loss.*smoothing", _SHARE),
    ("loss.mixup_alpha", Range(0, above=True)),
    ("loss.mixup_off_epoch", _count(0)),
    ("loss.compatibility", _WEIGHT),
    ("loss.image", _WEIGHT),
    ("loss.organ", _WEIGHT),
    ("loss.reconstruction", _WEIGHT),
    # optimiser
    ("optim.lr", Range(0)),
    ("optim.b[12]", _SHARE),
    ("optim.momentum", _SHARE),
    ("optim.ema", _SHARE),
    ("optim.eps", Range(0, above=True)),
    ("optim.clip_norm", Range(0, meaning="0: no clipping")),
    ("optim.restart_epochs", _count(many=True)),
    ("optim.schedule.warmup_epochs", _count(0)),
    ("optim.schedule.decay_epochs", _count(0, many=True)),
    ("optim.schedule.decay_rate", Range(0, 1, above=True)),
    ("optim.schedule.end", Range(0, meaning="share of optim.lr")),
    # models
    ("model.*dropout", _RATE),
    ("model.gate", Range()),
    ("model.latent_scale", Range(0, above=True)),
    ("model.vision_sizes.features", _count(0, "0: the tower's own width")),
    ("model.image_width", _count(0, "0: as wide as the branches")),
    ("model.num_answers", _count(0)),
    ("model.*sizes.positions", _count(0, "0: no table of positions")),
    ("model.image_token", _count(0)),
    ("model.*sizes.hidden", _count(also=(None,))),
    ("model.*head_width", _count(also=(None,))),
    ("model.sizes.blocks", _count(many=True)),
    ("model.sizes.widths", _count(many=True)),
    *(
        (f"model.{name}", _count())
        for name in (
            *("*width", "*depth", "*heads", "*hidden", "*rank", "*passes", "*sizes.features", "*sizes.patch"),
            *("*sizes.types", "*sizes.growth", "*sizes.bottleneck", "*sizes.size", "vocab_size"),
            *("classes", "tables", "every", "latents", "media", "glimpses", "stacks"),
        )
    ),
)
"""Numeric fields and what they may be."""

# An ensemble's batch size of 0 is that of each member.
ENSEMBLE: tuple[tuple[str, Range], ...] = (("batch_size", _count(0, "examples at once; 0: each member's own")),)

DURATIONS: tuple[tuple[str, bool, bool], ...] = (
    ("total", False, False),
    ("log_every", True, False),
    ("checkpoint.every", True, False),
    ("evals.*.every", True, False),
    ("optim.schedule.warmup", True, True),
)
"""Durations, whether they may be a per cent of the run, and whether they may be 0."""

CHOICES: tuple[tuple[str, Any], ...] = (
    ("task", "jaxvqa.tasks:TASKS"),
    ("dtype", "jaxvqa.models:DTYPES"),
    ("optim.name", ("adam", "adamax", "sgd")),
    ("optim.loss", ("sum", "mean")),
    ("optim.frozen_dtype", "jaxvqa.models:DTYPES"),
    ("optim.schedule.name", ("constant", "staircase", "epochs", "cosine", "linear")),
    ("evals.*.type", "jaxvqa.evaluators:EVALUATORS"),
    ("data.answers.rule", "jaxvqa.data.answers:ANSWER_RULES"),
    ("data.answers.form", "jaxvqa.tasks.text_generation:ANSWER_LISTS"),
    ("data.template", "jaxvqa.data.prompts:TEMPLATES"),
    ("data.text_form", "jaxvqa.data.prompts:FORMS"),
    ("data.shots_by", "jaxvqa.data.few_shot:WAYS"),
    ("loss.flags", ("original", "each")),
    ("model.name", "jaxvqa.models:MODELS"),
    ("model.backbone", "jaxvqa.models.sysu_hcp:BACKBONES"),
    ("model.image_branches", "jaxvqa.models.mevf:INPUTS"),
    ("model.task", ("segment", "classify")),
    ("model.rnn", ("lstm", "gru")),
    ("model.language", "jaxvqa.models.flamingo:LANGUAGES"),
    ("model.vision", "jaxvqa.models.flamingo:VISIONS"),
    ("model.head", "jaxvqa.models.flamingo:HEADS"),
    ("model.cross_activation", "jaxvqa.models.layers.feed_forward:ACTIVATIONS"),
)
"""Texts that are one of several, or where the names of these stand."""

PATHS = (
    "compilation_cache",
    "data.dir",
    "data.word_vectors",
    "data.answers.file",
    "data.mask_file",
    "data.candidates",
    "data.tokeniser",
    "init_from.*.workdir",
    "members",
)
"""Paths on this machine, or several joined by commas, in which `~` is a home folder; a hub's names are as they are."""


def _is_bool(value: Any) -> str:
    return "" if isinstance(value, bool) else "True or False"


def _is_share(value: Any) -> str:
    return "" if Range(0).allows(value) else str(Range(0))


def _is_placed(value: Any) -> str:
    rows = isinstance(value, Sequence) and not isinstance(value, str)
    fits = rows and all(axis in (None, *sharding.AXES) for axis in value)
    return "" if fits else f"for each dimension None or one of {', '.join(sharding.AXES)}"


def _is_bounds(value: Any) -> str:
    ends = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    numbers = [end for end in ends if end is not None]
    fits = len(ends) == 2 and all(map(Range().allows, numbers)) and numbers == sorted(numbers)
    return "" if fits or value is None else "None, or (low, high), of which one may be None for no end"


def _is_splits(value: Any) -> str:
    return "" if isinstance(value, str) and value else "splits joined by +"


TABLES: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("optim.decay", _is_share),
    ("optim.coupled_decay", _is_share),
    ("optim.lr_scale", _is_share),
    ("optim.bounds", _is_bounds),
    ("optim.freeze", _is_bool),
    ("sharding.*", _is_placed),
    ("init_from.*.table", lambda value: "" if isinstance(value, bool | str) else "True, False or a path"),
)
"""Tables of (regex over parameter paths, value), with what is wrong with a value."""

EPOCHS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("optim.schedule.table", _is_share),
    ("curriculum", _is_splits),
)
"""Tables of (epoch, value), in the order of their epochs."""

GROUPS = (
    *(
        "optim",
        "optim.schedule",
        "data",
        "data.answers",
        "data.readers",
        "data.augment",
        "model",
        "evals",
        "evals.*",
        "best",
    ),
    *("checkpoint", "mesh", "sharding", "compile", "init_from", "init_from.*", "loss", "generate"),
)
"""What holds fields, where it is there."""

RESERVED = ("train", "step", "time")
"""Names that metrics.jsonl has other uses for: those of the training itself."""


def final(config: ml_collections.ConfigDict, *, training: bool = False) -> ml_collections.ConfigDict:
    """A locked copy of a config that is used as it is, with home folders in place of `~`.

    Args:
      config: with all its fields as the user wants them.
      training: whether it trains: an evaluation's values then stand beside the training's, under other names.

    Raises:
      ConfigError: lists every field that is out of its range or cannot be read.
    """
    faults = [
        f"config.{name} is {value!r}; expected a group of fields"
        for pattern in GROUPS
        for name, value in _matches(config, pattern.split("."))
        if not isinstance(value, ml_collections.ConfigDict)
    ]
    if faults:  # of what is not there no field can be looked at
        raise ConfigError("The config cannot be used:\n  " + "\n  ".join(faults))
    faults += [fault for name in field_names(config) for fault in _faults(config, name)]
    if training:
        faults += list(_faults_of_names(config.get("evals", {})))
    if "evals" in config and "best" in config:
        try:
            Best.of(config, ())
        except ConfigError as error:
            faults += str(error).splitlines()
    result = config.copy_and_resolve_references()
    with result.unlocked():
        for name in field_names(config):
            value = _value(config, name)
            if isinstance(value, str) and any(fnmatchcase(name, pattern) for pattern in PATHS):
                try:
                    home = ",".join(map(expand_home, value.split(","))) if name == "members" else expand_home(value)
                except ConfigError as error:
                    faults.append(f"config.{name}: {error}")
                else:
                    result.update_from_flattened_dict({name: home})
    if faults:
        raise ConfigError("The config cannot be used:\n  " + "\n  ".join(faults))
    return result.lock()


def range_of(name: str, rows: Sequence[tuple[str, Range]] = RANGES) -> Range | None:
    """The range of a numeric field, None if it has no row."""
    return _row(rows, name)


def _row(rows: Sequence[tuple[str, Any]], name: str) -> Any:
    return next((row[-1] for row in rows if fnmatchcase(name, row[0])), None)


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _matches(node: Any, parts: Sequence[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of the groups and fields of `node` that a pattern's parts lead to."""
    if not isinstance(node, ml_collections.ConfigDict):
        return
    for key in list(node) if parts[0] == "*" else [key for key in (parts[0],) if key in node]:
        name = f"{above}{key}"
        if len(parts) == 1:
            yield name, node[key]
        else:
            yield from _matches(node[key], parts[1:], f"{name}.")


def _faults(config: ml_collections.ConfigDict, name: str) -> Iterator[str]:
    value = _value(config, name)
    limits = range_of(name, (*ENSEMBLE, *RANGES) if "members" in config else RANGES)
    if limits is not None and not limits.allows(value):
        yield f"config.{name} is {value!r}; expected {limits}"
    choices = _row(CHOICES, name)
    if choices is not None:
        names = pkgutil.resolve_name(choices) if isinstance(choices, str) else choices
        if value not in names:
            yield f"config.{name} is {value!r}; known are {', '.join(names)}.{nearest(str(value), names)}"
    for pattern, per_cent, zero in DURATIONS:
        if fnmatchcase(name, pattern):
            yield from _faults_of_duration(name, value, per_cent=per_cent, zero=zero)
    if (check := _row(TABLES, name)) is not None:
        yield from _faults_of_table(name, value, _fault_of_regex, check)
    if (check := _row(EPOCHS, name)) is not None:
        yield from _faults_of_table(name, value, _fault_of_epoch, check)
    if name == "profile_steps":
        found = re.fullmatch(r"(\d+):(\d+)", value) if isinstance(value, str) else None
        if value != "" and not (found and 1 <= int(found[1]) <= int(found[2])):
            yield f"config.{name} is {value!r}; expected the first and the last step, as in '10:20', or an empty text"


def _faults_of_duration(name: str, value: Any, *, per_cent: bool, zero: bool) -> Iterator[str]:
    try:
        number, unit = optim.parse_duration(value)
    except ConfigError as error:
        yield f"config.{name}: {error}"
        return
    if unit == "%" and not per_cent:
        yield f"config.{name} is {value!r}; a per cent of what? Write a number of steps, epochs or examples"
    if unit == "%" and number > 100:
        yield f"config.{name} is {value!r}; expected at most 100 %"
    if number == 0 and not zero:
        yield f"config.{name} is {value!r}; expected more than 0"


def _faults_of_table(
    name: str, table: Any, key: Callable[[Any, Any], str], check: Callable[[Any], str]
) -> Iterator[str]:
    if not isinstance(table, Sequence) or isinstance(table, str):
        yield f"config.{name} is {table!r}; expected rows of two, as in (('.*', …),)"
        return
    for i, row in enumerate(table):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 2:
            yield f"config.{name}[{i}] is {row!r}; expected a row of two. A single row has a comma behind it: ((…, …),)"
        elif fault := key(*row):
            yield f"config.{name}[{i}] is {row!r}: {fault}"
        elif fault := check(row[1]):
            yield f"config.{name}[{i}] is {row!r}; its second part is expected to be {fault}"


def _fault_of_regex(regex: Any, value: Any) -> str:
    if not isinstance(regex, str):
        return "its first part is expected to be a regular expression over parameter paths"
    try:
        # Matches nothing, so that the groups that another path is made of are looked up, and none is needed.
        re.compile(f"(?:{regex})|").sub(value if isinstance(value, str) else "", "")
        re.compile(regex)
    except (re.error, IndexError) as error:
        return f"not a regular expression, or not a path made of its groups ({error})"
    return ""


def _fault_of_epoch(epoch: Any, value: Any) -> str:
    return "" if _count(0).allows(epoch) else f"its first part is expected to be an epoch, {_count(0)}"


def _faults_of_names(evals: Any) -> Iterator[str]:
    for name in evals:
        if name in RESERVED:
            yield (
                f"config.evals.{name}: an evaluation cannot be called {name!r}: metrics.jsonl keeps the training's own values "
                f"under that name. Call it {name}_split, say"
            )
        elif not re.fullmatch(r"\w[\w+-]*", name):
            yield f"config.evals has {name!r}; expected a name of letters, digits, _, + and -, as files are named after it"
