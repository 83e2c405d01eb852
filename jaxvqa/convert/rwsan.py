"""RWSAN's checkpoints (github.com/BrightQin/RWSAN): keys, sizes, options and the layout of the file.

A file is `ckpts/ckpt_<VERSION>/epoch<k>.pkl`, an outer dict of `state_dict`, `optimizer` (torch.optim.Adam) and `lr_base`,
the base learning rate after the decays so far. docs/originals/rwsan.md, section 2.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvqa.convert.adam import ADAM, Optimizer
from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layers import LINEAR, RNN, in_collections
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import TOKEN, Checkpoint, Config, Original, Shapes, System, sizes_of
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.text import Vocabulary

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
    in_collections(
        [
            Rule("embedding.weight", "embed/embedding"),
            *nested("lstm", "lstm", RNN),
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
        ]
    )
)

_ENCODER, _DECODER = "RWSA_layer.srwsa.denceenc1", "RWSA_layer.sgrwsa.dec1"
SIZES = {
    "vocab_size": ("embedding.weight", 0),
    "num_answers": ("proj.weight", 0),
    "embed_width": ("embedding.weight", 1),
    "width": ("img_feat_linear.weight", 0),
    "question_rank": (f"{_ENCODER}.mhatt.linear_k.weight", 0),
    "region_rank": (f"{_DECODER}.mhatt1.linear_k.weight", 0),
    "guided_rank": (f"{_DECODER}.mhatt2.linear_k.weight", 0),
    "flatten_width": ("attflat_img.mlp.fc.linear.weight", 0),
    "fused_width": ("attflat_img.linear_merge.weight", 0),
}
"""Field of the model -> the key and axis that tell it. Of a rank they tell `heads` times as much.

They cannot tell `heads`, `encoder_passes`, `decoder_passes` and `dropout`: those come from the config."""


def _infer(file: TorchFile, given: Config) -> dict[str, Any]:
    found = sizes_of(file.tensors, SIZES)
    heads = given.get("heads", 4)
    return found | {name: max(size // heads, 1) for name, size in found.items() if name.endswith("_rank")}


def _inputs(tensors: Tensors, config: Config) -> Shapes:
    width = sizes_of(tensors, {"region_width": ("img_feat_linear.weight", -1)}).get("region_width", 1)
    return {"regions": jax.ShapeDtypeStruct((1, 1, width), jnp.float32), "question": TOKEN}


ORIGINAL = Original(
    layouts=lambda config: [Layout(KEYS)],
    infer=_infer,
    inputs=_inputs,
    start={"name": "rwsan", "vocab_size": 1, "num_answers": 1},
    entries={
        "optimizer": Optimizer({**ADAM, "betas": (0.9, 0.98), "eps": 1e-9}, rate="lr_base"),
        "lr_base": 1e-4,
    },
)


def _settings(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    return {"model": checkpoint.config, "assets": {"region_width": checkpoint.inputs["regions"].shape[-1]}}


SYSTEMS = {
    "rwsan": System(
        ORIGINAL,
        "configs/rwsan.py:vqa_v2",
        Vocabulary,
        AnswerList,
        settings=_settings,
        of_run=lambda contents, noted: {"lr_base": noted.get("lr_base") or contents.config.optim.lr},
    )
}
