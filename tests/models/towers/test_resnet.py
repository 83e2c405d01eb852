"""Residual networks: torchvision's names, sizes and numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.convert import Table, to_jax, to_torch
from jaxvqa.convert.layers import COUNTER, in_collections, with_counters
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.errors import ConfigError
from jaxvqa.models.towers.resnet import ResNet
from tests.made_up import made_up
from tests.oracle import Module, torch

KEYS = Table(in_collections(RESNET), (COUNTER,))


class Block(Module):
    """A block with torchvision's names."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        shapes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        outputs = 4 * width if bottleneck else width
        widths = [inputs, *[width] * (len(shapes) - 1), outputs]
        for i, (kernel, step) in enumerate(shapes):
            conv = torch.nn.Conv2d(widths[i], widths[i + 1], kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", torch.nn.BatchNorm2d(widths[i + 1]))
        self.count = len(shapes)
        if stride != 1 or inputs != outputs:
            conv = torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Network(Module):
    """The whole network up to its last stage."""

    def __init__(self, counts, width, bottleneck):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(counts):
            blocks = []
            for i in range(count):
                blocks.append(Block(inputs, width * 2**stage, 2 if stage and not i else 1, bottleneck))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))

    def forward(self, x):
        maps = [torch.relu(self.bn1(self.conv1(x)))]
        x = torch.nn.functional.max_pool2d(maps[0], 3, 2, 1)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


def shapes_of(model, size=64):
    image = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda key: model.init(key, image, train=False), jax.random.key(0))


@pytest.mark.parametrize(("depth", "count"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)])
def test_number_of_parameters_is_torchvisions_without_the_classifier(depth, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(ResNet(depth))["params"])) == count


def test_unknown_depths_are_refused():
    with pytest.raises(ConfigError, match="depth is 19: choose 10, 18, 34, 50 or 101"):
        shapes_of(ResNet(19))


@pytest.mark.oracle
@pytest.mark.parametrize(("depth", "counts"), [(18, (2, 2, 2, 2)), (50, (3, 4, 6, 3))])
def test_maps_and_statistics_are_torchs(depth, counts):
    torch.manual_seed(0)
    theirs, ours = Network(counts, 4, depth >= 50), ResNet(depth, 4)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if ".bn" in name or name.startswith("bn"):
                value.uniform_(0.5, 1.0)
    tensors = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    variables, report = to_jax(tensors, KEYS, shapes_of(ours))
    assert len(report.excused) == sum("num_batches" in key for key in tensors)
    back = with_counters(to_torch(variables, KEYS), 0)
    assert list(back) == list(tensors)  # the order in which PyTorch writes
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == value.dtype

    x = torch.randn(2, 3, 64, 96)
    image = jnp.asarray(np.moveaxis(x.numpy(), 1, -1))
    expected = theirs(x)
    run = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable="batch_stats"))
    maps, changed = run(variables, image)
    assert [m.shape[1:] for m in maps] == [tuple(np.roll(m.shape[1:], -1)) for m in expected]
    for a, b in zip(maps, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(a), -1, 1), b.detach(), atol=1e-3)
    after = to_torch({"params": variables["params"], **changed}, KEYS)
    for key, value in theirs.state_dict().items():
        if "running" in key:
            np.testing.assert_allclose(after[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
    theirs.eval()
    maps = jax.jit(lambda v, x: ours.apply(v, x, train=False))({"params": variables["params"], **changed}, image)
    for a, b in zip(maps, theirs(x), strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(a), -1, 1), b.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow  # tests/models/test_blip.py has the same of a transformer
def test_remat_changes_neither_gradients_nor_statistics():
    image = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = made_up(shapes_of(ResNet(18, 8)))

    def run(remat):
        def loss(params):
            y, changed = ResNet(18, 8, remat=remat).apply(
                {"params": params, "batch_stats": variables["batch_stats"]}, image, train=True, mutable="batch_stats"
            )
            return jnp.sum(jnp.sin(y[-1])), changed

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    for a, b in zip(jax.tree.leaves(run(False)), jax.tree.leaves(run(True)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(jnp.abs(a).max())))


def test_bfloat16_maps_stay_close():
    image = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = made_up(shapes_of(ResNet(18, 8)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def run(dtype):
        return jax.jit(lambda v: ResNet(18, 8, dtype).apply(v, image, train=False))(variables)

    expected, short = run(jnp.float32), run(jnp.bfloat16)
    for a, b in zip(expected, short, strict=True):
        assert b.dtype == jnp.bfloat16
        assert 0 < jnp.abs(a - b.astype(jnp.float32)).max() < 0.05 * jnp.abs(a).max()
