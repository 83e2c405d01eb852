"""BERT's keys, as Hugging Face writes them."""

from jaxvqa.convert.layers import LAYER_NORM, LINEAR
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Rule, Table, nested

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
        rules=(
            Rule("bert.embeddings.word_embeddings.weight", "embed/embedding"),
            Rule("bert.embeddings.position_embeddings.weight", "position/embedding"),
            Rule("bert.embeddings.token_type_embeddings.weight", "type/embedding"),
            *nested("bert.embeddings.LayerNorm", "embed_norm", LAYER_NORM),
            *nested("bert.encoder.layer.{i}", "block_{i}", BERT_BLOCK),
            *nested("bert.pooler.dense", "pool", LINEAR),
        ),
        excused=(r"bert\.embeddings\.position_ids", r"cls\..*"),  # a counter; what guesses words
    ),
    prefix="bert.",
    renamed=BERT_RENAMED,
)
