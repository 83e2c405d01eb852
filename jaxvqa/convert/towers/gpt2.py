"""GPT-2's keys, as Hugging Face writes them."""

import dataclasses
from typing import Any

import numpy as np

from jaxvqa.convert.layers import LAYER_NORM, Stacked, in_collections
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.pretrained import Completed, Tower
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.errors import CheckpointError
from jaxvqa.models.towers.gpt2 import GPT2

CONV1D = [Rule("weight", "kernel"), Rule("bias", "bias")]
"""GPT-2's linear maps, whose matrices are stored (in, out)."""

GPT2_STACKED = Stacked("attn.c_attn.{}", ("attn.c_query.{}", "attn.c_key.{}", "attn.c_value.{}"), 1)
GPT2_ATTENTION = [
    *nested("c_query", "query", CONV1D),
    *nested("c_key", "key", CONV1D),
    *nested("c_value", "value", CONV1D),
    *nested("c_proj", "output", CONV1D),
]
GPT2_FEED_FORWARD = [*nested("c_fc", "up", CONV1D), *nested("c_proj", "down", CONV1D)]
_GPT2_BLOCK = [
    *nested("ln_1", "attention_norm", LAYER_NORM),
    *nested("attn", "attention", GPT2_ATTENTION),
    *nested("ln_2", "feed_forward_norm", LAYER_NORM),
    *nested("mlp", "feed_forward", GPT2_FEED_FORWARD),
]
GPT2_LAYOUT = Layout(
    sign=r"(transformer\.)?h\.0\.attn\.c_attn\.weight",
    table=Table(
        rules=in_collections(
            [
                Rule("transformer.wte.weight", "embed/embedding"),
                Rule("transformer.wpe.weight", "position/embedding"),
                *nested("transformer.h.{i}", "block_{i}", _GPT2_BLOCK),
                *nested("transformer.ln_f", "readout/norm", LAYER_NORM),
                Rule("lm_head.weight", "embed/embedding"),
            ]
        ),
        excused=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),  # masks
    ),
    stacked=(GPT2_STACKED,),
    prefix="transformer.",
)
GPT2_UNTIED = dataclasses.replace(
    GPT2_LAYOUT,
    table=dataclasses.replace(
        GPT2_LAYOUT.table,
        rules=(*GPT2_LAYOUT.table.rules[:-1], Rule("lm_head.weight", "params/readout/table")),
    ),
)
"""The same of a network whose output has a table of its own."""

LM_HEADS = ("embedding", "output", "own")
"""Choices for GPT-2's output where its table is not the embedding's: one for both, or each its own."""


def _output(tensors: Tensors, fields: dict[str, Any], held: set[str]) -> Completed:
    """Takes the output's table that the fields ask for; the file decides where both agree."""
    words, output = "transformer.wte.weight", "lm_head.weight"
    differ = words in tensors and output in tensors and not np.array_equal(tensors[words], tensors[output])
    if differ and "lm_head" not in fields and fields.get("tied", True):
        raise CheckpointError(
            f"{output} differs from {words}, so that the checkpoint has two tables of words: give --lm_head=embedding or "
            "--lm_head=output (one table for both, the one or the other), or --lm_head=own (each its own, which a Flamingo "
            "takes with config.model.language_sizes.tied=false)."
        )
    choice = fields.pop("lm_head", "output" if fields.get("tied", True) else "own")
    fields["tied"] = choice != "own"
    if not fields["tied"]:
        return dict(tensors), ("the output has a table of its own: config.model.language_sizes.tied=false takes it",)
    # Of two names of one parameter, the last one's value counts.
    last = words if choice == "embedding" else output
    ordered = {key: value for key, value in tensors.items() if key != last}
    return ordered | ({last: tensors[last]} if last in tensors else {}), ()


TOWER = Tower(
    "gpt2",
    GPT2,
    lambda fields: (GPT2_LAYOUT if fields.get("tied", True) else GPT2_UNTIED,),
    {
        "vocab_size": "vocab_size",
        "n_positions": "positions",
        "n_embd": "width",
        "n_layer": "depth",
        "n_head": "heads",
        "tie_word_embeddings": "tied",
    },
    {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "n_inner": lambda own: (None, 4 * own.get("n_embd", GPT2.width)),
    },
    {
        "vocab_size": ("embed/embedding", 0),
        "positions": ("position/embedding", 0),
        "width": ("embed/embedding", -1),
    },
    complete=_output,
)
