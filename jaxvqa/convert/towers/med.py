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


_CROSS = _attention("crossattention", "cross_attention")


def _block(own: str, cross: list[Rule] = _CROSS) -> list[Rule]:
    return [
        *_attention("attention", own),
        *cross,
        *nested("intermediate.dense", "feed_forward/up", LINEAR),
        *nested("output.dense", "feed_forward/down", LINEAR),
        *nested("output.LayerNorm", "feed_forward_norm", LAYER_NORM),
    ]


def _bert(block: list[Rule]) -> list[Rule]:
    return [
        Rule("embeddings.word_embeddings.weight", "embed/embedding"),
        Rule("embeddings.position_embeddings.weight", "position/embedding"),
        *nested("embeddings.LayerNorm", "embed_norm", LAYER_NORM),
        *nested("encoder.layer.{i}", "block_{i}", block),
    ]


ENCODER = _bert(_block("attention"))
DECODER = [
    *(Rule(f"bert.{r.key}", r.path, r.change) for r in _bert(_block("decoder_attention"))),
    Rule("cls.predictions.bias", "readout/bias"),
    *nested("cls.predictions.transform.dense", "transform", LINEAR),
    *nested("cls.predictions.transform.LayerNorm", "transform_norm", LAYER_NORM),
    Rule("cls.predictions.decoder.weight", "embed/embedding"),
    Rule("cls.predictions.decoder.bias", "readout/bias"),
]
"""What encoder and decoder share has a name of each, of which a model's table takes one or both."""


_OF_IMAGE = ("cross_attention", "second_cross_attention")
_TWIN_CROSS = [
    *(
        rule
        for i, path in enumerate(_OF_IMAGE)
        for part in ("query", "key", "value")
        for rule in nested(f"crossattention.self{i}.{part}", f"{path}/{part}", LINEAR)
    ),
    *nested("crossattention.output.LayerNorm", "cross_attention_norm", LAYER_NORM),
    *(
        rule
        for i, path in enumerate(_OF_IMAGE)
        for rule in nested(f"crossattention.output.dense{i}", f"{path}/output", LINEAR)
    ),
    *nested("crossattention.output.merge_layer", "merge", LINEAR),
]


def _norm_first(rules: list[Rule]) -> list[Rule]:
    """The order of the original's file for two images: an output's normalisation before its linear layer."""
    norms = [rule for rule in rules if ".output.LayerNorm." in rule.key]
    rest = [rule for rule in rules if rule not in norms]
    place = next(i for i, rule in enumerate(rest) if ".output.dense." in rule.key)
    return [*rest[:place], *norms, *rest[place:]]


TWIN_ENCODER = _bert(
    [
        *_norm_first(_attention("attention", "attention")),
        *_TWIN_CROSS,
        *nested("intermediate.dense", "feed_forward/up", LINEAR),
        *nested("output.dense", "feed_forward/down", LINEAR),
        *nested("output.LayerNorm", "feed_forward_norm", LAYER_NORM),
    ]
)
"""The encoder about two images (docs/originals/blip.md, section 10)."""


def _counter(tensors: Tensors, key: str) -> np.ndarray:
    return np.arange(len(tensors[key.replace("word_embeddings", "position_embeddings")]))[None]


POSITION_IDS = Constant(r"(.*embeddings)\.word_embeddings\.weight", r"\1.position_ids", _counter)
"""The numbers of the positions, which the original keeps in its files."""
