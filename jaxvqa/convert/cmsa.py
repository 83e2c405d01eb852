"""CMSA's checkpoints (github.com/haifangong/CMSA-MTPT-4-MedicalVQA): keys, sizes, options and the layout of the file.

A file is `model_epoch<k>.pth`, an outer dict of `epoch`, `model_state` and `optimizer_state` (torch.optim.Adamax), or the
tensors alone. docs/originals/cmsa.md, section 11.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa.convert import layers, original
from jaxvqa.convert.adam import ADAMAX, Optimizer
from jaxvqa.convert.layout import Constant, Layout
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.data.rad_text import RadAnswerList, RadVocabulary
from jaxvqa.models.layers.query_norm import sinusoids

EMBEDDING = [Rule("emb.weight", "table_0"), Rule("emb_.weight", "table_1")]
ATTENTION = [
    *nested("w_qs", "attention/query", layers.LINEAR_NO_BIAS),
    *nested("w_ks", "attention/key", layers.LINEAR_NO_BIAS),
    *nested("w_vs", "attention/value", layers.LINEAR_NO_BIAS),
    *nested("fc", "attention/output", layers.LINEAR_NO_BIAS),
    *nested("layer_norm", "norm", layers.LAYER_NORM),
]
QUESTION = [
    *nested("rnn", "rnn", layers.RNN),
    *nested("layer_stack.{i}.slf_attn", "encoder/layer_{i}_attention", ATTENTION),
    *nested("layer_stack.{i}.pos_ffn.w_1", "encoder/layer_{i}_feed_forward/up", layers.LINEAR),
    *nested("layer_stack.{i}.pos_ffn.w_2", "encoder/layer_{i}_feed_forward/down", layers.LINEAR),
    *nested("layer_stack.{i}.pos_ffn.layer_norm", "encoder/layer_{i}_norm", layers.LAYER_NORM),
    *nested("layer_norm", "encoder/norm", layers.LAYER_NORM),
]
"""The question encoder: an LSTM, a GRU, or self-attention."""

NON_LOCAL = [
    *nested("g", "value", layers.POINTWISE_3D),
    *nested("W.0", "project", layers.POINTWISE_3D),
    *nested("W.1", "norm", layers.BATCH_NORM),
    *nested("theta", "theta", layers.POINTWISE_3D),
    *nested("phi", "phi", layers.POINTWISE_3D),
]
CLASSIFIER = [*nested("main.0", "up", layers.WEIGHT_NORM_LINEAR), *nested("main.3", "down", layers.WEIGHT_NORM_LINEAR)]
ORGAN = [
    *nested("conv.0", "conv_0", layers.CONV),
    *nested("conv.1", "norm_0", layers.BATCH_NORM),
    *nested("conv.4", "conv_1", layers.CONV),
    *nested("conv.5", "norm_1", layers.BATCH_NORM),
    *nested("conv.8", "conv_2", layers.CONV),
    *nested("conv.9", "norm_2", layers.BATCH_NORM),
    *nested("fc.0", "hidden", layers.LINEAR),
    *nested("fc.1", "hidden_norm", layers.BATCH_NORM),
    *nested("fc.4", "output", layers.LINEAR),
]
"""The organ classifier, also in a file of its own."""

POSITIONS = "q_emb.position_enc.pos_table"
"""The self-attention's table of positions: a constant, which the original writes into its checkpoints."""

KEYS = Table(
    rules=layers.in_collections(
        [
            *nested("w_emb", "embed", EMBEDDING),
            *nested("q_emb", "question", QUESTION),
            *nested("cmsa0", "block_0", NON_LOCAL),
            *nested("cmsa1", "block_1", NON_LOCAL),
            *nested("fc", "projection", layers.LINEAR),
            *nested("classifier", "classifier", CLASSIFIER),
            *nested("cma", "word_attention", ATTENTION),
            *nested("modal_classifier", "organ", ORGAN),
            *nested("abd_v_emb", "abdomen", RESNET),
            *nested("brain_v_emb", "head", RESNET),
            *nested("chest_v_emb", "chest", RESNET),
        ]
    ),
    excused=(layers.COUNTER, POSITIONS.replace(".", r"\.")),
)

CONSTANTS = (
    Constant(
        r"q_emb\.layer_stack\.0\.slf_attn\.w_qs\.weight",
        POSITIONS,
        lambda tensors, key: sinusoids(200, tensors[key].shape[1])[None],
    ),
)

LR_SCALE = ((r"(embed|question)/.*", 0.2), (r".*", 1.0))
"""With self-attention words and question learn more slowly (docs/originals/cmsa.md, section 8): `config.optim.lr_scale`."""


def infer_sizes(tensors: Tensors) -> dict[str, Any]:
    """Reads the model's sizes and options from the tensors' names and shapes.

    No tensor shows `dropout`. A size whose tensor is missing is left out.
    """
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    where = {  # field -> (key, axis)
        "num_answers": ("classifier.main.3.bias", 0),
        "embed_width": ("w_emb.emb.weight", -1),
        "width": ("q_emb.rnn.weight_hh_l0", -1),
        "organ_width": ("modal_classifier.conv.0.weight", 0),
        "organ_hidden": ("modal_classifier.fc.0.weight", 0),
    }
    sizes: dict[str, Any] = dict(original.sizes_of(tensors, where))
    if len(shapes.get("w_emb.emb.weight", ())) == 2:
        sizes["vocab_size"] = shapes["w_emb.emb.weight"][0] - 1  # the last row is padding
        sizes["tables"] = 1 + ("w_emb.emb_.weight" in shapes)
    if branch := original.sizes_of(tensors, {"width": ("abd_v_emb.conv1.weight", 0)}):
        sizes["branch_sizes"] = branch
    sizes["self_attention"] = any(key.startswith("q_emb.layer_stack.") for key in shapes)
    sizes["cross_attention"] = any(key.startswith("cma.") for key in shapes)
    if sizes.get("width") and "q_emb.rnn.weight_ih_l0" in shapes:
        sizes["rnn"] = {3: "gru"}.get(shapes["q_emb.rnn.weight_ih_l0"][0] // sizes["width"], "lstm")
    last = [key for key in shapes if key.startswith("abd_v_emb.layer4.") and ".conv" in key]
    if last:
        third = sum(key.startswith("abd_v_emb.layer3.") and key.endswith(".conv1.weight") for key in shapes)
        bottleneck = any(key.endswith(".conv3.weight") for key in last)
        depth = (101 if third > 6 else 50) if bottleneck else {1: 10, 2: 18}.get(third, 34)
        sizes["branch"] = f"resnet{depth}"
        width = shapes[max(last)][0]  # of the last convolution of the last block
        if len(shapes.get("fc.weight", ())) == 2:
            states, channels = shapes["fc.weight"]
            sizes["spatial"] = channels > states + width
    return sizes


def image_size_of(tensors: Tensors) -> tuple[int, int]:
    """The smallest square images that fit the organ classifier, whose five halvings round up; 224 for the published one."""
    found = original.sizes_of(
        tensors, {"inputs": ("modal_classifier.fc.0.weight", -1), "width": ("modal_classifier.conv.0.weight", 0)}
    )
    side = 32 * max(math.isqrt(found.get("inputs", 0) // max(found.get("width", 64), 1)), 1)
    return side, side


def groups(keys: Sequence[str]) -> list[list[str]]:
    """The parameters' keys as the original's optimiser groups and orders them: with self-attention, what is slower last."""
    slower = [key for key in keys if key.startswith(("w_emb.", "q_emb."))]
    if not any(key.startswith("q_emb.layer_stack.") for key in slower):
        return [list(keys)]
    return [[key for key in keys if key not in slower], slower]


ENTRIES = {
    "epoch": 0,
    "optimizer_state": Optimizer({**ADAMAX, "lr": 0.005}, second="exp_inf", groups=groups, scale=LR_SCALE[0][1]),
}
"""What a file of any of the original's models holds besides its tensors."""

UNKNOWN = {"vocab_size": 1, "num_answers": 1}


def check_positions(tensors: Tensors) -> str:
    """Says what is wrong with the table of positions, which nothing reads."""
    if POSITIONS in tensors:
        given = tensors[POSITIONS]
        if given.ndim != 3 or not np.allclose(given[0], sinusoids(*given.shape[1:]), atol=1e-5):
            return f"{POSITIONS} {list(given.shape)} is not the usual table of sines and cosines."
    return ""


def _inputs(tensors: Tensors, config: original.Config) -> original.Shapes:
    return {"image": original.image(*image_size_of(tensors)), "question": original.TOKEN}


ORIGINAL = original.Original(
    layouts=lambda config: [Layout(KEYS, constants=CONSTANTS)],
    infer=lambda file, given: infer_sizes(file.tensors),
    inputs=_inputs,
    start={"name": "cmsa", **UNKNOWN},
    entry="model_state",
    entries=ENTRIES,
    check=check_positions,
)


def settings(checkpoint: original.Checkpoint) -> dict[str, Mapping[str, Any]]:
    """What a file of any of the original's models says of a config."""
    data = {
        name: checkpoint.inputs[given].shape[1] for name, given in IMAGE_SIZES.items() if given in checkpoint.inputs
    }
    optim = {"lr_scale": LR_SCALE} if checkpoint.config.get("self_attention") else {}
    return {"model": checkpoint.config, "data": data, "optim": optim}


IMAGE_SIZES = {"image_size": "image", "autoencoder_size": "image_128"}
"""Field of `config.data` -> the input that has this height and width."""

RAD: dict[str, Any] = {"vocabulary": RadVocabulary, "answers": RadAnswerList, "settings": settings}
SYSTEMS = {"cmsa": original.System(ORIGINAL, "configs/cmsa.py:vqa_rad", **RAD)}
