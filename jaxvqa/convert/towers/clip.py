"""CLIP's keys, as OpenAI and as Hugging Face write them."""

from collections.abc import Mapping
from typing import Any

from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layers import LAYER_NORM, LINEAR, LINEAR_NO_BIAS, Stacked, in_collections
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.pretrained import Completed, Tower
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.errors import CheckpointError
from jaxvqa.models.towers.clip import TextTransformer, VisionTransformer

CLIP_STACKED = Stacked("attn.in_proj_{}", ("attn.query.{}", "attn.key.{}", "attn.value.{}"))
_OPENAI_BLOCK = [
    *nested("attn.query", "attention/query", LINEAR),
    *nested("attn.key", "attention/key", LINEAR),
    *nested("attn.value", "attention/value", LINEAR),
    *nested("attn.out_proj", "attention/output", LINEAR),
    *nested("ln_1", "attention_norm", LAYER_NORM),
    *nested("mlp.c_fc", "feed_forward/up", LINEAR),
    *nested("mlp.c_proj", "feed_forward/down", LINEAR),
    *nested("ln_2", "feed_forward_norm", LAYER_NORM),
]
_HF_BLOCK = [
    *nested("self_attn.k_proj", "attention/key", LINEAR),
    *nested("self_attn.v_proj", "attention/value", LINEAR),
    *nested("self_attn.q_proj", "attention/query", LINEAR),
    *nested("self_attn.out_proj", "attention/output", LINEAR),
    *nested("layer_norm1", "attention_norm", LAYER_NORM),
    *nested("mlp.fc1", "feed_forward/up", LINEAR),
    *nested("mlp.fc2", "feed_forward/down", LINEAR),
    *nested("layer_norm2", "feed_forward_norm", LAYER_NORM),
]
PATCHES = Rule("weight", "kernel", "o i h w -> h w i o")
OPENAI_VISION = [
    Rule("class_embedding", "class_token"),
    Rule("positional_embedding", "position"),
    Rule("proj", "projection/kernel"),
    *nested("conv1", "patches", [PATCHES]),
    *nested("ln_pre", "embed_norm", LAYER_NORM),
    *nested("transformer.resblocks.{i}", "block_{i}", _OPENAI_BLOCK),
    *nested("ln_post", "norm", LAYER_NORM),
]
CLIP_VISION_LAYOUTS = (
    Layout(
        sign=r"(visual\.)?transformer\.resblocks\.0\.attn\.in_proj_weight",
        table=Table(
            rules=in_collections(Rule(f"visual.{r.key}", r.path, r.change) for r in OPENAI_VISION),
            excused=(  # the text tower, and what the weights were saved with
                r"(positional_embedding|text_projection|logit_scale|input_resolution|context_length|vocab_size)",
                r"(transformer|token_embedding|ln_final)\..*",
            ),
        ),
        stacked=(CLIP_STACKED,),
        prefix="visual.",
    ),
    Layout(
        sign=r"(vision_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight",
        table=Table(
            rules=in_collections(
                [
                    Rule("vision_model.embeddings.class_embedding", "class_token"),
                    *nested("vision_model.embeddings.patch_embedding", "patches", [PATCHES]),
                    Rule("vision_model.embeddings.position_embedding.weight", "position"),
                    *nested("vision_model.pre_layrnorm", "embed_norm", LAYER_NORM),  # spelt so
                    *nested("vision_model.encoder.layers.{i}", "block_{i}", _HF_BLOCK),
                    *nested("vision_model.post_layernorm", "norm", LAYER_NORM),
                    *nested("visual_projection", "projection", LINEAR_NO_BIAS),
                ]
            ),
            excused=(r"vision_model\.embeddings\.position_ids", r"text_(model|projection)\..*", "logit_scale"),
        ),
        prefix="vision_model.",
    ),
)
CLIP_TEXT_LAYOUTS = (
    Layout(
        sign=r"token_embedding\.weight",
        table=Table(
            rules=in_collections(
                [
                    Rule("positional_embedding", "position"),
                    Rule("text_projection", "projection/kernel"),
                    *nested("transformer.resblocks.{i}", "block_{i}", _OPENAI_BLOCK),
                    Rule("token_embedding.weight", "embed/embedding"),
                    *nested("ln_final", "norm", LAYER_NORM),
                ]
            ),
            excused=(r"visual\..*", "logit_scale", "input_resolution", "context_length", "vocab_size"),
        ),
        stacked=(CLIP_STACKED,),
    ),
    Layout(
        sign=r"(text_model\.)?embeddings\.token_embedding\.weight",
        table=Table(
            rules=in_collections(
                [
                    Rule("text_model.embeddings.token_embedding.weight", "embed/embedding"),
                    Rule("text_model.embeddings.position_embedding.weight", "position"),
                    *nested("text_model.encoder.layers.{i}", "block_{i}", _HF_BLOCK),
                    *nested("text_model.final_layer_norm", "norm", LAYER_NORM),
                    *nested("text_projection", "projection", LINEAR_NO_BIAS),
                ]
            ),
            excused=(
                r"text_model\.embeddings\.position_ids",
                r"(vision_model|visual_projection)\..*",
                "logit_scale",
            ),
        ),
        prefix="text_model.",
    ),
)

ACTIVATIONS = ("quick_gelu", "gelu")
_OPTIONS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "projection_dim": "features",
    "hidden_act": "activation",
}
_FIXED = {"hidden_act": ACTIVATIONS, "layer_norm_eps": (1e-5,), "num_channels": (3,)}
_SIZES = {"hidden": ("block_0/feed_forward/up/kernel", -1), "features": ("projection/kernel", -1)}


def _activation(file: TorchFile, fields: Mapping[str, Any]) -> dict[str, Any]:
    if "activation" in fields:
        return {}
    if file.config or file.scripted:  # transformers' default, and OpenAI's own archive
        return {"activation": "quick_gelu"}
    raise CheckpointError(
        f"{file.path} does not tell which activation this CLIP was trained with, and every number depends on it: "
        "give --activation=quick_gelu (OpenAI's networks) or --activation=gelu (most of OpenCLIP's), or the folder with "
        "its config.json."
    )


def _projection(tensors: Tensors, fields: dict[str, Any], held: set[str]) -> Completed:
    if "projection/kernel" not in held:
        fields["features"] = 0
    return dict(tensors), ()


VISION_TOWER = Tower(
    "clip_vision",
    VisionTransformer,
    lambda fields: CLIP_VISION_LAYOUTS,
    _OPTIONS | {"patch_size": "patch"},
    _FIXED,
    _SIZES | {"width": ("class_token", -1), "patch": ("patches/kernel", 0)},
    "vision_config",
    images=True,
    settle=_activation,
    complete=_projection,
)
TEXT_TOWER = Tower(
    "clip_text",
    TextTransformer,
    lambda fields: CLIP_TEXT_LAYOUTS,
    _OPTIONS | {"vocab_size": "vocab_size", "max_position_embeddings": "positions"},
    _FIXED,
    _SIZES | {"width": ("embed/embedding", -1), "vocab_size": ("embed/embedding", 0), "positions": ("position", 0)},
    "text_config",
    settle=_activation,
    complete=_projection,
)
