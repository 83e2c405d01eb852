"""Attention with several heads: what is read, and its scale."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.models.layers.attention import MultiHeadAttention


def test_attention_reads_only_where_the_mask_allows_and_scales_by_the_size_of_a_key():
    layer = MultiHeadAttention(heads=2, head_width=3, features=8, value_width=4)
    key = jax.random.key(0)
    query, memory = jax.random.normal(key, (1, 2, 8)), jax.random.normal(key, (1, 4, 8))
    mask = jnp.asarray([[True, False, True, False]])[:, None, None]

    def read(layer, memory):
        return layer(query, layer.project(memory), mask, train=False)

    params = layer.init(key, memory, method=read)
    result, _ = layer.apply(params, memory, method=read)
    np.testing.assert_array_equal(layer.apply(params, memory.at[:, 1].set(100.0), method=read)[0], result)

    p = jax.tree.map(np.asarray, params["params"])
    q, k, v = (
        np.asarray(x[0]) @ p[name]["kernel"] + p[name]["bias"]
        for name, x in (("query", query), ("key", memory), ("value", memory))
    )
    heads = []
    for head in range(2):
        scores = q[:, 3 * head : 3 * head + 3] @ k[[0, 2], 3 * head : 3 * head + 3].T / np.sqrt(3)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ v[[0, 2], 4 * head : 4 * head + 4])
    expected = np.concatenate(heads, axis=-1) @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(result[0], expected, atol=1e-5)
