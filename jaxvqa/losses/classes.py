"""Losses of classes: label smoothing, SuperLoss, mixup (docs/originals/sysu_hcp.md, section 9).

Every loss is one number an example, so that a task sums those of real examples; a whole batch's loss is their mean.
C is the number of classes, z the logits, p = softmax(z), nll = -log p of the right class.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxvqa.errors import ConfigError, choose
from jaxvqa.logs import log
from jaxvqa.precision import wide, widened

SMOOTHING = 0.1
"""The share of the target that is spread over all classes, the right one among them."""

SUPERLOSS_LAMBDA = 0.25
"""The weight of SuperLoss's regularisation."""

MIXUP_ALPHA = 0.2

ExampleLoss = Callable[[Float[Array, "B C"], Int[Array, " B"]], Float[Array, " B"]]


# --- losses of one example -----------------------------------------------------------------------------------------------


def cross_entropy(logits: Float[Array, "B C"], targets: Int[Array, " B"]) -> Float[Array, " B"]:
    """nll, float32."""
    return -jnp.take_along_axis(_log_softmax(logits), targets[:, None], axis=-1)[:, 0]


def label_smoothing(
    logits: Float[Array, "B C"], targets: Int[Array, " B"], amount: float = SMOOTHING
) -> Float[Array, " B"]:
    """amount / C · sum over the classes of -log p + (1 - amount) · nll, float32.

    The right class keeps 1 - amount + amount / C of the target.
    """
    return amount * _uniform(logits) + (1 - amount) * cross_entropy(logits, targets)


def superloss(losses: Float[Array, " B"], classes: int, strength: float = SUPERLOSS_LAMBDA) -> Float[Array, " B"]:
    """SuperLoss (Castells et al., NeurIPS 2020) of losses that each example has already: easy examples weigh more.

    (l - tau) · sigma + lambda · (log sigma)^2 with tau = log C and lambda = `strength`. Unlike in the paper, tau does not
    follow the mean of the losses, as the original's code does not: calls do not influence one another. sigma carries no
    gradient: that with respect to l is sigma itself. Mostly negative: confident examples give e · (l - tau) + lambda.

    Args:
      losses: l, such as nll.
      classes: C.
      strength: lambda.
    """
    tau = _tau(losses, classes)
    # Stopped before sigma, not behind it: W's derivative is infinite where sigma stops growing, and never asked for.
    exponent = lambert_w(_sigma_argument(jax.lax.stop_gradient(losses), tau, strength))
    return (losses - tau) * jnp.exp(-exponent) + strength * jnp.square(exponent)


def label_smoothing_superloss(
    logits: Float[Array, "B C"], targets: Int[Array, " B"], amount: float = SMOOTHING
) -> Float[Array, " B"]:
    """Label smoothing whose nll part alone goes through SuperLoss."""
    confident = superloss(cross_entropy(logits, targets), logits.shape[-1])
    return amount * _uniform(logits) + (1 - amount) * confident


def superloss_of_nll(logits: Float[Array, "B C"], targets: Int[Array, " B"]) -> Float[Array, " B"]:
    """SuperLoss of nll; the original has no way to train with it."""
    return superloss(cross_entropy(logits, targets), logits.shape[-1])


def _log_softmax(logits: Float[Array, "B C"]) -> Float[Array, "B C"]:
    return jax.nn.log_softmax(widened(logits), axis=-1)


def _uniform(logits: Float[Array, "B C"]) -> Float[Array, " B"]:
    return -jnp.mean(_log_softmax(logits), axis=-1)


def _tau(losses: Float[Array, " B"], classes: int) -> Float[Array, ""]:
    return jnp.asarray(math.log(classes), wide(losses.dtype))


def _sigma_argument(losses: Float[Array, " B"], tau: Float[Array, ""], strength: float) -> Float[Array, " B"]:
    return 0.5 * jnp.maximum(jnp.asarray(-2 / math.e, tau.dtype), (widened(losses) - tau) / strength)


# --- Lambert's W -----------------------------------------------------------------------------------------------------------

_INVERSE_E = float(np.float32(1 / math.e)), 1 / math.e - float(np.float32(1 / math.e))
_SERIES = (-1.0, 1.0, -1 / 3, 11 / 72, -43 / 540, 769 / 17280, -221 / 8505, 680863 / 43545600)
_NEAR_BRANCH = 0.2
_HALLEY_STEPS = 3


def lambert_w(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The principal branch of Lambert's function, W · exp(W) = y, in float32; -1 below the branch point -1/e.

    Near the branch point W is its series in sqrt(2 (e y + 1)) (Corless et al. 1996, section 4), elsewhere three of Halley's
    steps from a rough start; right to 3e-7 of max(1, |W|). Not to be differentiated: at the branch point its slope is infinite.
    """
    # With 1/e as a sum of two numbers the difference is exact where it is small; y's own rounding is all that is left. Written
    # so that no compiler adds up the two numbers first.
    high, low = _INVERSE_E
    p = jnp.sqrt(jnp.maximum(2 * math.e * (y + high) + 2 * math.e * low, 0.0))
    series = jnp.polyval(jnp.asarray(_SERIES[::-1], y.dtype), jnp.minimum(p, 1.0))
    near = p < _NEAR_BRANCH
    safe = jnp.where(near, 1.0, y)
    start = jnp.log1p(jnp.maximum(safe, 0.0))
    w = jnp.where(safe < 0.5, jnp.where(near, 0.5, series), start * (1 - jnp.log1p(start) / (2 + start)))
    for _ in range(_HALLEY_STEPS):
        # exp(-w) instead of exp(w): nothing overflows, however large y is.
        error = w - safe * jnp.exp(-w)
        w = w - error / (w + 1 - (w + 2) * error / (2 * w + 2))
    return jnp.where(near, series, w)


# --- mixup -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixup:
    """One batch's draw: each image is mixed with another one of the batch, all in the same proportion (Zhang et al. 2018).

    Attributes:
      share: lambda in [0, 1], float32 scalar: what is left of the image itself.
      partner: int32[B], a permutation: the index of the image that it is mixed with.
    """

    share: Float[Array, ""]
    partner: Int[Array, " B"]

    @classmethod
    def draw(cls, key: Key[Array, ""], batch_size: int, alpha: float = MIXUP_ALPHA) -> "Mixup":
        """Draws lambda from Beta(alpha, alpha) and a permutation, both from the step's key "mixup".

        The original draws lambda from a generator without a seed, so that no run of it can be repeated.
        """
        for_share, for_partner = jax.random.split(key)
        share = jax.random.beta(for_share, alpha, alpha, dtype=jnp.float32)
        return cls(share, jax.random.permutation(for_partner, batch_size))

    def only_if(self, condition: Bool[ArrayLike, ""]) -> "Mixup":
        """This draw where the condition holds, else one that leaves every image as it is."""
        return Mixup(jnp.where(condition, self.share, 1.0), self.partner)

    def images(self, images: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """lambda x + (1 - lambda) x[partner] of prepared images."""
        return self.share * images + (1 - self.share) * images[self.partner]

    def loss(self, each: ExampleLoss, logits: Float[Array, "B C"], targets: Int[Array, " B"]) -> Float[Array, " B"]:
        """lambda L(z, y) + (1 - lambda) L(z, y[partner]) of the logits of mixed images."""
        return self.share * each(logits, targets) + (1 - self.share) * each(logits, targets[self.partner])


# --- which loss ------------------------------------------------------------------------------------------------------------

LOSSES: dict[tuple[bool, bool], ExampleLoss] = {
    (False, False): cross_entropy,
    (True, False): label_smoothing,
    (False, True): superloss_of_nll,
    (True, True): label_smoothing_superloss,
}
"""(label_smooth, superloss) -> the loss."""


def choose_loss(
    *, mixup: bool, label_smooth: bool, superloss: bool, flags: str, smoothing: float = SMOOTHING
) -> ExampleLoss:
    """Returns the loss of a combination of flags, and warns of flags that have no effect.

    Args:
      mixup: whether images are mixed.
      label_smooth: the flag.
      superloss: the flag.
      flags: `original`: as the original's script, where label_smooth needs mixup and superloss needs both, and what lacks
        them is passed over in silence. `each`: every flag does what it says.
      smoothing: the share of the target that label smoothing spreads.

    Raises:
      ConfigError: `flags` is neither.
    """
    if flags not in ("original", "each"):
        raise ConfigError(f"The reading of the loss flags is {flags!r}{choose(flags, ('original', 'each'))}")
    given = {"label_smooth": label_smooth, "superloss": superloss}
    if flags == "original":
        label_smooth = label_smooth and mixup
        superloss = superloss and label_smooth
    used = {"label_smooth": label_smooth, "superloss": superloss}
    ignored = [name for name in given if given[name] and not used[name]]
    if ignored:
        log.warning(
            "%s: IGNORED, as in the original, where label_smooth needs mixup and superloss needs mixup and label_smooth. The "
            "flags read as `each` take them at their word.",
            " and ".join(ignored),
        )
    loss: Callable[..., Any] = LOSSES[label_smooth, superloss]
    return functools.partial(loss, amount=smoothing) if label_smooth else loss
