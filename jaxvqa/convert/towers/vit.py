"""The keys of `timm`'s vision transformer, as BLIP and DeiT write them, and its positions on another grid.

docs/originals/blip.md, section 3.
"""

import numpy as np

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

CUBIC = -0.75
"""The constant of the cubic kernel that PyTorch resizes with."""


def resized_positions(position: np.ndarray, tokens: int) -> np.ndarray:
    """Position embeddings on another square grid: bicubic, without antialiasing, borders repeated; the class row is kept.

    Args:
      position: float[1, 1 + g², D].
      tokens: 1 + G², how many there are to be.
    """
    old, new = (round((count - 1) ** 0.5) for count in (position.shape[1], tokens))
    if old == new:
        return position
    grid = position[0, 1:].reshape(old, old, -1).astype(np.float64)
    weights = _cubic_weights(old, new)
    grid = np.einsum("ai,bj,ijd->abd", weights, weights, grid)
    rows = grid.reshape(new * new, -1).astype(position.dtype)
    return np.concatenate([position[:, :1], rows[None]], axis=1)


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """How much each of the old places counts at each new one: float64[G, g]."""
    where = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(where).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        t = np.abs(where - (first + tap))
        near = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
        far = ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC
        value = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), value)
    return weights
