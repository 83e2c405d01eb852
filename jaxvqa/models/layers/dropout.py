"""Dropout whose masks cost little next to the multiplications around it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from jaxvqa.precision import widened


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Scrambles each 32-bit word; a bijection in which every input bit moves every output bit about half the time."""
    # Two rounds of xor-shift and multiply with constants found by search for the least bias ("lowbias32" of
    # C. Wellons' hash prospector).
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def keep_mask(key: Array, keep: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Draws a mask that is True with probability `keep`, rounded to a multiple of 2^-32.

    Entry number n (row-major) is decided by a hash of n and of two random words drawn from `key`. On CPU,
    `jax.random.bernoulli` takes several times as long as this, which shows in a training step; and unlike it, this
    fuses into its neighbours. A hash is good enough for dropout, and for nothing else. Being a function of the position
    alone, it gives the same mask on every mesh of devices.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    threshold = jnp.uint32(min(round(keep * 2**32), 2**32 - 1))
    return _mix(_mix(position + words[0]) + words[1]) < threshold


def drop(x: Float[Array, "..."], key: Array, rate: float, *, whole_examples: bool = False) -> Float[Array, "..."]:
    """Sets entries, or all of an example, to 0 with probability `rate` and divides the others by 1 − rate."""
    keep = keep_mask(key, 1 - rate, (len(x), *(1,) * (x.ndim - 1)) if whole_examples else x.shape)
    # In float32, since bfloat16 would round 1 / (1 − rate) and so shift the expectation.
    return jnp.where(keep, widened(x) / (1 - rate), 0).astype(x.dtype)


class Dropout(nn.Module):
    """Sets entries to 0 with probability `rate` and divides the others by 1 − rate; the identity unless `train`.

    Draws a fresh mask on every call, from the random stream "dropout".

    Attributes:
      rate: share of entries dropped, in [0, 1).
      whole_examples: an example is dropped as a whole or not at all: "stochastic depth", or "drop path".
    """

    rate: float
    whole_examples: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool) -> Float[Array, "..."]:
        """Drops entries of x when `train` is set."""
        if not train or self.rate == 0:
            return x
        return drop(x, self.make_rng("dropout"), self.rate, whole_examples=self.whole_examples)
