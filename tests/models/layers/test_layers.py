"""The layers alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.kernels import FEW_ROWS
from jaxvqa.models.layers.attention import MultiHeadAttention
from jaxvqa.models.layers.dropout import Dropout, keep_mask
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.lstm import LSTM
from jaxvqa.models.layers.norm import StdNorm
from tests.oracle import torch


def test_norm_divides_by_n_minus_1_and_adds_epsilon_to_the_deviation():
    x = np.array([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0], [1e-6, 0.0, -1e-6]], np.float32)
    params = {"scale": jnp.asarray([1.0, 2.0, 3.0]), "bias": jnp.asarray([0.5, 0.0, -1.0])}
    y = jax.jit(StdNorm().apply)({"params": params}, jnp.asarray(x))
    s = np.std(x.astype(np.float64), axis=-1, ddof=1, keepdims=True)
    expected = [1, 2, 3] * (x - x.mean(axis=-1, keepdims=True)) / (s + 1e-6) + [0.5, 0, -1]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_array_equal(y[1], params["bias"])


@pytest.mark.oracle
def test_norm_has_pytorchs_gradient_also_on_constant_rows():
    x = np.array([[1.0, 2.0, 6.0, 0.0], [4.0, 4.0, 4.0, 4.0]], np.float32)
    weights = np.arange(8, dtype=np.float32).reshape(2, 4)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    gradient = jax.grad(lambda x: jnp.sum(jnp.asarray(weights) * StdNorm().apply({"params": params}, x)))(
        jnp.asarray(x)
    )
    t = torch.tensor(x, requires_grad=True)
    y = (t - t.mean(-1, keepdim=True)) / (t.std(-1, keepdim=True) + 1e-6)
    (torch.tensor(weights) * y).sum().backward()
    np.testing.assert_allclose(gradient, t.grad, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, FEW_ROWS[-1]])
def test_a_map_is_the_same_by_its_transposed_kernel(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 1, 5))
    variables = Linear(7).init(jax.random.key(1), x)
    expected = Linear(7).apply(variables, x)
    kernel = variables["params"].pop("kernel")
    given = {"params": variables["params"] | {"kernel": 0 * kernel}, "transposed": {"kernel": kernel.T}}
    np.testing.assert_allclose(Linear(7).apply(given, x), expected, atol=1e-6)


@pytest.mark.oracle
def test_lstm_is_pytorchs():
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(5, 7, batch_first=True)
    x = torch.randn(3, 4, 5)
    expected, _ = theirs(x)
    params = {
        "input_kernel": theirs.weight_ih_l0.T,
        "hidden_kernel": theirs.weight_hh_l0.T,
        "input_bias": theirs.bias_ih_l0,
        "hidden_bias": theirs.bias_hh_l0,
    }
    params = jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), params)
    ours = jax.jit(LSTM(7).apply)({"params": params}, jnp.asarray(x.numpy()))
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-6)


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


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_given_share_and_keeps_the_mean(rate):
    x = jnp.ones((301, 1001))
    y = Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = float(jnp.mean(y != 0))
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept - (1 - rate)) < 4 * deviation
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_without_rate_or_training_is_the_identity():
    x = jnp.arange(6.0)
    assert Dropout(0.0).apply({}, x, train=True) is x
    assert Dropout(0.5).apply({}, x, train=False) is x


def test_masks_of_neighbours_and_of_other_keys_are_independent():
    shape, keep = (512, 512), 0.9
    mask = np.asarray(keep_mask(jax.random.key(0), keep, shape), np.float64) - keep
    other = np.asarray(keep_mask(jax.random.key(1), keep, shape), np.float64) - keep
    limit = 4 * keep * (1 - keep) / np.sqrt(mask.size)
    for shift in (1, 2, 3, 4, 7, 8, 16, 64, 128, 256):
        for axis in (0, 1):
            assert abs(np.mean(mask * np.roll(mask, shift, axis))) < limit, (shift, axis)
    assert abs(np.mean(mask * other)) < limit
    rows, columns = mask.mean(axis=1), mask.mean(axis=0)
    expected = np.sqrt(keep * (1 - keep) / 512)
    assert 0.85 < rows.std() / expected < 1.15
    assert 0.85 < columns.std() / expected < 1.15


def test_masks_are_a_function_of_key_and_position():
    key = jax.random.key(5)
    whole = keep_mask(key, 0.7, (6, 4, 8))
    np.testing.assert_array_equal(jax.jit(keep_mask, static_argnums=(1, 2))(key, 0.7, (6, 4, 8)), whole)
    np.testing.assert_array_equal(keep_mask(key, 0.7, (24, 8)).reshape(6, 4, 8), whole)
    assert keep_mask(key, 0.7, ()).shape == ()
