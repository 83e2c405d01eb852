"""The keys of `timm`'s vision transformer, as BLIP and DeiT write them (docs/originals/blip.md, section 3)."""

from jaxvqa.convert.layers import CONV, LAYER_NORM, LINEAR, Stacked
from jaxvqa.convert.table import Rule, nested

VIT_STACKED = Stacked("attn.qkv.{}", ("attn.q.{}", "attn.k.{}", "attn.v.{}"))
VIT_BLOCK = [
    *nested("norm1", "attention_norm", LAYER_NORM),
    *nested("attn.q", "attention/query", LINEAR),
    *nested("attn.k", "attention/key", LINEAR),
    *nested("attn.v", "attention/value", LINEAR),
    *nested("attn.proj", "attention/output", LINEAR),
    *nested("norm2", "feed_forward_norm", LAYER_NORM),
    *nested("mlp.fc1", "feed_forward/up", LINEAR),
    *nested("mlp.fc2", "feed_forward/down", LINEAR),
]
VIT = [
    Rule("cls_token", "class_token", "1 1 d -> d"),
    Rule("pos_embed", "position", "1 n d -> n d"),
    *nested("patch_embed.proj", "patches", CONV),
    *nested("blocks.{i}", "block_{i}", VIT_BLOCK),
    *nested("norm", "norm", LAYER_NORM),
]
