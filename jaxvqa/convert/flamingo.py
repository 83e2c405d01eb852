"""MLMI's checkpoints (github.com/caghankoksal/vqa-med), and those of flamingo-pytorch's PaLM variant: keys, sizes, options.

A file of MLMI is PyTorch Lightning's: an outer dict of `state_dict`, `hyper_parameters` and more. It does not state the heads
of the vision transformer, which is run with 8, nor in which year it was trained, which changes what it computes
(`jaxvqa.models.flamingo_quirks.PUBLISHED`). docs/originals/flamingo.md, section 16.

With BERT, transformers wrote each tensor of embedding and layers two or three times; the names that come last in the file
count, and all are written. Masks, zeros and counters that a file holds, and nothing reads, are kept for writing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layers import LAYER_NORM, LINEAR, LINEAR_NO_BIAS, Stacked, in_collections, under
from jaxvqa.convert.layout import Constant, Layout
from jaxvqa.convert.original import TOKEN, Checkpoint, Config, Original, Shapes, System, image
from jaxvqa.convert.pretrained import is_padded
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.convert.towers.bert import BERT_BLOCK
from jaxvqa.convert.towers.clip import CLIP_STACKED, OPENAI_VISION
from jaxvqa.convert.towers.gpt2 import GPT2_ATTENTION, GPT2_FEED_FORWARD, GPT2_STACKED
from jaxvqa.convert.towers.palm import GAIN, PALM_BLOCK
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.prompts import PromptTokenizer
from jaxvqa.errors import CheckpointError, ConfigError, DataError, choose
from jaxvqa.tasks import task_class

PREFIX = "flamingo_palm."
"""Put before every key but the classifier's by MLMI, whatever the language model."""

STACKED = (Stacked("to_kv.{}", ("to_k.{}", "to_v.{}")), GPT2_STACKED, CLIP_STACKED)

FEED_FORWARD = [Rule("1.weight", "up/kernel", "o i -> i o"), Rule("3.weight", "down/kernel", "o i -> i o")]
ATTENTION = [
    *nested("to_q", "query", LINEAR_NO_BIAS),
    *nested("to_k", "key", LINEAR_NO_BIAS),
    *nested("to_v", "value", LINEAR_NO_BIAS),
    *nested("to_out", "output", LINEAR_NO_BIAS),
]


RESAMPLER = [
    Rule("latents", "latents"),
    Rule("time_pos_emb", "media_position"),
    *nested("layers.{i}.0.norm_media", "media_norm_{i}", LAYER_NORM),
    *nested("layers.{i}.0.norm_latents", "latents_norm_{i}", LAYER_NORM),
    *nested("layers.{i}.0", "attention_{i}", ATTENTION),
    *nested("layers.{i}.1.0", "feed_forward_{i}_norm", LAYER_NORM),
    *nested("layers.{i}.1", "feed_forward_{i}", FEED_FORWARD),
    *nested("norm", "norm", LAYER_NORM),
]
CROSS_ATTENTION = [
    Rule("attn_gate", "attention_gate"),
    Rule("ff_gate", "feed_forward_gate"),
    *nested("attn.norm", "attention_norm", LAYER_NORM),
    *nested("attn", "attention", ATTENTION),
    *nested("ff.0", "feed_forward_norm", LAYER_NORM),
    *nested("ff", "feed_forward", FEED_FORWARD),
]
BLOCKS: Mapping[str, list[Rule]] = {
    "gpt2": [
        *nested("attn", "attention", GPT2_ATTENTION),
        *nested("feedforward", "feed_forward", GPT2_FEED_FORWARD),
        *nested("ln_1", "attention_norm", LAYER_NORM),
        *nested("ln_2", "feed_forward_norm", LAYER_NORM),
    ],
    "bert": BERT_BLOCK,
    "palm": PALM_BLOCK,
}
_BERT_EMBEDDING = [
    Rule("word_embeddings.weight", "embed/embedding"),
    Rule("position_embeddings.weight", "position/embedding"),
    *nested("LayerNorm", "embed_norm", LAYER_NORM),
]
EMBEDDINGS: Mapping[str, list[Rule]] = {
    "gpt2": [Rule("token_emb.weight", "embed/embedding"), Rule("wpe.weight", "position/embedding")],
    "bert": [
        *(Rule(f"bert_decoder.bert.embeddings.{r.key}", r.path, r.change) for r in _BERT_EMBEDDING),
        *nested("bert_decoder.bert.encoder.layer.{i}", "block_{i}", BERT_BLOCK),
        *(Rule(f"bert_embedding.{r.key}", r.path, r.change) for r in _BERT_EMBEDDING),
    ],
    "palm": [Rule("token_emb.weight", "embed/embedding")],
}
EXCUSED = (
    r".*\.beta",  # zeros
    r".*\.fn\.attn\.bias",  # a mask that nothing reads
    r".*\.rotary_emb\.inv_freq",
    r".*\.position_ids",
    r".*bert_decoder\.lm_head\..*",
    r"wpe\.weight",  # of a model that is run without positions
)
"""Keys that nothing here is read from."""


def table(language: str, *, tied: bool) -> Table:
    """The rules of a language model's variant; `tied`: the output's table is the embedding's."""
    output = "language/embed/embedding" if tied else "language/readout/table"
    rules = [
        *under("language", EMBEDDINGS[language]),
        *nested("img_encoder", "vision", OPENAI_VISION),
        *nested("perceiver_resampler", "resampler", RESAMPLER),
        *nested("img_encoder_outdim_layer", "projection", LINEAR),
        *nested("layers.{i}.0.fn", "language/block_{i}", BLOCKS[language]),
        *nested("layers.{i}.1", "cross_{i}", CROSS_ATTENTION),
        *nested("to_logits.0", "language/readout/norm", GAIN),
        Rule("to_logits.1.weight", output),
        *nested("classifier.0", "class_norm", GAIN),
        *nested("classifier.2", "class_output", LINEAR),
    ]
    return Table(in_collections(rules), EXCUSED)


def _mask(tensors: Tensors, key: str) -> np.ndarray:
    return np.tril(np.ones((1024, 1024), np.float32))[None, None]


def _counter(tensors: Tensors, key: str) -> np.ndarray:
    return np.arange(len(tensors["bert_embedding.position_embeddings.weight"]))[None]


def _words(tensors: Tensors, key: str) -> np.ndarray:
    """The table of BERT's own output, which has no rows for the three special tokens."""
    return tensors["bert_embedding.word_embeddings.weight"][:-3]


def _no_words(tensors: Tensors, key: str) -> np.ndarray:
    return np.zeros(len(_words(tensors, key)), np.float32)


_BERT_WORDS = r"(bert_embedding)\.word_embeddings\.weight"
CONSTANTS = (
    Constant(r"(layers\.\d+\.0\.fn\.attn)\.c_attn\.weight", r"\1.bias", _mask),
    Constant(r"(bert_decoder\.bert\.embeddings)\.word_embeddings\.weight", r"\1.position_ids", _counter),
    Constant(_BERT_WORDS, "bert_decoder.lm_head.bias", _no_words),
    Constant(_BERT_WORDS, "bert_decoder.lm_head.decoder.weight", _words),
    Constant(_BERT_WORDS, "bert_decoder.lm_head.decoder.bias", _no_words),
    Constant(_BERT_WORDS, r"\1.position_ids", _counter),
    Constant(r"(.*)\.gamma", r"\1.beta", lambda tensors, key: np.zeros_like(tensors[key]), after=True),
)
"""What the original writes besides, whatever its sizes."""


def _sized_constants(config: Config) -> tuple[Constant, ...]:
    """Those that follow from sizes which no tensor has."""
    sizes, own = config.get("language_sizes", {}), []
    if config["language"] == "gpt2" and sizes.get("positions") == 0:
        unread = np.zeros((256, sizes["width"]), np.float32)
        own.append(Constant(r"token_emb\.weight", "wpe.weight", lambda tensors, key: unread, after=True))
    if "head_width" in sizes:
        steps = np.arange(0, sizes["head_width"], 2) / sizes["head_width"]
        waves = (10000.0**-steps).astype(np.float32)
        norm = r"(layers\.\d+\.0\.fn)\.norm\.gamma"
        own.append(Constant(norm, r"\1.rotary_emb.inv_freq", lambda tensors, key: waves, after=True))
    return tuple(own)


def layout(config: Config) -> Layout:
    """How a model of this config is written."""
    language = config.get("language", "gpt2")
    tied = config.get("language_sizes", {}).get("tied", True) and language != "bert"
    before = "" if language == "palm" else PREFIX
    return Layout(
        table(language, tied=tied),
        stacked=STACKED,
        renamed=((rf"^{PREFIX}", ""), ("media_pos_emb", "time_pos_emb")),
        spelled=lambda key: key if key.startswith("classifier.") else before + key,
        constants=(*CONSTANTS, *_sized_constants({"language": language} | dict(config))),
    )


OPTIONS = {
    "num_tokens": "vocab_size",
    "media_token_id": "image_token",
    "num_heads": "cross_heads",
    "heads": "cross_heads",
    "att_head_dim": "cross_head_width",
    "dim_head": "cross_head_width",
    "cross_att_every": "every",
    "cross_attn_every": "every",
    "perceiver_num_latents": "latents",
    "perceiver_depth": "resampler_depth",
}
"""The original's option, by the names of each year -> field of the model."""

VISION_OPTIONS = {
    "patch_size": "patch",
    "width": "width",
    "layers": "depth",
    "heads": "heads",
    "output_dim": "features",
}
BERT_OPTIONS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "positions",
}
MLMI_VISION_HEADS = 8
"""With which the published checkpoints were trained and are run, though CLIP ViT-B/32 has 12 (Q3)."""

LANGUAGES = {"gpt2": "gpt2", "bert-base-uncased": "bert", "bert-clinical": "bert", "pubmedbert": "bert", "palm": "palm"}
"""The original's name of a language model -> ours."""


def model_config(options: Mapping[str, Any], *, year: str = "2023") -> dict[str, Any]:
    """Translates options of MLMI's module, or of flamingo-pytorch's `FlamingoPaLM`, into the `model` part of a config.

    Args:
      options: the module's keyword arguments, or a checkpoint's `hyper_parameters`; those of training are passed over.
      year: the state of the code that they are from, a name of `jaxvqa.models.flamingo_quirks.PUBLISHED`; flamingo-pytorch
        has none.

    Raises:
      CheckpointError: the language model is not offered.
    """
    name = options.get("language_encoder", options.get("language_model", "palm"))
    if name not in LANGUAGES:
        raise CheckpointError(f"The language model is {name!r}{choose(name, LANGUAGES)}")
    language = LANGUAGES[name]
    config: dict[str, Any] = {"name": "flamingo", "language": language}
    config |= {field: options[key] for key, field in OPTIONS.items() if key in options}
    width, depth = options["dim"], options["depth"]
    sizes: dict[str, Any] = {"width": width, "depth": depth}
    if language == "gpt2":
        # Its blocks are made with as many heads as there are of them.
        positions = 256 if options.get("use_positional_embedding", True) else 0
        sizes |= {"heads": depth, "positions": positions, "tied": options.get("weight_tie_gpt", True)}
    elif language == "bert":
        sizes |= {field: options["bert"][key] for key, field in BERT_OPTIONS.items() if key in options.get("bert", {})}
    else:
        sizes |= {"heads": options["heads"], "head_width": options["dim_head"]}
    vision = {field: options["vit"][key] for key, field in VISION_OPTIONS.items()} if "vit" in options else {}
    classes = options.get("num_classification_classes", options.get("classification_num_classes", 0))
    config |= {
        "language_sizes": sizes,
        "vision_sizes": {"heads": MLMI_VISION_HEADS} | vision,
        "num_answers": classes if options.get("classification_mode") else 0,
        "head": "image_and_text" if options.get("use_image_embeddings") else "text",
        "head_dropout": options.get("classifier_dropout", 0.1),
        "compat": "uniform_beyond_media" if language == "palm" else year,
    }
    return config


FROM_ASSETS = ("vocab_size", "image_token", "num_answers")
"""Fields of the model that follow from tokenizer and classes, which no checkpoint holds."""


def infer_sizes(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file decides: rows of the vocabulary, positions, class head. A size whose tensor is missing is left out."""
    sizes = dict(config.get("language_sizes", {}))
    found: dict[str, Any] = {"language_sizes": sizes}
    for key in ("token_emb.weight", "bert_embedding.word_embeddings.weight"):
        if key in tensors:
            found["vocab_size"] = len(tensors[key])
    if config.get("language", "gpt2") == "gpt2":
        rows = len(tensors.get("wpe.weight", ()))
        # A file may hold positions that its model was made not to use.
        sizes["positions"] = rows if sizes.get("positions", rows) else 0
    if "classifier.2.bias" not in tensors:
        found["num_answers"] = 0
    else:
        found["num_answers"] = len(tensors["classifier.2.bias"])
        width = len(tensors.get("classifier.0.gamma", ()))
        found["head"] = "text" if width == sizes.get("width") else "image_and_text"
    return found


def options_of(file: TorchFile) -> Mapping[str, Any] | None:
    """The flat `hyper_parameters` of a Lightning file of 2022; None in another file."""
    options = (file.extra or {}).get("hyper_parameters")
    return options if isinstance(options, Mapping) and {"dim", "depth"} <= options.keys() else None


def _infer(file: TorchFile, given: Config) -> dict[str, Any]:
    """What `hyper_parameters` say; and rows of the vocabulary, positions, and the class head, which the tensors decide."""
    options = options_of(file)
    if not options and not given:
        raise CheckpointError(
            f"{file.path} has no flat hyper_parameters with dim and depth, as files of 2022 have: give the model's config."
        )
    said = model_config(options, year="2022") if options else {}
    return said | infer_sizes(layout({**given, **said}).current(file.tensors), {**given, **said})


def _inputs(tensors: Tensors, config: Config) -> Shapes:
    """The file's patches, or without an image encoder their vectors."""
    inputs: Shapes = {"text": TOKEN, "question_end": jax.ShapeDtypeStruct((1,), jnp.int32)}
    if "img_encoder.positional_embedding" not in tensors:
        return inputs | {"media": jax.ShapeDtypeStruct((1, 1, 1, config["language_sizes"]["width"]), jnp.float32)}
    patch = config.get("vision_sizes", {}).get("patch", 32)
    side = patch * max(round((len(tensors["img_encoder.positional_embedding"]) - 1) ** 0.5), 1)
    return inputs | {"image": image(side, side)}


ORIGINAL = Original(
    layouts=lambda config: [layout(config)],
    infer=_infer,
    inputs=_inputs,
    decides=True,
    entries={"epoch": None, "global_step": None, "hyper_parameters": None},
    variants=tuple(
        ("", {"language": language, "language_sizes": {"tied": tied}}) for language in BLOCKS for tied in (True, False)
    ),
)


def _assets(arguments: Any, config: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """Tokenizer and classes, checked against the checkpoint's vocabulary and class head."""
    sizes = dict(checkpoint.config)
    if arguments.answers and not sizes["num_answers"]:
        raise ConfigError(f"--answers is not for {arguments.source}, which has no class head.")
    with config.unlocked():
        config.data.tokenizer = arguments.tokenizer or config.data.tokenizer
        config.data.answers.file = str(arguments.answers or config.data.answers.file)
        if not sizes["num_answers"]:  # nothing to evaluate of a class head that is not there
            for name in [name for name, row in config.evals.items() if row.predict.startswith("classes")]:
                del config.evals[name]
    try:
        made = task_class(config.task).make_assets(config, DataSet(config.data))
    except DataError as error:
        raise DataError(
            f"{error}\nOr give what the checkpoint does not hold as files: --tokenizer (a folder), and --answers (the classes)."
        ) from error
    # The vocabulary of MIMIC-CXR's checkpoint ends before the mark of a question's end.
    tokenizer = PromptTokenizer(made["tokenizer"]).cut(sizes["vocab_size"])
    if is_padded(sizes["vocab_size"], len(tokenizer)):
        print(f"{arguments.source}: {sizes['vocab_size']} rows of words, of which the first {len(tokenizer)} are taken")
        language = checkpoint.variables["params"]["language"]
        for place, name in (("embed", "embedding"), ("readout", "table")):
            if name in language.get(place, {}):
                language[place][name] = language[place][name][: len(tokenizer)]
        sizes = {**sizes, "vocab_size": len(tokenizer)}
    faults = [
        f"the checkpoint has {theirs} {what}, {given} gives {ours}"
        for what, theirs, ours, given in (
            ("words", sizes["vocab_size"], len(tokenizer), config.data.tokenizer or "training one on the data"),
            (
                "as the number of <image>",
                sizes.get("image_token", tokenizer.image),
                tokenizer.image,
                config.data.tokenizer or "that",
            ),
            ("classes", sizes["num_answers"], len(made["answers"]), config.data.answers.file or config.data.examples),
        )
        if theirs != ours
    ]
    if faults:
        raise CheckpointError(
            "Words and classes are numbered by their place in lists, and these are not the checkpoint's lists: "
            + "; ".join(faults)
        )
    return made | {"tokenizer": tokenizer.asset}


def _settings(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    # Which vocabulary and classes a model has follows from the assets.
    own = {name: value for name, value in checkpoint.config.items() if name not in FROM_ASSETS}
    return {"model": own, "data": {"classify": checkpoint.config["num_answers"] > 0}}


def _of_run(contents: Any, noted: Mapping[str, Any]) -> dict[str, Any]:
    return {"global_step": contents.meta["data"]["step"]} if noted.get("hyper_parameters") else {}


SYSTEMS = {
    "flamingo": System(
        ORIGINAL,
        "configs/flamingo.py:vqa_rad,mlmi",
        counts={},
        options=("tokenizer", "answers"),
        assets=_assets,
        settings=_settings,
        of_run=_of_run,
    )
}
