"""BERT's keys, as Hugging Face writes them."""

from typing import Any

from jaxvqa.convert.layers import LAYER_NORM, LINEAR, in_collections
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.pretrained import Completed, Tower
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.models.towers.bert import BERT

BERT_BLOCK = [
    *nested("attention.self.query", "attention/query", LINEAR),
    *nested("attention.self.key", "attention/key", LINEAR),
    *nested("attention.self.value", "attention/value", LINEAR),
    *nested("attention.output.dense", "attention/output", LINEAR),
    *nested("attention.output.LayerNorm", "attention_norm", LAYER_NORM),
    *nested("intermediate.dense", "feed_forward/up", LINEAR),
    *nested("output.dense", "feed_forward/down", LINEAR),
    *nested("output.LayerNorm", "feed_forward_norm", LAYER_NORM),
]
BERT_RENAMED = ((r"(^|\.)LayerNorm\.gamma$", r"\1LayerNorm.weight"), (r"(^|\.)LayerNorm\.beta$", r"\1LayerNorm.bias"))
"""What TensorFlow's names became; files of 2018 to 2020, such as `bert-base-uncased`, have the old ones."""

BERT_LAYOUT = Layout(
    sign=r"(bert\.)?encoder\.layer\.0\.attention\.self\.query\.weight",
    table=Table(
        rules=in_collections(
            [
                Rule("bert.embeddings.word_embeddings.weight", "embed/embedding"),
                Rule("bert.embeddings.position_embeddings.weight", "position/embedding"),
                Rule("bert.embeddings.token_type_embeddings.weight", "type/embedding"),
                *nested("bert.embeddings.LayerNorm", "embed_norm", LAYER_NORM),
                *nested("bert.encoder.layer.{i}", "block_{i}", BERT_BLOCK),
                *nested("bert.pooler.dense", "pool", LINEAR),
            ]
        ),
        excused=(r"bert\.embeddings\.position_ids", r"cls\..*"),  # a counter; what guesses words
    ),
    prefix="bert.",
    renamed=BERT_RENAMED,
)


def _pooler(tensors: Tensors, fields: dict[str, Any], held: set[str]) -> Completed:
    fields.setdefault("pooler", "pool/kernel" in held)
    return dict(tensors), ()


TOWER = Tower(
    "bert",
    BERT,
    lambda fields: (BERT_LAYOUT,),
    {
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "hidden",
        "max_position_embeddings": "positions",
        "type_vocab_size": "types",
    },
    {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,), "position_embedding_type": ("absolute",)},
    {
        "vocab_size": ("embed/embedding", 0),
        "positions": ("position/embedding", 0),
        "types": ("type/embedding", 0),
        "width": ("embed/embedding", -1),
        "hidden": ("block_0/feed_forward/up/kernel", -1),
    },
    complete=_pooler,
)
