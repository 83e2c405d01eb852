"""The keys of MED, BLIP's text model: BERT's, with a cross-attention in every layer (docs/originals/blip.md, section 4)."""

import numpy as np

from jaxvqa.convert.layers import LAYER_NORM, LINEAR
from jaxvqa.convert.layout import Constant
from jaxvqa.convert.table import Rule, Tensors, nested


def _attention(key: str, path: str) -> list[Rule]:
    return [
        *nested(f"{key}.self.query", f"{path}/query", LINEAR),
        *nested(f"{key}.self.key", f"{path}/key", LINEAR),
        *nested(f"{key}.self.value", f"{path}/value", LINEAR),
        *nested(f"{key}.output.dense", f"{path}/output", LINEAR),
        *nested(f"{key}.output.LayerNorm", f"{path}_norm", LAYER_NORM),
    ]


def _block(own: str) -> list[Rule]:
    return [
        *_attention("attention", own),
        *_attention("crossattention", "cross_attention"),
        *nested("intermediate.dense", "feed_forward/up", LINEAR),
        *nested("output.dense", "feed_forward/down", LINEAR),
        *nested("output.LayerNorm", "feed_forward_norm", LAYER_NORM),
    ]


def _bert(own: str) -> list[Rule]:
    return [
        Rule("embeddings.word_embeddings.weight", "embed/embedding"),
        Rule("embeddings.position_embeddings.weight", "position/embedding"),
        *nested("embeddings.LayerNorm", "embed_norm", LAYER_NORM),
        *nested("encoder.layer.{i}", "block_{i}", _block(own)),
    ]


ENCODER = _bert("attention")
DECODER = [
    *(Rule(f"bert.{r.key}", r.path, r.change) for r in _bert("decoder_attention")),
    Rule("cls.predictions.bias", "readout/bias"),
    *nested("cls.predictions.transform.dense", "transform", LINEAR),
    *nested("cls.predictions.transform.LayerNorm", "transform_norm", LAYER_NORM),
    Rule("cls.predictions.decoder.weight", "embed/embedding"),
    Rule("cls.predictions.decoder.bias", "readout/bias"),
]
"""What encoder and decoder share has a name of each, of which a model's table takes one or both."""


def _counter(tensors: Tensors, key: str) -> np.ndarray:
    return np.arange(len(tensors[key.replace("word_embeddings", "position_embeddings")]))[None]


POSITION_IDS = Constant(r"(.*embeddings)\.word_embeddings\.weight", r"\1.position_ids", _counter)
"""The numbers of the positions, which the original keeps in its files."""
