"""Grad-CAM over what a text reads of an image: attention times its gradient (docs/originals/blip.md, section 16.5)."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.blip import Changes
from jaxvqa.types import Arrays, Collections

Forward = Callable[[Changes | None], tuple[Array, tuple[Any, Mapping[str, Array]]]]
"""From changes of the cross-attention's weights, by block, to a score, and (a result, the tower's intermediates)."""

OF_LOSS = "explain_loss"
"""The predict function whose gradients are those of the loss instead of the score's, as the original has it."""


def matching(
    model: Any,
    variables: Collections,
    image: Float[Array, "B H W C"],
    text: Int[Array, "B T"],
    text_mask: Bool[Array, "B T"],
) -> Forward:
    """What BLIP's matching head says of pairs: the score is the sum of log P(match), the result the logits float[B, 2].

    Args:
      model: a `jaxvqa.models.blip.BLIP` with a matching head.
      variables: its parameters and statistics.
      image: what it sees.
      text: token ids, whose first says how they are read.
      text_mask: which of them are there.
    """

    def forward(changes: Changes | None) -> tuple[Array, tuple[Any, Mapping[str, Array]]]:
        def matched(model: Any) -> Any:
            tokens, mask, _ = model.see(image)
            return model.match(text, text_mask, model.remember(tokens, mask), changes=changes)

        logits, out = model.apply(variables, method=matched)
        return jnp.sum(jax.nn.log_softmax(logits)[:, 1]), (logits, out)

    return forward


def read_at(depth: int) -> int:
    """The block whose cross-attention is shown, from 0: two thirds up, as the ninth of twelve.

    It is never the last of several, behind which a head that reads the first state alone leaves the other tokens no gradient.
    """
    return max(min(round(2 * depth / 3), depth - 2), 0)


def attention_and_gradient(
    forward: Forward, *, layer: int | None = None
) -> tuple[Any, Float[Array, "B K T N"], Float[Array, "B K T N"]]:
    """The result of a network, what a block of its text model read of the images, and the score's gradient with respect to it.

    Zeros are added to the weights of that block, and the gradient is theirs.

    Args:
      forward: the network.
      layer: the block, from 0; by default `read_at` of the depth.
    """
    _, (_, out) = jax.eval_shape(lambda: forward(None))
    if layer is None:
        layer = read_at(sum(re.fullmatch(r"cross_attention_\d+", name) is not None for name in out))
    name = f"cross_attention_{layer}"

    def changed(zeros: Array) -> tuple[Array, tuple[Any, Array]]:
        score, (result, inside) = forward({layer: lambda weights: weights + zeros})
        return score, (result, inside[name])

    gradient, (result, attention) = jax.grad(changed, has_aux=True)(jnp.zeros(out[name].shape, out[name].dtype))
    return result, attention, gradient


def token_maps(
    attention: Float[Array, "B K T N"], gradient: Float[Array, "B K T N"], text_mask: Bool[Array, "B T"]
) -> Float[Array, "B T M"]:
    """For each token the mean over the heads of attention · max(gradient, 0), zeros for padding.

    The first image token, which is of no patch or region, is left out: M = N - 1.
    """
    maps = jnp.mean(attention * jnp.maximum(gradient, 0), axis=1)[:, :, 1:]
    return jnp.where(text_mask[:, :, None], maps, 0)


def explained(maps: Float[Array, "B T M"]) -> Arrays:
    """Maps of words as `jaxvqa.tasks.Explains` wants them.

    Each map's weights add up to 1, or are all 0; a word's own weight is its map's share of the whole.
    """
    maps = maps.astype(jnp.float32)
    sums = jnp.sum(maps, axis=2)
    whole = jnp.sum(sums, axis=1, keepdims=True)
    return {
        "region_attention": maps / jnp.where(sums > 0, sums, 1)[:, :, None],
        "question_attention": sums / jnp.where(whole > 0, whole, 1),
    }
