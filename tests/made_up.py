"""Values for a model's variables: compiling the real initialisers takes longer than most tests of what comes after."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def made_up(shapes: Any) -> Any:
    """Fills a tree of shapes: gains and variances in [0.5, 1.5), else normal of variance 1 / fan-in; integers are 0."""
    rng = np.random.default_rng(1)

    def value(path: Any, leaf: Any) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        if jax.tree_util.keystr(path[-1:], simple=True) in ("var", "scale", "g"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.standard_normal(leaf.shape) / max(np.prod(leaf.shape[:-1]), 4) ** 0.5, leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, shapes)


def variables_of(task: Any) -> tuple[Any, Any]:
    """Made-up parameters and other collections of a task."""
    variables = dict(made_up(jax.eval_shape(task.init, jax.random.key(0))))
    return variables.pop("params"), variables
