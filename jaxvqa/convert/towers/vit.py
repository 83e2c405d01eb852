"""The keys of BLIP's vision transformer: `timm`'s (docs/originals/blip.md, section 3), as in DeiT, and Hugging Face's."""

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


HUGGING_FACE_STACKED = Stacked(
    "self_attn.qkv.{}", tuple(f"self_attn.{part}.{{}}" for part in ("query", "key", "value"))
)
HUGGING_FACE_VIT = [
    Rule("embeddings.class_embedding", "class_token", "1 1 d -> d"),
    Rule("embeddings.position_embedding", "position", "1 n d -> n d"),
    *nested("embeddings.patch_embedding", "patches", CONV),
    *nested(
        "encoder.layers.{i}",
        "block_{i}",
        [
            *nested("self_attn.query", "attention/query", LINEAR),
            *nested("self_attn.key", "attention/key", LINEAR),
            *nested("self_attn.value", "attention/value", LINEAR),
            *nested("self_attn.projection", "attention/output", LINEAR),
            *nested("layer_norm1", "attention_norm", LAYER_NORM),
            *nested("mlp.fc1", "feed_forward/up", LINEAR),
            *nested("mlp.fc2", "feed_forward/down", LINEAR),
            *nested("layer_norm2", "feed_forward_norm", LAYER_NORM),
        ],
    ),
    *nested("post_layernorm", "norm", LAYER_NORM),
]
"""Below `vision_model` in Hugging Face's files."""
