"""What all configs share: the fields of the loop with their defaults, and the reading of `:arg`."""

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


def vqa_data(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of question-and-regions data."""
    data = config.data = ml_collections.ConfigDict()
    data.dir = ""  # where data sets are built; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets
    data.questions = ""  # the part with the questions, as "vqa_v2/questions"
    data.images = ""  # the part with the region features; empty: a run on the text alone
    data.image_splits = ""  # splits of that part, joined by "+"; empty: all
    data.train_split = "train"
    data.cache_mib = 256.0  # splits up to this size on disk are kept decoded in memory
    data.limit = 0  # keeps the first examples of each split; 0: all
    data.vocabulary_splits = "train"  # whose questions make the vocabulary, in this order
    data.glove = ""  # a local file of word vectors
    data.max_tokens = 16
    data.max_regions = 100
    data.region_width = 2048
    data.blind = False  # the question-only baseline: no picture
    data.answers = ml_collections.ConfigDict()
    data.answers.file = ""  # the original's answer_dict.json, or a JSON list; empty: made from the data
    data.answers.splits = "train"
    data.answers.min_count = 9
    data.answers.rule = "soft"  # of several annotators: soft | counts (RWSAN's targets); of one: exact
    data.readers = ml_collections.ConfigDict({"threads": 4, "prefetch_mib": 512.0, "workers": 0})
    config.compile.vocab_size = 20572  # sizes for --mode=compile, which reads no data
    config.compile.num_answers = 3129


def radiology_data(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of data with questions and pictures."""
    data = config.data = ml_collections.ConfigDict()
    data.dir = ""  # where data sets are built; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets
    data.questions = ""  # the part with the questions, as "vqa_rad/questions"
    data.images = ""  # the part with the pictures; empty: a run on the text alone
    data.image_splits = ""  # splits of that part, joined by "+"; empty: all
    data.train_split = "train"
    data.cache_mib = 512.0  # records of splits up to this size, and decoded pictures up to it, are kept in memory
    data.limit = 0  # keeps the first examples of each split; 0: all
    data.vocabulary_splits = "train"  # whose questions make the vocabulary, in this order
    data.question_list = ""  # pre-training: the part with the questions to draw from
    data.vectors = ""  # a local file of word vectors: GloVe's text, or fastText's .bin as BioWordVec
    data.max_tokens = 12
    data.image_size = 224  # pixels; whatever the aspect ratio
    data.maml_size = 84  # of MEVF's two grey pictures
    data.autoencoder_size = 128
    data.augment = ml_collections.ConfigDict({"crop": 0, "degrees": 0.0, "brightness": 0.0})  # random, in training
    data.organs = ()  # the values of `organ` that mean abdomen, head, chest
    data.blind = False  # the question-only baseline: pictures of noise
    data.answers = ml_collections.ConfigDict()
    data.answers.file = ""  # a JSON list of answers, or two maps; empty: made from the data
    data.answers.splits = "train"
    data.answers.min_count = 1
    data.answers.rule = "exact"  # of one annotator: exact; of several: soft, counts (jaxvqa.data.answers)
    data.readers = ml_collections.ConfigDict({"threads": 4, "prefetch_mib": 512.0, "workers": 0})
    config.compile.vocab_size = 1177  # sizes for --mode=compile, which reads no data
    config.compile.num_answers = 458


def picture_data(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of data that is answered by the picture alone."""
    data = config.data = ml_collections.ConfigDict()
    data.dir = ""  # where data sets are built; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets
    data.questions = ""  # the part with the questions, as "vqa_rad/questions"
    data.images = ""  # the part with the pictures
    data.image_splits = ""  # splits of that part, joined by "+"; empty: all
    data.question_types = ()  # keeps the questions whose `question_type` is one of these; empty: all
    data.train_split = "train"
    data.cache_mib = 512.0  # records of splits up to this size, and decoded pictures up to it, are kept in memory
    data.limit = 0  # keeps the first examples of each split; 0: all
    data.image_size = 224  # pixels; whatever the aspect ratio
    data.eval_size = 0  # of evaluated pictures; 0: image_size
    data.augment = ml_collections.ConfigDict({"crop_and_flip": 0})  # pixels to crop from; 0: pictures as they are
    data.mask_file = ""  # the original's modelmask.json, for the predict functions answers_masked…; empty: none
    data.answers = ml_collections.ConfigDict()
    data.answers.file = ""  # the original's disease2id.json, or a JSON list; empty: made from the data
    data.answers.splits = "train"
    data.answers.min_count = 1
    data.answers.rule = "exact"  # of one annotator: exact; of several: soft, counts (jaxvqa.data.answers)
    data.readers = ml_collections.ConfigDict({"threads": 4, "prefetch_mib": 512.0, "workers": 0})
    config.compile.num_answers = 330  # for --mode=compile, which reads no data


def text_data(config: ml_collections.ConfigDict) -> None:
    """Adds the fields of data whose pictures are answered, or described, in words, and of the writing."""
    data = config.data = ml_collections.ConfigDict()
    data.dir = ""  # where data sets are built; empty: TFDS_DATA_DIR, else ~/tensorflow_datasets
    data.questions = ""  # the part with questions or captions, as "vqa_rad/questions" or "roco/captions"
    data.images = ""  # the part with the pictures
    data.image_splits = ""  # splits of that part, joined by "+"; empty: all
    data.question_types = ()  # keeps the questions whose `question_type` is one of these; empty: all
    data.train_split = "train"
    data.held_out = 0.0  # share of the images of train_split that are not trained on: the split "held_out"; 0: none
    data.cache_mib = 512.0  # records of splits up to this size, and decoded pictures up to it, are kept in memory
    data.limit = 0  # keeps the first examples of each split; 0: all
    data.template = "vqa"  # what a text looks like: a row of jaxvqa.data.prompts.TEMPLATES
    data.text_form = "raw"  # raw: questions and answers as they stand | rad: MEVF's form of VQA-RAD's
    data.tokeniser = ""  # a folder or file, or a hub's name; empty: trained on the texts of the data
    data.vocabulary_parts = ()  # on whose texts, so that runs on each of them share it; empty: `questions`
    data.vocabulary_splits = "train"
    data.vocab_size = 1000  # its most words
    data.max_tokens = 128  # of a whole text, cut behind
    data.max_prompt = 96  # of a prompt, whose question is cut where it does not fit
    data.shots = 0  # examples before each prompt in evaluation; max_prompt has to have room for them
    data.shots_by = "seed"  # drawn by (generate.seed, question) | image: those with the most similar pictures
    data.shots_split = "train"  # where they are from
    data.candidates = (
        ""  # a JSON list of answers that `ranked` chooses from; empty: the classes, without any yes and no
    )
    data.image_size = 224  # pixels; whatever the aspect ratio
    data.max_regions = 16  # with model.vision = "regions", of a picture,
    data.region_width = 320  # and the features of each, its box aside
    data.mean = (0.485, 0.456, 0.406)  # of red, green and blue in [0, 1], subtracted
    data.std = (0.229, 0.224, 0.225)  # divided by
    # In training: pixels to crop from, turns by up to so many degrees, mirror images half the time, colours.
    data.augment = ml_collections.ConfigDict({"crop": 0, "degrees": 0.0, "flip": False, "colour": 0.0})
    data.questions_together = (
        1  # questions about one picture side by side in a training batch: it is encoded once for them
    )
    data.blind = False  # the question-only baseline: pictures of noise
    data.classify = False  # whether there is a class head beside the text
    data.answers = ml_collections.ConfigDict()
    data.answers.form = "vqa"  # of the classes: vqa | rad | med | verbatim
    data.answers.file = ""  # the original's file of classes, or a JSON list; empty: made from the data
    data.answers.splits = "train"
    data.answers.min_count = 1
    data.answers.rule = "exact"  # of one annotator: exact; of several: soft, counts (jaxvqa.data.answers)
    data.readers = ml_collections.ConfigDict({"threads": 4, "prefetch_mib": 512.0, "workers": 0})
    config.generate = ml_collections.ConfigDict()
    config.generate.words = 20  # the most words of an answer
    config.generate.beams = 1
    config.generate.length_penalty = 1.0
    config.generate.temperature = 0.0  # 0: the best word each time; otherwise words are drawn
    config.generate.top_k = 0
    config.generate.top_p = 1.0
    config.generate.seed = 0  # of the draws, and of the examples before a prompt
    config.compile.vocab_size = 50261  # sizes for --mode=compile, which reads no data
    config.compile.num_answers = 332


def evaluation(split: str, *, every: str, batch_size: int, **changes: Any) -> ml_collections.ConfigDict:
    """A row of `config.evals`: accuracy over a split; `changes` are fields that differ, or that another `type` has."""
    row = {"type": "vqa", "split": split, "every": every, "batch_size": batch_size, "predict": "answers"}
    return ml_collections.ConfigDict(row | changes)
