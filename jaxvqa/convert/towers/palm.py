"""The keys of PaLM's blocks, as flamingo-pytorch writes them."""

from jaxvqa.convert.layers import LINEAR_NO_BIAS
from jaxvqa.convert.table import Rule, nested

GAIN = [Rule("gamma", "scale")]
PALM_BLOCK = [
    *nested("norm", "norm", GAIN),
    *nested("fused_attn_ff_proj", "qkv_up_gate", LINEAR_NO_BIAS),
    *nested("attn_out", "attention_output", LINEAR_NO_BIAS),
    *nested("ff_out.1", "down", LINEAR_NO_BIAS),
]
