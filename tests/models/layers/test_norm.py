"""The norm that divides by n - 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
