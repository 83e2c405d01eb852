"""The loss of texts that are written token by token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.precision import widened


def text_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    smoothing: float = 0.0,
    shared_mask: bool = False,
) -> Float[Array, " B"]:
    """The sum over each text's tokens of nll with label smoothing, float32; divided by the tokens of a batch it is the mean.

    Args:
      logits: float[B, T, V].
      targets: int[B, T], the tokens that come next.
      mask: bool[B, T], which positions count.
      smoothing: the share of the target that is spread over all tokens.
      shared_mask: count a position of every sample as often as the batch has samples with a token there, divided by the
        samples: MLMI's masks and losses broadcast against each other (docs/originals/flamingo.md, section 10, Q7).
    """
    # (1 - s)·nll + s·mean(-log p), written with the logarithm of the sum of exp z, so that no second array of the logits' size
    # is kept for the gradient. A comparison picks the right token: the gradient of an index would scatter.
    rows = widened(logits.reshape(-1, logits.shape[-1]))
    right = jax.lax.broadcasted_iota(targets.dtype, rows.shape, 1) == targets.reshape(-1, 1)
    log_sum = jax.nn.logsumexp(rows, axis=-1)
    losses = (
        log_sum - (1 - smoothing) * jnp.sum(jnp.where(right, rows, 0), axis=-1) - smoothing * jnp.mean(rows, axis=-1)
    )
    losses = losses.reshape(targets.shape)
    weight = mask.astype(rows.dtype)
    if shared_mask:
        weight = jnp.broadcast_to(jnp.mean(weight, axis=0)[None], weight.shape)
    return jnp.sum(losses * weight, axis=-1)
