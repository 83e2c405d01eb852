"""CLIP's keys, as OpenAI and as Hugging Face write them."""

from jaxvqa.convert.layers import LAYER_NORM, LINEAR, LINEAR_NO_BIAS, Stacked
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Rule, Table, nested

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
            rules=tuple(Rule(f"visual.{r.key}", r.path, r.change) for r in OPENAI_VISION),
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
            rules=(
                Rule("vision_model.embeddings.class_embedding", "class_token"),
                *nested("vision_model.embeddings.patch_embedding", "patches", [PATCHES]),
                Rule("vision_model.embeddings.position_embedding.weight", "position"),
                *nested("vision_model.pre_layrnorm", "embed_norm", LAYER_NORM),  # spelt so
                *nested("vision_model.encoder.layers.{i}", "block_{i}", _HF_BLOCK),
                *nested("vision_model.post_layernorm", "norm", LAYER_NORM),
                *nested("visual_projection", "projection", LINEAR_NO_BIAS),
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
            rules=(
                Rule("positional_embedding", "position"),
                Rule("text_projection", "projection/kernel"),
                *nested("transformer.resblocks.{i}", "block_{i}", _OPENAI_BLOCK),
                Rule("token_embedding.weight", "embed/embedding"),
                *nested("ln_final", "norm", LAYER_NORM),
            ),
            excused=(r"visual\..*", "logit_scale", "input_resolution", "context_length", "vocab_size"),
        ),
        stacked=(CLIP_STACKED,),
    ),
    Layout(
        sign=r"(text_model\.)?embeddings\.token_embedding\.weight",
        table=Table(
            rules=(
                Rule("text_model.embeddings.token_embedding.weight", "embed/embedding"),
                Rule("text_model.embeddings.position_embedding.weight", "position"),
                *nested("text_model.encoder.layers.{i}", "block_{i}", _HF_BLOCK),
                *nested("text_model.final_layer_norm", "norm", LAYER_NORM),
                *nested("text_projection", "projection", LINEAR_NO_BIAS),
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
