"""Weight-normalised maps against PyTorch's, and the accuracy of the norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.models.layers.weight_norm import Classifier, WeightNormLinear, normalised, whole_norm
from tests.oracle import torch


@pytest.mark.oracle
def test_linear_and_its_gradients_are_pytorchs():
    torch.manual_seed(0)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 7), dim=None)
    with torch.no_grad():
        theirs.parametrizations.weight.original0 *= 1.5  # as after training: no longer ‖v‖
    x = torch.randn(3, 4, 5)
    expected = theirs(x)
    (expected**2).sum().backward()
    g, v = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    assert g.shape == ()
    params = {"v": v.detach().numpy().T, "g": g.detach().numpy(), "bias": theirs.bias.detach().numpy()}
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def run(params):
        y = WeightNormLinear(7).apply({"params": params}, jnp.asarray(x.numpy()))
        return jnp.sum(y**2), y

    (_, ours), gradient = jax.value_and_grad(run, has_aux=True)(params)
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(gradient["v"], v.grad.numpy().T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient["g"], g.grad.numpy(), rtol=1e-5)
    np.testing.assert_allclose(gradient["bias"], theirs.bias.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_begins_as_a_plain_linear_map():
    x = jnp.ones((2, 16))
    params = WeightNormLinear(8).init(jax.random.key(0), x)["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {"v": (16, 8), "g": (), "bias": (8,)}
    np.testing.assert_allclose(params["g"], np.linalg.norm(params["v"]), rtol=1e-6)
    np.testing.assert_allclose(normalised(params["v"], params["g"]), params["v"], rtol=1e-6)
    for leaf in (params["v"], params["bias"]):
        assert 0.8 / 4 < jnp.abs(leaf).max() <= 1 / 4


def test_norm_of_millions_of_values_is_exact_to_rounding():
    # The largest matrix of the published models; one sum after the other in float32 would be off by 1e-5 and more.
    v = np.random.default_rng(0).standard_normal((1024, 2048)).astype(np.float32) / 32
    exact = np.linalg.norm(v.astype(np.float64))
    np.testing.assert_allclose(whole_norm(jnp.asarray(v)), exact, rtol=2e-7)
    np.testing.assert_allclose(jax.jit(whole_norm)(jnp.asarray(v)), exact, rtol=2e-7)


def test_bfloat16_keeps_the_norm_in_float32():
    x = jax.random.normal(jax.random.key(1), (3, 64))
    layer = WeightNormLinear(32, jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = layer.apply({"params": params}, x)
    assert y.dtype == jnp.bfloat16
    expected = WeightNormLinear(32).apply({"params": params}, x)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02)
    many = jnp.full((300, 300), 0.125, jnp.bfloat16)
    np.testing.assert_allclose(whole_norm(many), 300 * 0.125, rtol=1e-6)


def test_classifier_drops_in_training_only():
    x = jax.random.normal(jax.random.key(1), (4, 6))
    layer = Classifier(hidden=20, num_answers=3)
    params = layer.init(jax.random.key(0), x, train=False)
    logits = layer.apply(params, x, train=False)
    assert (logits.shape, logits.dtype) == ((4, 3), jnp.float32)
    p = jax.tree.map(np.asarray, params["params"])
    hidden = np.maximum(np.asarray(x) @ p["up"]["v"] + p["up"]["bias"], 0)
    np.testing.assert_allclose(logits, hidden @ p["down"]["v"] + p["down"]["bias"], atol=1e-5)
    one, two = (layer.apply(params, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert (one != two).any()
    bfloat16 = Classifier(20, 3, dtype=jnp.bfloat16).apply(params, x, train=False)
    assert bfloat16.dtype == jnp.float32
