"""CLIP's two towers: a vision transformer, and a transformer for captions.

A. Radford, J. W. Kim, C. Hallacy, A. Ramesh and others, "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021:

    image ── patches, a class token in front, + positions ── norm ── block_0 ── … ── norm of the class token ── projection
    text ── embed + positions ── block_0 ── … (causal) ── norm ── at the end token ── projection
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.conv import Conv
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.multi_head import LayerNorm, PreNormBlock, causal

SIZES: Mapping[str, Mapping[str, int]] = {
    "ViT-B/32": {"patch": 32, "width": 768, "depth": 12, "heads": 12, "features": 512},
    "ViT-B/16": {"patch": 16, "width": 768, "depth": 12, "heads": 12, "features": 512},
    "ViT-L/14": {"patch": 14, "width": 1024, "depth": 24, "heads": 16, "features": 768},
}
"""Published name -> fields of `VisionTransformer`."""

TEXT_SIZES: Mapping[str, Mapping[str, int]] = {
    "ViT-B/32": {"width": 512, "depth": 12, "heads": 8, "features": 512},
    "ViT-B/16": {"width": 512, "depth": 12, "heads": 8, "features": 512},
    "ViT-L/14": {"width": 768, "depth": 12, "heads": 12, "features": 768},
}
"""Name of the vision tower -> fields of the `TextTransformer` beside it."""


def _project(x: Array, features: int, dtype: Any) -> Array:
    init = nn.initializers.normal(1 / math.sqrt(x.shape[-1]))
    return Linear(features, dtype, use_bias=False, kernel_init=init, name="projection")(x)


class VisionTransformer(nn.Module):
    """The tower for images; the defaults are those of ViT-B/32.

    Attributes:
      patch: height and width of a patch.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention; no shape of a checkpoint tells them. MLMI runs ViT-B/32 with 8 (Q3).
      hidden: width between the two maps of a block; four times the width without.
      features: size E of the projected vector; 0 for none.
      activation: a name of `multi_head.ACTIVATIONS`: "quick_gelu", OpenAI's, or "gelu", that of most of OpenCLIP's networks.
      dtype: type of the multiplications and of the states; parameters, statistics and softmaxes are float32.
    """

    patch: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None
    features: int = 512
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"], *, train: bool = False
    ) -> tuple[Float[Array, "B E"], dict[str, Array]]:
        """Encodes images.

        Args:
          image: float[B, H, W, 3], normalised; only images of the size that it began with fit its positions.
          train: changes nothing; there is no dropout.

        Returns:
          [B, E] projected class token, and the named intermediates, with N patches: `embedded` and `block_0`, … [B, 1 + N, D],
          the states before the first block and after each, of which the last is `tokens`; `pooled` [B, D], the normalised class
          token; `attention_0`, … float32[B, K, 1 + N, 1 + N].
        """
        patches = Conv(self.width, self.patch, self.patch, use_bias=False, dtype=self.dtype, name="patches")(image)
        patches = patches.reshape(len(image), -1, self.width)
        normal = nn.initializers.normal(1 / math.sqrt(self.width))
        token = self.param("class_token", normal, (self.width,)).astype(self.dtype)
        position = self.param("position", normal, (patches.shape[1] + 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token[None, None], (len(image), 1, self.width)), patches], axis=1)
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="embed_norm")(x + position[None])
        out = {"embedded": x}
        for i in range(self.depth):
            block = PreNormBlock(
                self.heads, self.hidden or 4 * self.width, self.activation, dtype=self.dtype, name=f"block_{i}"
            )
            x, out[f"attention_{i}"], _ = block(x, None, train=train)
            out[f"block_{i}"] = x
        out["tokens"] = x
        out["pooled"] = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x[:, 0])
        return _project(out["pooled"], self.features, self.dtype) if self.features else out["pooled"], out


class TextTransformer(nn.Module):
    """The tower for captions; the defaults are those beside ViT-B/32.

    Attributes:
      vocab_size: number of words V.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      hidden: width between the two maps of a block; four times the width without.
      positions: the longest text that it takes.
      features: size E of the projected vector; 0 for none.
      activation: a name of `multi_head.ACTIVATIONS`: "quick_gelu", OpenAI's, or "gelu", that of most of OpenCLIP's networks.
      dtype: type of the multiplications and of the states; parameters, statistics and softmaxes are float32.
    """

    vocab_size: int = 49408
    width: int = 512
    depth: int = 12
    heads: int = 8
    hidden: int | None = None
    positions: int = 77
    features: int = 512
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: Int[Array, "B T"],
        end: Int[Array, " B"] | None = None,
        text_mask: Bool[Array, "B T"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "B E"], dict[str, Array]]:
        """Encodes captions.

        Args:
          text: int[B, T], numbers of the words.
          end: int[B], place of the end token; by default that of the largest number, which it is in CLIP's vocabulary.
          text_mask: bool[B, T], False for padding, which nothing reads. What stands behind the end changes nothing anyway.
          train: changes nothing; there is no dropout.

        Returns:
          [B, E] projected state of the end token, and the named intermediates: `embedded` and `block_0`, … [B, T, D]; `normed`
          [B, T, D]; `pooled` [B, D], that of the end token; `attention_0`, … float32[B, K, T, T].
        """
        normal = nn.initializers.normal
        words = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=normal(0.02), name="embed")(text)
        position = self.param("position", normal(0.01), (self.positions, self.width)).astype(self.dtype)
        x = words + position[None, : text.shape[1]]
        mask = causal(text.shape[1])
        if text_mask is not None:
            mask = mask & text_mask[:, None, None]
        out = {"embedded": x}
        for i in range(self.depth):
            block = PreNormBlock(
                self.heads, self.hidden or 4 * self.width, self.activation, dtype=self.dtype, name=f"block_{i}"
            )
            x, out[f"attention_{i}"], _ = block(x, mask, train=train)
            out[f"block_{i}"] = x
        out["normed"] = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        end = jnp.argmax(text, axis=-1) if end is None else end
        out["pooled"] = jnp.take_along_axis(out["normed"], end[:, None, None], axis=1)[:, 0]
        return _project(out["pooled"], self.features, self.dtype) if self.features else out["pooled"], out
