"""Convolutions, batch normalisation, pooling and the GRU: PyTorch's numbers and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import kernels
from jaxvqa.errors import ConfigError
from jaxvqa.kernels import convolve, multiply
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, ConvTranspose, kaiming_fan_out
from jaxvqa.models.layers.gru import GRU
from jaxvqa.models.layers.pooling import adaptive_average_pool, average_pool, max_pool, window_average
from tests.oracle import torch


def to_ours(image):
    return jnp.asarray(np.moveaxis(image.detach().numpy(), 1, -1))


def same(ours, theirs, atol=2e-5):
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 1), theirs.detach().numpy(), atol=atol)


def image(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(1, 1, 0), (1, 2, 0), (1, 1, 1), (3, 2, 1), (7, 2, 3), (2, 1, 0), ((2, 4), 2, (0, 1)), (4, 3, 1)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_and_its_gradients_are_pytorchs(kernel, stride, padding, bias):
    theirs = torch.nn.Conv2d(5, 6, kernel, stride, padding, bias=bias)
    x = image(2, 5, 9, 8).requires_grad_()
    expected = theirs(x)
    expected.sin().sum().backward()
    params = {"kernel": jnp.asarray(theirs.weight.detach().permute(2, 3, 1, 0).numpy())}
    params |= {"bias": jnp.asarray(theirs.bias.detach().numpy())} if bias else {}
    layer = Conv(6, kernel, stride, padding, use_bias=bias)

    def run(params, x):
        y = layer.apply({"params": params}, x)
        return jnp.sum(jnp.sin(y)), y

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    (_, y), (gradient, of_x) = both(params, to_ours(x))
    same(y, expected)
    same(of_x, x.grad)
    np.testing.assert_allclose(gradient["kernel"], theirs.weight.grad.permute(2, 3, 1, 0), rtol=1e-5, atol=1e-4)
    if bias:
        np.testing.assert_allclose(gradient["bias"], theirs.bias.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "more"), [(3, 2, 1, 1), (4, 2, 1, 0), (2, 2, 0, 0), (5, 3, 0, 2), (3, 1, 1, 0)]
)
def test_transposed_convolution_is_pytorchs(kernel, stride, padding, more):
    theirs = torch.nn.ConvTranspose2d(5, 6, kernel, stride, padding, more)
    x = image(2, 5, 4, 3)
    params = {"kernel": theirs.weight.permute(2, 3, 0, 1), "bias": theirs.bias}
    params = {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}
    ours = jax.jit(ConvTranspose(6, kernel, stride, padding, more).apply)({"params": params}, to_ours(x))
    same(ours, theirs(x))


def test_initial_values_have_pytorchs_bounds():
    key, x = jax.random.key(0), jnp.zeros((1, 8, 8, 4))
    for layer, bound in ((Conv(64, 3), 1 / 6), (ConvTranspose(64, 2), 1 / 16)):
        for value in layer.init(key, x)["params"].values():
            assert 0.9 * bound < jnp.abs(value).max() <= bound
    kernel = Conv(64, 3, kernel_init=kaiming_fan_out(3, 64)).init(key, x)["params"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.05)


@pytest.mark.oracle
def test_batch_norm_is_pytorchs_in_training_and_evaluation():
    theirs = torch.nn.BatchNorm2d(5, momentum=0.05)
    with torch.no_grad():
        theirs.weight.copy_(torch.arange(1.0, 6.0))
        theirs.bias.copy_(torch.arange(5.0))
    layer = BatchNorm(momentum=0.05)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, 5)), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)  # untouched by `init`
    params = {"scale": jnp.arange(1.0, 6.0), "bias": jnp.arange(5.0)}
    stats = variables["batch_stats"]

    def run(params, x, stats):
        y, changed = layer.apply({"params": params, "batch_stats": stats}, x, train=True, mutable="batch_stats")
        return jnp.sum(jnp.sin(y)), (y, changed["batch_stats"])

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    for seed in range(3):
        x = (3 * image(2, 5, 3, 2, seed=seed) + 1).requires_grad_()
        expected = theirs(x)
        theirs.zero_grad()
        expected.sin().sum().backward()

        (_, (y, stats)), (gradient, of_x) = both(params, to_ours(x), stats)
        same(y, expected)
        same(of_x, x.grad)
        np.testing.assert_allclose(gradient["scale"], theirs.weight.grad, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(gradient["bias"], theirs.bias.grad, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(stats["var"], theirs.running_var, rtol=1e-5)  # unbiased
    theirs.eval()
    x = image(4, 5, 2, 2, seed=9)
    same(layer.apply({"params": params, "batch_stats": stats}, to_ours(x), train=False), theirs(x))


@pytest.mark.oracle
def test_batch_norm_takes_its_statistics_of_something_else():
    x, other = jnp.asarray(image(4, 5).numpy()), jnp.asarray(image(3, 7, 5, seed=1).numpy())
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    y, changed = layer.apply(variables, x, train=True, of=other, mutable="batch_stats")
    rows = np.asarray(other).reshape(-1, 5)
    np.testing.assert_allclose(y, (x - rows.mean(0)[None]) / np.sqrt(rows.var(0)[None] + 1e-5), atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


@pytest.mark.oracle
def test_batch_norm_keeps_its_statistics_in_float32():
    x = (1000 + jnp.asarray(image(64, 5).numpy())).astype(jnp.bfloat16)
    layer = BatchNorm(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, changed = layer.apply(variables, x, train=True, mutable="batch_stats")
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_pooling_and_its_gradient_are_pytorchs(size, stride, padding):
    x = (image(2, 5, 9, 12) - 5).requires_grad_()  # all negative: a padding of zeros would win
    expected = torch.nn.functional.max_pool2d(x, size, stride, padding)
    expected.sin().sum().backward()

    def run(x):
        return max_pool(x, size, stride, padding)

    same(jax.jit(run)(to_ours(x)), expected)
    same(jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(x)))))(to_ours(x)), x.grad)


def test_equal_maxima_share_the_gradient():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2, 2, 0)))(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, 0.25)


@pytest.mark.oracle
def test_gru_is_pytorchs():
    torch.manual_seed(0)
    theirs = torch.nn.GRU(5, 7, batch_first=True)
    x = torch.randn(3, 4, 5)
    expected, _ = theirs(x)
    params = {
        "input_kernel": theirs.weight_ih_l0.T,
        "hidden_kernel": theirs.weight_hh_l0.T,
        "input_bias": theirs.bias_ih_l0,
        "hidden_bias": theirs.bias_hh_l0,
    }
    params = jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), params)
    ours = jax.jit(GRU(7).apply)({"params": params}, jnp.asarray(x.numpy()))
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(("stride", "padding", "dtype"), [(1, 1, "float32"), (2, 3, "float32"), (1, 0, "bfloat16")])
def test_gradients_of_large_kernels(stride, padding, dtype):
    """Large enough for the gradient that is summed over blocks of rows; XLA's own is the reference."""
    x = jax.random.normal(jax.random.key(0), (2, 41 * stride, 41 * stride, 32), dtype)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 32, 64), dtype)

    def plain(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=layout
        )

    def gradients(convolution):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolution(x, kernel).astype(jnp.float32)))

        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
        return traced.lower().compile()(x, kernel), str(traced.jaxpr)

    ours, how = gradients(lambda x, kernel: convolve(x, kernel, stride, padding))
    theirs, _ = gradients(plain)
    assert "platform_index" in how
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        scale = jnp.max(jnp.abs(other)).astype(jnp.float32)
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5 if dtype == "float32" else 2e-2)


def test_wide_matrix_products_have_the_usual_gradient():
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(50, 128), (128, 130)]))

    def gradients(product):
        traced = jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel))), (0, 1))).trace(x, kernel)
        return traced.lower().compile()(x, kernel), str(traced.jaxpr)

    ours, how = gradients(multiply)
    theirs, _ = gradients(jnp.dot)
    assert "platform_index" in how
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize(("kernel", "padding", "groups"), [((1, 7), (0, 3), 1), ((3, 1), 0, 1), (3, 1, 2), (1, 0, 3)])
@pytest.mark.parametrize("threshold", [0, 1e12], ids=["by rows", "by xla"])
def test_oblong_and_grouped_convolutions_are_pytorchs(kernel, padding, groups, threshold, monkeypatch):
    monkeypatch.setattr(kernels, "PER_IMAGE_FLOP", threshold)  # both ways to a kernel's gradient
    monkeypatch.setattr(kernels, "BLOCK", 16)  # two rows a block, the last of which is not full
    theirs = torch.nn.Conv2d(6, 12, kernel, 1, padding, groups=groups)
    x = image(2, 6, 9, 8).requires_grad_()
    expected = theirs(x)
    expected.sin().sum().backward()
    params = {"kernel": theirs.weight.permute(2, 3, 1, 0), "bias": theirs.bias}
    params = {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}
    layer = Conv(12, kernel, 1, padding, groups=groups)

    def run(params, x):
        y = layer.apply({"params": params}, x)
        return jnp.sum(jnp.sin(y)), y

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    (_, y), (gradient, of_x) = both(params, to_ours(x))
    same(y, expected)
    same(of_x, x.grad)
    np.testing.assert_allclose(gradient["kernel"], theirs.weight.grad.permute(2, 3, 1, 0), rtol=1e-5, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
@pytest.mark.parametrize(
    ("window", "stride", "padding", "counted", "ceil"),
    [
        (3, 2, 1, True, False),
        (2, 2, 0, False, True),
        (3, 1, 1, False, False),
        (3, 2, 1, True, True),
        (1, 1, 0, False, True),
    ],
)
def test_average_pooling_and_its_gradient_are_pytorchs(size, window, stride, padding, counted, ceil):
    x = (image(2, 5, *size) + 1).requires_grad_()
    expected = torch.nn.functional.avg_pool2d(x, window, stride, padding, ceil, counted)
    expected.sin().sum().backward()

    def run(x):
        return average_pool(x, window, stride, padding, count_padding=counted, ceil=ceil)

    same(jax.jit(run)(to_ours(x)), expected)
    same(jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(run(x)))))(to_ours(x)), x.grad)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(9, 12), (8, 7), (112, 5)])
def test_max_pooling_rounds_up_as_pytorchs(size):
    x = image(2, 5, *size) - 5
    same(max_pool(to_ours(x), 3, 2, 0, ceil=True), torch.nn.functional.max_pool2d(x, 3, 2, 0, ceil_mode=True))


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(12, 3), (7, 14), (20, 7)])
def test_adaptive_average_pooling_is_pytorchs(size):
    x = image(2, 5, *size)
    same(adaptive_average_pool(to_ours(x), 7), torch.nn.functional.adaptive_avg_pool2d(x, 7))


@pytest.mark.oracle
def test_a_window_takes_the_top_left_and_refuses_what_gives_not_one_value():
    x = image(2, 5, 11, 13)
    expected = torch.nn.functional.avg_pool2d(x, 7)[:, :, 0, 0]
    np.testing.assert_allclose(window_average(to_ours(x), 7, 7), expected, rtol=1e-4, atol=1e-6)
    for window, stride in ((12, 12), (7, 4), (5, 5)):
        with pytest.raises(ConfigError, match=f"{window} to {window + stride - 1} a side"):
            window_average(to_ours(x), window, stride)
