"""MLMI's checkpoints (github.com/caghankoksal/vqa-med), and those of flamingo-pytorch's PaLM variant: keys, sizes, options.

A file of MLMI is PyTorch Lightning's: an outer dict of `state_dict`, `hyper_parameters` and more. Nothing in it tells the heads
of the vision transformer, which is run with 8, nor in which year it was trained, which changes what it computes
(`jaxvqa.models.flamingo.PUBLISHED`). Flamingo spec, section 16.

With BERT, transformers wrote each tensor of embedding and layers two or three times; the names that come last in the file
count, and all are written. Masks, zeros and counters that a file holds, and nothing reads, are kept for writing.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import files
from jaxvqa.convert.layers import LAYER_NORM, LINEAR, LINEAR_NO_BIAS, Stacked
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax, to_torch
from jaxvqa.convert.towers.bert import BERT_BLOCK
from jaxvqa.convert.towers.clip import CLIP_STACKED, OPENAI_VISION
from jaxvqa.convert.towers.gpt2 import GPT2_ATTENTION, GPT2_FEED_FORWARD, GPT2_STACKED
from jaxvqa.convert.towers.palm import GAIN, PALM_BLOCK
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build

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
        *(Rule(r.key, f"language/{r.path}", r.change) for r in EMBEDDINGS[language]),
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
    return Table(tuple(rules), EXCUSED)


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
      year: which state of the code they are from, a name of `jaxvqa.models.flamingo.PUBLISHED`; flamingo-pytorch has none.

    Raises:
      CheckpointError: the language model is not offered.
    """
    name = options.get("language_encoder", options.get("language_model", "palm"))
    if name not in LANGUAGES:
        raise CheckpointError(
            f"The language model is {name!r}; there is {', '.join(LANGUAGES)}.{nearest(name, LANGUAGES)}"
        )
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
"""Fields of the model that follow from tokeniser and classes, which no checkpoint holds."""

SIZES = ("compat", "language_sizes", "vision_sizes", *dict.fromkeys(OPTIONS.values()), "head", "head_dropout")
"""Fields of a config's model that yield to those of a file with `hyper_parameters`."""


def options_of(path: files.Source) -> dict[str, Any] | None:
    """The flat `hyper_parameters` of a Lightning file of 2022, those that JSON can hold; None in another file."""
    options = (files.read(path).extra or {}).get("hyper_parameters")
    if not isinstance(options, Mapping) or not {"dim", "depth"} <= options.keys():
        return None
    return {key: value for key, value in options.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether it is a number, a text, or a table of such by names."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return isinstance(value, str | int | float | bool | None)


@dataclasses.dataclass
class Converted:
    """A checkpoint of the original in our terms.

    Attributes:
      params: the parameters, a nested dict of float32 arrays.
      config: the `model` part of a config.
      unused: the tensors that nothing reads, by their key, for `save`.
      extra: the other entries of a Lightning file; None without.
      report: what was used.
    """

    params: dict[str, Any]
    config: dict[str, Any]
    unused: dict[str, np.ndarray]
    extra: dict[str, Any] | None
    report: Report


def load(path: files.Source, config: Mapping[str, Any] | None = None) -> Converted:
    """Reads a checkpoint of the original.

    Args:
      path: a Lightning file, a `torch.save` file with the tensors alone, or `.safetensors`.
      config: the `model` part of a config, as `model_config` makes it; by default from the file's `hyper_parameters`. Rows of
        the vocabulary, positions, and whether there is a class head and of how many classes, the file decides.

    Raises:
      CheckpointError: the file cannot be read, or does not fit; lists all faults.
    """
    file = files.read(path)
    if config is None:
        options = options_of(file)
        if options is None:
            raise CheckpointError(
                f"{file.path} has no flat hyper_parameters with dim and depth, as files of 2022 have: give the model's config."
            )
        config = model_config(options, year="2022")
    tensors = {key.removeprefix(PREFIX).replace("media_pos_emb", "time_pos_emb"): v for key, v in file.tensors.items()}
    config = dict(config) | infer_sizes(tensors, config)
    shapes = target(config, tensors)
    split = tensors
    for stacked in STACKED:
        split = stacked.split(split)
    params, report = to_jax(split, _table(config), shapes)
    unused = {key: tensors[key] for key in report.excused}
    return Converted(params, config, unused, file.extra, report)


def save(
    path: str | Path,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    unused: Mapping[str, np.ndarray] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint that the original reads: same keys, order and shapes.

    Args:
      path: the file to write; `.pt`, `.pth` or `.safetensors`.
      params: our parameters.
      config: the `model` part of their config.
      unused: the tensors that nothing reads, as `load` gave them; by default those that the original begins with.
      extra: the other entries of a Lightning file; the tensors alone without.
    """
    tensors = to_original(params, config, unused)
    files.write(path, files.TorchFile(tensors, extra=None if extra is None else dict(extra)))


def to_original(
    params: Mapping[str, Any], config: Mapping[str, Any], unused: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Turns our parameters into the original's tensors, with those that nothing reads."""
    tensors = to_torch(params, _table(config))
    for stacked in STACKED:
        tensors = stacked.join(tensors)
    given = dict(unused or {})
    if unused is None and config["language"] == "gpt2" and config["language_sizes"].get("positions") == 0:
        given["wpe.weight"] = np.zeros((256, config["language_sizes"]["width"]), np.float32)
    result: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        for before, others in _CONSTANTS_BEFORE.items():
            if match := re.fullmatch(before, key):
                result |= {match.expand(name): make(tensors, config) for name, make in others.items()}
        result[key] = value
        if key == "token_emb.weight" and "wpe.weight" in given:
            result["wpe.weight"] = given["wpe.weight"]
        if key.endswith(".gamma"):
            result[key.removesuffix("gamma") + "beta"] = np.zeros_like(value)
        if re.fullmatch(r"layers\.\d+\.0\.fn\.norm\.gamma", key):
            result[key.removesuffix("norm.gamma") + "rotary_emb.inv_freq"] = _frequencies(config)
    result |= {key: value for key, value in given.items() if key in result}
    prefix = "" if config["language"] == "palm" else PREFIX
    return {(key if key.startswith("classifier.") else prefix + key): value for key, value in result.items()}


def _mask(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
    return np.tril(np.ones((1024, 1024), np.float32))[None, None]


def _counter(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
    return np.arange(len(tensors["bert_embedding.position_embeddings.weight"]))[None]


def _guesser(shape: str) -> Any:
    """A part of BERT's own output, which has no rows for the three marks."""

    def make(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
        words = tensors["bert_embedding.word_embeddings.weight"][:-3]
        return words if shape == "table" else np.zeros(len(words), np.float32)

    return make


_CONSTANTS_BEFORE: Mapping[str, Mapping[str, Any]] = {
    r"(layers\.\d+\.0\.fn\.attn)\.c_attn\.weight": {r"\1.bias": _mask},
    r"(bert_decoder\.bert\.embeddings)\.word_embeddings\.weight": {r"\1.position_ids": _counter},
    r"(bert_embedding)\.word_embeddings\.weight": {
        "bert_decoder.lm_head.bias": _guesser("bias"),
        "bert_decoder.lm_head.decoder.weight": _guesser("table"),
        "bert_decoder.lm_head.decoder.bias": _guesser("bias"),
        r"\1.position_ids": _counter,
    },
}
"""Pattern of a key -> what the original writes in front of it."""


def _frequencies(config: Mapping[str, Any]) -> np.ndarray:
    width = config["language_sizes"]["head_width"]
    return (10000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float32)


def infer_sizes(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a file decides: rows of the vocabulary, positions, class head. A size whose tensor is missing is left out."""
    sizes = dict(config.get("language_sizes", {}))
    found: dict[str, Any] = {"language_sizes": sizes}
    for key in ("token_emb.weight", "bert_embedding.word_embeddings.weight"):
        if key in tensors:
            found["vocab_size"] = len(tensors[key])
    if config["language"] == "gpt2":
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


def target(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The shapes and dtypes of the parameters of a model of this config, with the file's patches, or without vision."""
    if "img_encoder.positional_embedding" in tensors:
        patch = config.get("vision_sizes", {}).get("patch", 32)
        side = patch * max(round((len(tensors["img_encoder.positional_embedding"]) - 1) ** 0.5), 1)
        inputs = {"image": jnp.zeros((1, side, side, 3))}
    else:
        inputs = {"media": jnp.zeros((1, 1, 1, config["language_sizes"]["width"]))}
    inputs |= {"text": jnp.zeros((1, 1), jnp.int32), "question_end": jnp.zeros((1,), jnp.int32)}
    init: Any = build(config).init
    return jax.eval_shape(lambda key: init(key, **inputs), jax.random.key(0))["params"]


def _table(config: Mapping[str, Any]) -> Table:
    language = config["language"]
    tied = config.get("language_sizes", {}).get("tied", True) and language != "bert"
    return table(language, tied=tied)
