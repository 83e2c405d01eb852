"""CLIP's two towers: a vision transformer, and a transformer for captions.

A. Radford, J. W. Kim, C. Hallacy, A. Ramesh and others, "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021:

    image ── patches, a class token in front, + positions ── norm ── block_0 ── … ── norm of the class token ── projection
    text ── embed + positions ── block_0 ── … (causal) ── norm ── at the end token ── projection
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.attention import causal
from jaxvqa.models.layers.conv import Conv
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.transformer import INIT, Block, LayerNorm, apply_blocks, usual_block


def _blocks(tower: Any) -> list[Block]:
    """To be called where a tower makes its parts."""
    hidden = tower.hidden or 4 * tower.width
    options = {"norm_first": True, "epsilon": 1e-5, "dtype": tower.dtype}
    return [
        usual_block(tower.width, tower.heads, hidden, tower.activation, **options, name=f"block_{i}")
        for i in range(tower.depth)
    ]


def _project(x: Array, features: int, dtype: Any) -> Array:
    init = nn.initializers.normal(1 / math.sqrt(x.shape[-1]))
    return Linear(features, dtype, use_bias=False, kernel_init=init, name="projection")(x)


class VisionTransformer(nn.Module):
    """The tower for images; the defaults are those of ViT-B/32.

    Attributes:
      patch: height and width of a patch.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention; no shape of a checkpoint shows them. MLMI runs ViT-B/32 with 8 (Q3).
      hidden: width between the two linear layers of a block; four times the width without.
      features: size E of the projected vector; 0 for none.
      activation: a name of `feed_forward.ACTIVATIONS`: "quick_gelu", OpenAI's, or "gelu", that of most of OpenCLIP's networks.
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
          [B, E] projected class token, and the named intermediates: those of `apply_blocks`, of which the last states are
          `tokens` [B, 1 + N, D], with N patches; and `pooled` [B, D], the normalised class token.
        """
        patches = Conv(self.width, self.patch, self.patch, use_bias=False, dtype=self.dtype, name="patches")(image)
        patches = patches.reshape(len(image), -1, self.width)
        normal = nn.initializers.normal(1 / math.sqrt(self.width))
        token = self.param("class_token", normal, (self.width,)).astype(self.dtype)
        position = self.param("position", normal, (patches.shape[1] + 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token[None, None], (len(image), 1, self.width)), patches], axis=1)
        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="embed_norm")(x + position[None])
        x, out = apply_blocks(_blocks(self), x, None, train=train)
        out["tokens"] = x
        out["pooled"] = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x[:, 0])
        return _project(out["pooled"], self.features, self.dtype) if self.features else out["pooled"], out


class TextTransformer(nn.Module):
    """The tower for captions; the defaults are those beside ViT-B/32.

    Attributes:
      vocab_size: number of tokens V.
      width: size D of a state.
      depth: number of blocks.
      heads: heads of each block's attention.
      hidden: width between the two linear layers of a block; four times the width without.
      positions: the longest text that it takes.
      features: size E of the projected vector; 0 for none.
      activation: a name of `feed_forward.ACTIVATIONS`: "quick_gelu", OpenAI's, or "gelu", that of most of OpenCLIP's networks.
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
          text: int[B, T], token ids.
          end: int[B], place of the end token; by default that of the largest number, which it is in CLIP's vocabulary.
          text_mask: bool[B, T], False for padding, which nothing reads. What stands behind the end changes nothing anyway.
          train: changes nothing; there is no dropout.

        Returns:
          [B, E] projected state of the end token, and the named intermediates: those of `apply_blocks`; `normed` [B, T, D];
          and `pooled` [B, D], that of the end token.
        """
        tokens = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=INIT, name="embed")(text)
        position = self.param("position", nn.initializers.normal(0.01), (self.positions, self.width)).astype(self.dtype)
        x = tokens + position[None, : text.shape[1]]
        mask = causal(text.shape[1])
        if text_mask is not None:
            mask = mask & text_mask[:, None, None]
        x, out = apply_blocks(_blocks(self), x, mask, train=train)
        out["normed"] = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        end = jnp.argmax(text, axis=-1) if end is None else end
        out["pooled"] = jnp.take_along_axis(out["normed"], end[:, None, None], axis=1)[:, 0]
        return _project(out["pooled"], self.features, self.dtype) if self.features else out["pooled"], out
