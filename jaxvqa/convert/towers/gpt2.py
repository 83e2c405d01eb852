"""GPT-2's keys, as Hugging Face writes them."""

import dataclasses

from jaxvqa.convert.layers import LAYER_NORM, Stacked
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Rule, Table, nested

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
        rules=(
            Rule("transformer.wte.weight", "embed/embedding"),
            Rule("transformer.wpe.weight", "position/embedding"),
            *nested("transformer.h.{i}", "block_{i}", _GPT2_BLOCK),
            *nested("transformer.ln_f", "readout/norm", LAYER_NORM),
            Rule("lm_head.weight", "embed/embedding"),
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
        rules=(*GPT2_LAYOUT.table.rules[:-1], Rule("lm_head.weight", "readout/table")),
    ),
)
"""The same of a network whose output has a table of its own."""
