"""What each field of a config means and may be: `--help` shows the first, every command checks the second, all faults at once.

In a row's name `*` stands for one part or several, as in `evals.*.batch_size`; the first row that fits a field counts. A field
without a row fails a test. What a model's own fields mean is in the docstrings of its class and its towers.
"""

import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import ml_collections

from jaxvqa import models, optim, sharding
from jaxvqa.best import Best
from jaxvqa.configs import field_names
from jaxvqa.errors import ConfigError, choose
from jaxvqa.inputs import expand_home
from jaxvqa.named import Named

INT32 = 2**31 - 1

# --- what a field may be: each kind says what is wrong with a value ------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """Anything: a text, or a truth value."""

    def _faults(self, value: Any) -> Iterator[str]:
        """What is wrong with a value, in words that follow "config.NAME"."""
        yield from ()


@dataclass(frozen=True)
class Range(Rule):
    """A number.

    Attributes:
      low, high: the bounds, both allowed.
      above, below: whether a bound itself is not allowed.
      whole: whether it has to be a whole number.
      also: other values that have a meaning of their own.
      many: whether the field holds several, each within the range.
      count: how many, if that is fixed.
    """

    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    also: tuple[Any, ...] = ()
    many: bool = False
    count: int | None = None

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = [f"{'above' if self.above else 'at least'} {self.low:g}"] if math.isfinite(self.low) else []
        if math.isfinite(self.high) and self.high < INT32:
            bounds.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        also = "".join(f", or {value}" for value in self.also if value is not None)
        several = f"{self.count or 'several'}, each " if self.many else ""
        return f"{several}{kind}{' ' if bounds else ''}{' and '.join(bounds)}{also}"

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

    def _faults(self, value: Any) -> Iterator[str]:
        if not self.allows(value):
            yield f" is {value!r}; expected {self}"


class Size(Range):
    """A range for the numbers among values of all kinds."""

    def _faults(self, value: Any) -> Iterator[str]:
        return iter(()) if isinstance(value, bool | str) else super()._faults(value)


@dataclass(frozen=True)
class Choice(Rule):
    """A text that is one of several: their names, or where the names stand, as "module:NAMES"."""

    of: str | tuple[str, ...]

    @property
    def names(self) -> Sequence[str]:
        """The names."""
        return tuple(pkgutil.resolve_name(self.of) if isinstance(self.of, str) else self.of)

    def _faults(self, value: Any) -> Iterator[str]:
        if value not in self.names:
            yield f" is {value!r}{choose(value, self.names)}"


@dataclass(frozen=True)
class OneOf(Choice):
    """A name of one of several things, or the place of one in a user's own package: `of` is where their `Named` stands."""

    @property
    def named(self) -> Named:
        """The things."""
        return pkgutil.resolve_name(str(self.of))

    @property
    def names(self) -> Sequence[str]:
        """The names of the package's own."""
        return tuple(self.named.table)

    def _faults(self, value: Any) -> Iterator[str]:
        if fault := self.named.fault(value):
            yield fault


@dataclass(frozen=True)
class Duration(Rule):
    """Steps, epochs or examples: whether they may be a per cent of the run, and whether they may be 0."""

    per_cent: bool = True
    zero: bool = False

    def _faults(self, value: Any) -> Iterator[str]:
        try:
            number, unit = optim.parse_duration(value)
        except ConfigError as error:
            yield f": {error}"
            return
        if unit == "%" and not self.per_cent:
            yield f" is {value!r}; a per cent of what? Write a number of steps, epochs or examples"
        if unit == "%" and number > 100:
            yield f" is {value!r}; expected at most 100 %"
        if number == 0 and not self.zero:
            yield f" is {value!r}; expected more than 0"


@dataclass(frozen=True)
class Table(Rule):
    """Rows of (regex over parameter paths, value), or of (epoch, value) in the order of their epochs.

    Attributes:
      expected: what is wrong with a row's value, empty for nothing.
      epochs: whether the rows begin with epochs.
    """

    expected: Callable[[Any], str]
    epochs: bool = False

    def _faults(self, value: Any) -> Iterator[str]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            yield f" is {value!r}; expected rows of two, as in (('.*', …),)"
            return
        for i, row in enumerate(value):
            if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 2:
                yield f"[{i}] is {row!r}; expected a row of two. A single row has a comma behind it: ((…, …),)"
            elif fault := (_fault_of_epoch if self.epochs else _fault_of_regex)(*row):
                yield f"[{i}] is {row!r}: {fault}"
            elif fault := self.expected(row[1]):
                yield f"[{i}] is {row!r}; its second part is expected to be {fault}"


@dataclass(frozen=True)
class Steps(Rule):
    """The first and the last step, as in "10:20", or an empty text."""

    def _faults(self, value: Any) -> Iterator[str]:
        found = re.fullmatch(r"(\d+):(\d+)", value) if isinstance(value, str) else None
        if value != "" and not (found and 1 <= int(found[1]) <= int(found[2])):
            yield f" is {value!r}; expected the first and the last step, as in '10:20', or an empty text"


@dataclass(frozen=True)
class Path(Rule):
    """A path on this machine, in which `~` is a home folder; a hub's names are as they are.

    Attributes:
      several: whether there may be several, joined by commas.
    """

    several: bool = False

    def expanded(self, value: str) -> str:
        """The path without `~`.

        Raises:
          ConfigError: there is no such home folder.
        """
        return ",".join(map(expand_home, value.split(","))) if self.several else expand_home(value)

    def _faults(self, value: Any) -> Iterator[str]:
        try:
            self.expanded(value)
        except ConfigError as error:
            yield f": {error}"


def _fault_of_regex(regex: Any, value: Any) -> str:
    if not isinstance(regex, str):
        return "its first part is expected to be a regular expression"
    path = value[0] if isinstance(value, tuple | list) and value else value
    try:
        # Matches nothing, so that the groups that another path is made of are looked up, and none is needed.
        re.compile(f"(?:{regex})|").sub(path if isinstance(path, str) else "", "")
        re.compile(regex)
    except (re.error, IndexError) as error:
        return f"not a regular expression, or not made of its groups ({error})"
    return ""


def _fault_of_epoch(epoch: Any, value: Any) -> str:
    return "" if _count(0).allows(epoch) else f"its first part is expected to be an epoch, {_count(0)}"


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


def _is_text(value: Any) -> str:
    return "" if isinstance(value, str) else "a text"


def _is_source(value: Any) -> str:
    changes = pkgutil.resolve_name("jaxvqa.init_from:CHANGES")  # which imports this module
    pair = isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str) and value[1] in changes
    fits = isinstance(value, bool | str) or pair
    return "" if fits else f"True, False or a path, or a path and one of {', '.join(changes)}"


def _count(low: int = 1, **more: Any) -> Range:
    return Range(low, INT32, whole=True, **more)


# --- the fields --------------------------------------------------------------------------------------------------------------

ANY = Rule()
COUNT, COUNT_OR_0, NOT_NEGATIVE, SHARE = _count(), _count(0), Range(0), Range(0, 1, below=True)
SEED = Range(0, 2**32 - 1, whole=True)
COLOURS = "of red, green and blue in [0, 1], "

Row = tuple[str, Rule, str]

FIELDS: tuple[Row, ...] = (
    ("name", ANY, "shown in logs and the report"),
    ("seed", SEED, "decides parameters, dropout, order of the data: same seed, same run"),
    ("dtype", Choice("jaxvqa.models:DTYPES"), "of matmuls; parameters and reductions stay float32"),
    ("task", OneOf("jaxvqa.tasks:NAMED"), "what is learned and predicted from a batch"),
    ("batch_size", COUNT, "examples a step, over all devices"),
    ("microbatches", COUNT, "parts that a batch is cut into: gradient accumulation"),
    ("total", Duration(per_cent=False), "how long training lasts, in steps, epochs or examples"),
    ("curriculum", Table(_is_splits, epochs=True), "(from epoch, splits of data.train_split to draw from); empty: all"),
    ("log_every", Duration(), "how often training metrics are written"),
    ("main_eval", ANY, "the evaluation that a run is judged by; empty where there is but one"),
    ("report", ANY, "write report.html at the end"),
    ("profile_steps", Steps(), "the first and the last step to record, as in 10:20; empty: none"),
    ("compilation_cache", Path(), "keeps compiled programs; empty: none. JAX_COMPILATION_CACHE_DIR wins"),
    ("mesh.data", _count(also=(-1,)), "devices that share a batch; -1: all that are left"),
    ("mesh.fsdp", _count(also=(-1,)), "devices that share a batch and the parameters"),
    ("mesh.tensor", _count(also=(-1,)), "devices that share the width of a layer"),
    ("sharding.params", Table(_is_placed), "(parameter path, mesh axis of each dimension); empty: whole"),
    ("sharding.memory", Table(_is_placed), "the same for queues and histories"),
    ("checkpoint.every", Duration(), "how often the state is saved"),
    ("checkpoint.keep", COUNT, "newest checkpoints that stay"),
    ("best.metric", ANY, "as likelihood/loss: its best state is kept in WORKDIR/best too; empty: none"),
    ("best.mode", ANY, "which value is better: min | max"),
    ("best.patience", COUNT_OR_0, "evaluations without a better state that end the run; 0: none do"),
    ("init_from.*.workdir", Path(), "another run to take parameters from; empty: none"),
    ("init_from.*.table", Table(_is_source), "(parameter path, True | False | the path there)"),
    ("init_from.*.without", ANY, "said when no folder is given"),
    ("compile.target", ANY, "of --mode=compile: a TPU topology, h100:8, or local"),
    ("compile.*", COUNT, "size for --mode=compile, which reads no data"),
    # evaluations
    ("evals.*.type", OneOf("jaxvqa.evaluators:NAMED"), "what is computed"),
    ("evals.*.split", ANY, "the split, or several joined by +"),
    ("evals.*.every", Duration(), "how often"),
    ("evals.*.batch_size", COUNT, "examples at once, over all devices"),
    ("evals.*.predict", ANY, "the task's predict function"),
    ("evals.*.train_split", ANY, "whose questions and answers make the controls"),
    ("evals.*.k_test", COUNT_OR_0, "of retrieval: the most similar that are re-ranked by matching; 0: none"),
    ("evals.*.texts_per_step", COUNT, "texts that are matched at once with each image of batch_size"),
    ("evals.*.negatives_among", COUNT_OR_0, "examples among which pairs have their hardest negatives; 0: none have"),
    ("evals.*.one_to_one", ANY, "each example is an image and a text of its own, though images may be the same"),
    ("evals.*.max_tokens", COUNT_OR_0, "of retrieval: tokens that texts are cut to; 0: as many as in training"),
    ("evals.*.wordings", Table(_is_text), "(regex, replacement): texts that read the same after all say the same"),
    ("evals.*.plain_words", ANY, "of captions: compare them in lower case, without punctuation"),
    ("evals.*.repair_names", ANY, "mend the names of six garbled classes in the answers"),
    # data
    ("data.dir", Path(), "where data sets are built; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets"),
    ("data.examples", ANY, "the part with the questions, captions or labels, as vqa_v2/questions"),
    ("data.images", ANY, "the part with the images or their region features; empty: a run on the text alone"),
    ("data.image_splits", ANY, "splits of that part, joined by +; empty: all"),
    ("data.question_types", ANY, "keeps the questions of these types; empty: all"),
    ("data.question_list", ANY, "the part with the questions to draw from"),
    ("data.train_split", ANY, "the split to train on, or several joined by +"),
    ("data.in_turn", ANY, "splits of train_split, joined by +, of which each epoch has one, besides all others"),
    ("data.held_out", SHARE, "share of the images of train_split that are the split held_out instead; 0: none"),
    ("data.examples_per_image", COUNT, "examples of one image side by side in training; Flamingo encodes it once"),
    ("data.limit", COUNT_OR_0, "keeps the first examples of each split; 0: all"),
    ("data.cache_mib", NOT_NEGATIVE, "splits up to this size, and decoded images up to it, are kept in memory"),
    ("data.readers.threads", COUNT, "batches that are read at the same time"),
    ("data.readers.prefetch_mib", Range(0, above=True), "MiB of batches held ready at most"),
    ("data.readers.workers", COUNT_OR_0, "processes that read; 0: threads alone"),
    ("data.blind", ANY, "the question-only baseline: nothing to see, or noise"),
    ("data.answers.form", Choice("jaxvqa.tasks.text_generation:ANSWER_LISTS"), "how the list writes answers"),
    ("data.answers.file", Path(), "the original's file of answers, or a JSON list; empty: made from the data"),
    ("data.answers.splits", ANY, "whose answers make the list"),
    ("data.answers.min_count", COUNT_OR_0, "how often an answer has to occur"),
    ("data.answers.rule", Choice("jaxvqa.data.answers:ANSWER_RULES"), "of one annotator: exact"),
    ("data.vocabulary_splits", ANY, "whose texts make the vocabulary, in this order"),
    ("data.vocabulary_parts", ANY, "whose texts train a tokenizer, for runs to share it; empty: data.examples"),
    ("data.vocab_size", COUNT, "the most tokens of a tokenizer that is trained"),
    ("data.word_vectors", Path(), "a local file: GloVe's text, or fastText's .bin as BioWordVec; empty: random"),
    ("data.max_words", COUNT, "of a caption, before it becomes tokens; what is longer is cut"),
    ("data.strip_tags", ANY, "captions lose their HTML tags, which the original keeps"),
    (
        "data.positives_by",
        Choice(("image_id", "figure_id")),
        "texts of one image, or of one figure, are positives of each other",
    ),
    ("data.max_tokens", COUNT, "of a question, or of a whole text; what is longer is cut"),
    ("data.max_regions", COUNT, "regions of an image"),
    (
        "data.regions",
        Choice("jaxvqa.data.images:REGION_SOURCES"),
        "shapes: proposed from the image alone; empty: the data set's",
    ),
    ("data.region_width", COUNT, "features of a region"),
    ("data.image_size", COUNT, "pixels a side, whatever the aspect ratio"),
    ("data.eval_size", COUNT_OR_0, "pixels a side of evaluated images; 0: data.image_size"),
    ("data.maml_size", COUNT, "pixels a side of the grey image of MEVF's meta-learned network"),
    ("data.autoencoder_size", COUNT, "pixels a side of the grey image of MEVF's auto-encoder"),
    ("data.mean", Range(0, 1, many=True, count=3), COLOURS + "subtracted"),
    ("data.std", Range(0, 1, above=True, many=True, count=3), COLOURS + "divided by"),
    ("data.augment.crop", COUNT_OR_0, "more pixels that a training image is cropped from at random; 0: none"),
    ("data.augment.crop_and_flip", COUNT_OR_0, "the same, and mirrored half of the time"),
    (
        "data.augment.scale",
        Range(0, 1, above=True),
        "the least share of its area that a training image is cropped from",
    ),
    ("data.augment.operations", COUNT_OR_0, "of RandomAugment, each made half of the time; 0: none"),
    ("data.augment.level", Range(0, 10), "how strong they are"),
    ("data.augment.sound", ANY, "AutoContrast, Brightness and Sharpness as they are meant, not as in the original"),
    ("data.augment.degrees", Range(0, 180), "training images are turned by up to that many either way"),
    ("data.augment.flip", ANY, "training images are mirrored half of the time"),
    (
        "data.augment.swap",
        ANY,
        "two images change places half of the time in training, and the words left and right with them",
    ),
    ("data.augment.brightness", Range(0, 1), "random change of contrast and brightness in training"),
    ("data.augment.colour", Range(0, 1), "random change of brightness, contrast, saturation and hue in training"),
    ("data.organs", ANY, "the values of the feature organ that mean abdomen, head and chest"),
    ("data.mask_file", Path(), "the original's modelmask.json, for the predict functions answers_masked…; empty: none"),
    ("data.classify", ANY, "a class head beside the text"),
    ("data.template", Choice("jaxvqa.data.prompts:TEMPLATES"), "what a text looks like"),
    ("data.text_form", Choice("jaxvqa.data.prompts:FORMS"), "texts as they stand, or in MEVF's form of VQA-RAD's"),
    ("data.tokenizer", Path(), "a folder or file, or a hub's name; empty: trained on the texts of the data"),
    ("data.max_prompt", COUNT, "tokens of a prompt, whose question is cut where it does not fit"),
    ("data.shots", COUNT_OR_0, "examples before each prompt in evaluation; data.max_prompt has to have room for them"),
    ("data.shots_by", Choice("jaxvqa.data.few_shot:WAYS"), "drawn by generate.seed, or those of similar images"),
    ("data.shots_split", ANY, "where they are from"),
    ("data.candidates", Path(), "a JSON list of answers that ranked chooses from; empty: the classes, or yes and no"),
    # writing
    ("generate.max_new_tokens", COUNT, "the most tokens of an answer"),
    ("generate.beams", COUNT, "texts that are followed at the same time; 1: greedy, or drawn"),
    ("generate.length_penalty", Range(), "exponent of the length that a beam's score is divided by"),
    ("generate.temperature", NOT_NEGATIVE, "0: the best token each time; otherwise tokens are drawn"),
    ("generate.top_k", COUNT_OR_0, "draws from that many of the best tokens; 0: from all"),
    ("generate.max_length", _count(2), "most tokens of a text, its prompt included"),
    ("generate.min_length", COUNT, "fewest tokens of a text, its prompt included"),
    (
        "generate.repetition_penalty",
        Range(0, above=True),
        "what has occurred becomes so much less likely; 1: it does not",
    ),
    ("generate.sample", ANY, "tokens are drawn, by top_p and the original's hidden top-k of 50"),
    ("generate.attend_padding", ANY, "answers read the question's padding too, as in the original"),
    ("ranking.first", COUNT, "answers that are kept by their first token, and then compared as a whole"),
    ("data.prompt", ANY, "begins every caption"),
    ("data.max_answers", COUNT, "of a question in training; those of least weight are left out"),
    ("data.max_answer_tokens", _count(2), "of an answer in training; what is longer is cut"),
    ("generate.top_p", Range(0, 1, above=True), "draws from the best tokens that have this probability together"),
    ("generate.seed", SEED, "of the draws, and of the examples before a prompt"),
    # losses
    ("loss.organ", NOT_NEGATIVE, "weight of the part of the body that is shown"),
    ("loss.reconstruction", NOT_NEGATIVE, "weight of the auto-encoder's image"),
    ("loss.dynamic", ANY, "weights follow how fast each loss falls"),
    ("loss.image", NOT_NEGATIVE, "weight of the image task"),
    ("loss.compatibility", NOT_NEGATIVE, "weight of whether a question fits the image"),
    ("loss.mixup", ANY, "mix training images and their labels in pairs"),
    ("loss.label_smooth", ANY, "smooth the labels"),
    ("loss.smoothing", SHARE, "share of the target that is spread"),
    ("loss.superloss", ANY, "SuperLoss: hard examples count less"),
    ("loss.flags", Choice(("original", "each")), "original: each needs those before it"),
    ("loss.mixup_alpha", Range(0, above=True), "of the Beta distribution of shares"),
    ("loss.mixup_off_epoch", COUNT_OR_0, "from when on images are not mixed any more; 0: they always are"),
    ("loss.text", ANY, "texts are learned"),
    ("loss.text_smoothing", SHARE, "share of the target that is spread over all tokens"),
    ("loss.class_smoothing", SHARE, "share of the target that is spread over all classes"),
    ("loss.prompt", ANY, "the tokens of the prompt are learned too"),
    (
        "loss.positives",
        Choice("jaxvqa.tasks.image_text:POSITIVES"),
        "what belongs together: a text and its own image alone",
    ),
    ("loss.groups", COUNT, "parts of a batch that are contrasted each by itself, as the original's processes"),
    ("loss.queue", COUNT, "features of earlier batches that a batch is contrasted with"),
    ("loss.momentum", Range(0, 1), "share that a momentum copy keeps in a step"),
    ("loss.momentum_dropout", ANY, "momentum copies drop in training, as in the original"),
    ("loss.alpha", Range(0, 1), "share of the momentum copies' similarities in the targets"),
    ("loss.alpha_epochs", NOT_NEGATIVE, "in which it grows to that; 0: at once"),
    ("loss.negatives.choice", Choice(("drawn", "hardest")), "of a text or image that does not match"),
    ("loss.negatives.similarity", Choice("jaxvqa.tasks.image_text:SIMILARITIES"), "by which they are weighed"),
    ("loss.negatives.floor", NOT_NEGATIVE, "added to each weight"),
    ("loss.negatives.among", Choice("jaxvqa.tasks.image_text:AMONG"), "where they are taken from"),
    # optimiser
    ("optim.loss", Choice(("sum", "mean")), "what is descended: the sum over the examples, or their mean"),
    ("optim.name", Choice(("adam", "adamax", "sgd")), "the optimiser"),
    ("optim.lr", NOT_NEGATIVE, "base learning rate"),
    ("optim.b[12]", SHARE, "decay of the moments of Adam and Adamax"),
    ("optim.eps", Range(0, above=True), "added outside the root"),
    ("optim.momentum", SHARE, "of sgd"),
    ("optim.nesterov", ANY, "of sgd"),
    ("optim.restart_epochs", _count(many=True), "of sgd: epochs that start without momentum"),
    ("optim.clip_norm", NOT_NEGATIVE, "global gradient norm; 0: no clipping"),
    ("optim.ema", SHARE, "decay of the averages of parameters and statistics to evaluate with; 0: none"),
    ("optim.decay", Table(_is_share), "(parameter path, decoupled weight decay)"),
    (
        "optim.coupled_decay",
        Table(_is_share),
        "(parameter path, weight decay within the gradient, as in PyTorch's SGD)",
    ),
    ("optim.lr_scale", Table(_is_share), "(parameter path, rate multiplier)"),
    ("optim.bounds", Table(_is_bounds), "(parameter path, None or (low, high)): kept within, before each step"),
    ("optim.freeze", Table(_is_bool), "(parameter path, fixed or not)"),
    ("optim.frozen_dtype", Choice("jaxvqa.models:DTYPES"), "of parameters that are fixed"),
    ("optim.schedule.name", Choice("jaxvqa.optim:SCHEDULES"), "of the learning rate"),
    ("optim.schedule.warmup", Duration(zero=True), "rise from 0, or from warmup_from"),
    ("optim.schedule.warmup_from", NOT_NEGATIVE, "rate of the first step"),
    ("optim.schedule.warmup_epochs", COUNT_OR_0, "the same, a stair an epoch"),
    ("optim.schedule.decay_epochs", _count(0, many=True), "at whose start the rate falls"),
    ("optim.schedule.decay_rate", Range(0, 1, above=True), "to that share of what it was"),
    ("optim.schedule.floor", NOT_NEGATIVE, "lowest rate"),
    ("optim.schedule.end", NOT_NEGATIVE, "share of optim.lr at the end"),
    ("optim.schedule.table", Table(_is_share, epochs=True), "(epoch, share of optim.lr)"),
    # models, whose classes say what their fields mean
    ("model.name", OneOf("jaxvqa.models:NAMED"), "the network"),
    ("model.backbone", Choice("jaxvqa.models.sysu_hcp:BACKBONES"), ""),
    ("model.image_branches", Choice("jaxvqa.models.mevf:INPUTS"), ""),
    ("model.task", Choice(("segment", "classify")), ""),
    ("model.rnn", Choice(("lstm", "gru")), ""),
    ("model.language", Choice("jaxvqa.models.towers:LANGUAGE_MODELS"), ""),
    ("model.vision", Choice("jaxvqa.models.towers:IMAGE_ENCODERS"), ""),
    ("model.head", Choice("jaxvqa.models.flamingo_head:HEADS"), ""),
    ("model.cross_activation", Choice("jaxvqa.models.layers.feed_forward:ACTIVATIONS"), ""),
    ("model.*dropout", SHARE, ""),
    ("model.gate", Range(), ""),
    ("model.features", COUNT_OR_0, ""),
    ("model.merge_from", COUNT_OR_0, ""),
    ("model.temperature", NOT_NEGATIVE, ""),
    ("model.text", Choice("jaxvqa.models.towers:TEXT_ABOUT_IMAGES"), ""),
    ("model.vision_sizes.drop_path", SHARE, ""),
    ("model.vision_sizes.remat", COUNT_OR_0, ""),
    ("model.latent_scale", Range(0, above=True), ""),
    ("model.vision_sizes.features", COUNT_OR_0, ""),
    ("model.image_width", COUNT_OR_0, ""),
    ("model.*sizes.epsilon", Range(0, above=True), ""),
    ("model.*sizes.init_std", Range(0, above=True), ""),
    ("model.*sizes.positions", COUNT_OR_0, ""),
    ("model.*sizes.hidden", _count(also=(None,)), ""),
    ("model.*head_width", _count(also=(None,)), ""),
    ("model.*sizes.blocks", _count(many=True), ""),
    ("model.*sizes.widths", _count(many=True), ""),
    ("model.*", Size(1, INT32, whole=True), ""),
)
"""Each field: its name, what it may be, what it means."""

MEMBERS = "empty or 0: as the members have it; "
ENSEMBLE: tuple[Row, ...] = (
    ("members", Path(several=True), "work directories, joined by commas"),
    ("vote", Choice("jaxvqa.ensembles.voting:VOTES"), "the majority, or mean probabilities of the allowed classes"),
    ("reading", Choice("jaxvqa.ensembles.voting:READINGS"), "of masks, by a majority"),
    ("flip", ANY, "logits are the mean over the image and its mirror image"),
    ("repair_names", ANY, "writes answers without the garbling of six names"),
    ("batch_size", COUNT_OR_0, MEMBERS + "examples a step, over all devices"),
    *((name, rule, MEMBERS + meaning) for name, rule, meaning in FIELDS if name.startswith("data.")),
)
"""The fields of runs that answer together, before those of `FIELDS`."""

RESERVED = ("train", "step", "time")
"""Names that metrics.jsonl has other uses for: those of the training itself."""


def row_of(name: str, *, ensemble: bool = False) -> Row | None:
    """A field's row, None if it has none."""
    rows = (*ENSEMBLE, *FIELDS) if ensemble else FIELDS
    return next((row for row in rows if fnmatchcase(name, row[0])), None)


def meaning(config: ml_collections.ConfigDict, name: str) -> str:
    """What a field of a config means and which names it may hold; empty for an unknown field."""
    row = row_of(name, ensemble="members" in config)
    if row is None:
        return ""
    _, rule, text = row
    text = text or models.meanings(config.model).get(name.removeprefix("model."), "")
    return text + (f" ({' | '.join(rule.names)})" if isinstance(rule, Choice) and len(rule.names) < 8 else "")


def final(config: ml_collections.ConfigDict, *, training: bool = False) -> ml_collections.ConfigDict:
    """A locked copy of a config that is used as it is, with home folders instead of `~`.

    Args:
      config: with all its fields as the user wants them.
      training: whether it trains: an evaluation's values then stand beside the training's, under other names.

    Raises:
      ConfigError: lists every field that is out of its range or cannot be read.
    """
    ensemble = "members" in config
    faults = [f"config.{name} is {value!r}; expected a group of fields" for name, value in _no_groups(config)]
    if faults:  # of what is not there no field can be looked at
        raise ConfigError("The config cannot be used:\n  " + "\n  ".join(faults))
    own_model = models.NAMED.is_own(config.get("model", {}).get("name"))
    result = config.copy_and_resolve_references()
    for name in field_names(config):
        _, rule, text = row_of(name, ensemble=ensemble) or ("", ANY, "")
        if own_model and name.startswith("model.") and name != "model.name":
            rule = ANY  # the rows are of the package's models
        value = _value(config, name)
        found = list(rule._faults(value))
        note = f" ({text})" if text and isinstance(rule, Range) else ""
        faults += [f"config.{name}{fault}{note}" for fault in found]
        if isinstance(rule, Path) and not found:
            with result.unlocked():
                result.update_from_flattened_dict({name: rule.expanded(value)})
    if training:
        faults += list(_faults_of_names(config.get("evals", {})))
    if "evals" in config and "best" in config:
        try:
            Best.of(config, ())
        except ConfigError as error:
            faults += str(error).splitlines()
    if faults:
        raise ConfigError("The config cannot be used:\n  " + "\n  ".join(faults))
    return result.lock()


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _no_groups(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of what holds no fields where `FIELDS` has fields in it."""
    for key in node:
        name = f"{above}{key}"
        if isinstance(node[key], ml_collections.ConfigDict):
            yield from _no_groups(node[key], f"{name}.")
        elif any(name.count(".") == group.count(".") and fnmatchcase(name, group) for group in _GROUPS):
            yield name, node[key]


_GROUPS = {".".join(parts[:i]) for row in FIELDS for parts in [row[0].split(".")] for i in range(1, len(parts))}


def _faults_of_names(evals: Any) -> Iterator[str]:
    for name in evals:
        if name in RESERVED:
            yield (
                f"config.evals.{name}: an evaluation cannot be called {name!r}: metrics.jsonl keeps the training's own values "
                f"under that name. Call it {name}_split, say"
            )
        elif not re.fullmatch(r"\w[\w+-]*", name):
            yield f"config.evals has {name!r}; expected a name of letters, digits, _, + and -, as files are named after it"
