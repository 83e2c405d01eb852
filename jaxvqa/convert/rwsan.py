"""RWSAN's checkpoints (github.com/BrightQin/RWSAN): keys, sizes, options and the layout of the file.

A file is `ckpts/ckpt_<VERSION>/epoch<k>.pkl`, an outer dict of `state_dict`, `optimizer` (torch.optim.Adam) and `lr_base`,
the base learning rate after the decays so far. Spec section 2.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import adam, files
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax, to_torch
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build

LINEAR = [Rule("weight", "kernel", "o i -> i o"), Rule("bias", "bias")]
NORM = [Rule("a_2", "scale"), Rule("b_2", "bias")]
ATTENTION = [
    *nested("linear_v", "value", LINEAR),
    *nested("linear_k", "key", LINEAR),
    *nested("linear_q", "query", LINEAR),
    *nested("linear_merge", "output", LINEAR),
]
MLP = [*nested("mlp.fc.linear", "up", LINEAR), *nested("mlp.linear", "down", LINEAR)]
POOLING = [*nested("mlp.fc.linear", "score/up", LINEAR), *nested("mlp.linear", "score/down", LINEAR)]
POOLING += nested("linear_merge", "output", LINEAR)
SELF_UNIT = [
    *nested("mhatt", "attention", ATTENTION),
    *nested("ffn", "feed_forward", MLP),
    *nested("norm1", "attention_norm", NORM),
    *nested("norm2", "feed_forward_norm", NORM),
]
GUIDED_UNIT = [
    *nested("mhatt1", "attention", ATTENTION),
    *nested("mhatt2", "cross_attention", ATTENTION),
    *nested("ffn", "feed_forward", MLP),
    *nested("norm1", "attention_norm", NORM),
    *nested("norm2", "cross_attention_norm", NORM),
    *nested("norm3", "feed_forward_norm", NORM),
]

KEYS = Table(
    rules=(
        Rule("embedding.weight", "embed/embedding"),
        Rule("lstm.weight_ih_l0", "lstm/input_kernel", "o i -> i o"),
        Rule("lstm.weight_hh_l0", "lstm/hidden_kernel", "o i -> i o"),
        Rule("lstm.bias_ih_l0", "lstm/input_bias"),
        Rule("lstm.bias_hh_l0", "lstm/hidden_bias"),
        *nested("img_feat_linear", "region_input", LINEAR),
        *nested("RWSA_layer.srwsa.denceenc1", "encoder/unit", SELF_UNIT),  # misspelt in the original
        *nested("RWSA_layer.srwsa.norm1", "encoder/second_norm", NORM),
        *nested("RWSA_layer.srwsa.norm2", "encoder/third_norm", NORM),
        *nested("RWSA_layer.sgrwsa.dec1", "decoder/unit", GUIDED_UNIT),
        *nested("RWSA_layer.sgrwsa.norm1", "decoder/second_norm", NORM),
        *nested("RWSA_layer.sgrwsa.norm3", "decoder/last_norm", NORM),
        *nested("attflat_img", "region_pooling", POOLING),
        *nested("attflat_lang", "question_pooling", POOLING),
        *nested("proj_norm", "fused_norm", NORM),
        *nested("proj", "classifier", LINEAR),
    )
)

OPTIONS = {
    "HIDDEN_SIZE": "width",
    "MULTI_HEAD": "heads",
    "SRWSA_LAYER": "encoder_passes",
    "SGRWSA_LAYER": "decoder_passes",
    "WORD_EMBED_SIZE": "embed_width",
    "FLAT_MLP_SIZE": "flatten_width",
    "FLAT_OUT_SIZE": "fused_width",
    "SRWSA_MIDSIZE": "question_rank",
    "SGRWSA_SA_MIDSIZE": "region_rank",
    "SGRWSA_GA_MIDSIZE": "guided_rank",
    "DROPOUT_R": "dropout",
    "token_size": "vocab_size",
    "answer_size": "num_answers",
}
"""The original's option -> field of the model."""

SIZES = (
    "vocab_size",
    "num_answers",
    "embed_width",
    "width",
    "question_rank",
    "region_rank",
    "guided_rank",
    "flatten_width",
    "fused_width",
)
"""Fields of the model that a checkpoint tells; see `infer_sizes`."""

INPUT_OPTIONS = ("IMG_FEAT_SIZE", "IMG_FEAT_PAD_SIZE", "MAX_TOKEN")
"""Options of the original that say what goes into the model; ours takes inputs of any length."""


def model_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the original's options into the `model` part of a config.

    Raises:
      CheckpointError: lists each option that is not known.
    """
    known = (*OPTIONS, *INPUT_OPTIONS, "FF_SIZE")
    faults = [f"unknown option {name}.{nearest(name, known)}" for name in options if name not in known]
    if "FF_SIZE" in options and options["FF_SIZE"] != 4 * options.get("HIDDEN_SIZE", 512):
        faults.append(f"FF_SIZE is {options['FF_SIZE']}; it is always four times HIDDEN_SIZE.")
    if faults:
        raise CheckpointError("The options are none of RWSAN: " + " ".join(faults))
    return {"name": "rwsan"} | {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}


def infer_sizes(tensors: Mapping[str, np.ndarray], heads: int = 4) -> dict[str, int]:
    """Reads the model's sizes from the tensors' shapes, as far as those tell.

    They cannot tell `heads`, `encoder_passes`, `decoder_passes` and `dropout`: those come from the config. A rank is the
    number of a key projection's rows divided by `heads`. A size whose tensor is missing is left out.
    """
    encoder, decoder = "RWSA_layer.srwsa.denceenc1", "RWSA_layer.sgrwsa.dec1"
    where = {  # field -> (key, axis, heads that share the size)
        "vocab_size": ("embedding.weight", 0, 1),
        "embed_width": ("embedding.weight", 1, 1),
        "width": ("img_feat_linear.weight", 0, 1),
        "question_rank": (f"{encoder}.mhatt.linear_k.weight", 0, heads),
        "region_rank": (f"{decoder}.mhatt1.linear_k.weight", 0, heads),
        "guided_rank": (f"{decoder}.mhatt2.linear_k.weight", 0, heads),
        "flatten_width": ("attflat_img.mlp.fc.linear.weight", 0, 1),
        "fused_width": ("attflat_img.linear_merge.weight", 0, 1),
        "num_answers": ("proj.weight", 0, 1),
    }
    return {
        field: tensors[key].shape[axis] // share
        for field, (key, axis, share) in where.items()
        if key in tensors and tensors[key].ndim == 2 and tensors[key].shape[axis] >= share
    }


@dataclasses.dataclass
class Converted:
    """A checkpoint of the original in our terms.

    Attributes:
      params: the parameters, a nested dict of float32 arrays.
      adam: the optimiser's state, or None when the file has none.
      lr_base: the base learning rate after the decays so far, or None.
      sizes: the fields `SIZES` of the model, and `region_width`, the number of values of a region's features.
      report: what was used.
    """

    params: dict[str, Any]
    adam: adam.AdamState | None
    lr_base: float | None
    sizes: dict[str, int]
    report: Report


def target(config: Mapping[str, Any], region_width: int) -> dict[str, Any]:
    """The shapes and dtypes of the parameters of a model of this config, for features of `region_width` values."""
    regions = jax.ShapeDtypeStruct((1, 1, region_width), jnp.float32)
    question = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(build(config).init, jax.random.key(0), regions=regions, question=question)["params"]


def load(path: files.Source, config: Mapping[str, Any]) -> Converted:
    """Reads a checkpoint of the original.

    Args:
      path: a `.pkl`/`.pth` file in the original's layout or with the tensors alone, or `.safetensors`.
      config: the `model` part of a config. Sizes that it leaves out are read from the file; those that it has must
        agree with it.

    Raises:
      CheckpointError: the file cannot be read, or does not fit; lists all faults.
    """
    file = files.read(path)
    # 1 stands for a size that neither tells: its tensor is missing, and shall be reported with all the other faults.
    sizes = {"vocab_size": 1, "num_answers": 1} | infer_sizes(file.tensors, config.get("heads", 4))
    sizes |= {name: value for name, value in config.items() if name in SIZES}
    region_width = file.tensors.get("img_feat_linear.weight", np.empty((1, 1))).shape[-1]
    shapes = target(dict(config.items()) | sizes, region_width)
    params, report = to_jax(file.tensors, KEYS, shapes)
    extra = file.extra or {}
    state = None
    if "optimizer" in extra:
        state = adam.from_torch(extra["optimizer"], list(file.tensors), KEYS, shapes)
    lr_base = files.number(file, "lr_base")
    sizes |= {"region_width": region_width}
    return Converted(params, state, None if lr_base is None else float(lr_base), sizes, report)


def save(
    path: str | Path, params: Mapping[str, Any], state: adam.AdamState | None = None, lr_base: float | None = None
) -> None:
    """Writes a checkpoint that the original resumes from: same keys, order, shapes, dtypes and outer layout.

    Without `state` the file holds an Adam that has not made a step. A `.safetensors` file holds the tensors alone.

    Args:
      path: the file to write; `.pkl`, `.pth`, `.pt` or `.safetensors`.
      params: our parameters.
      state: the optimiser's state.
      lr_base: the base learning rate after the decays so far; the published one by default.
    """
    tensors = to_torch(params, KEYS)
    lr_base = 1e-4 if lr_base is None else lr_base
    extra: dict[str, Any] | None = None
    if Path(path).suffix != ".safetensors":
        # The settings of the original's Adam; those that `state` brings win.
        settings = {"lr": lr_base, "betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0}
        if state is not None:
            state = dataclasses.replace(state, settings=settings | state.settings)
            optimizer = adam.to_torch_state(state, KEYS)
        else:
            optimizer = adam.fresh_state(len(tensors), settings)
        extra = {"optimizer": optimizer, "lr_base": lr_base}
    files.write(path, files.TorchFile(tensors, extra=extra))
