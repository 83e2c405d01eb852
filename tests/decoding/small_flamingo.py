"""A small network that writes, for the tests of reading, writing and ranking."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models, paths
from tests.made_up import made_up

IMAGE, PADDING = 10, 0
SMALL = {
    "name": "flamingo",
    "vocab_size": 12,
    "image_token": IMAGE,
    "every": 2,
    "latents": 3,
    "resampler_depth": 1,
    "cross_heads": 2,
    "cross_head_width": 4,
}
LANGUAGES = {
    "gpt2": {"width": 16, "depth": 3, "heads": 2, "positions": 24},
    "palm": {"width": 16, "depth": 3, "heads": 2, "head_width": 8},
}


def media(texts: int) -> jax.Array:
    """Two encoded images for each text."""
    return jnp.asarray(np.random.default_rng(0).standard_normal((texts, 2, 4, 16), dtype=np.float32))


@functools.cache
def small_flamingo(language: str) -> tuple[nn.Module, Any]:
    """The model with one of `LANGUAGES`, and made-up variables with open gates."""
    model = models.build(SMALL | {"language": language, "language_sizes": LANGUAGES[language]})
    start = {"text": jnp.zeros((1, 2), jnp.int32), "media": media(1)}
    flat = paths.flatten(made_up(jax.eval_shape(lambda key: model.init(key, **start), jax.random.key(0))))
    return model, paths.nest({p: jnp.full_like(x, 0.7) if p.endswith("_gate") else x for p, x in flat.items()})
