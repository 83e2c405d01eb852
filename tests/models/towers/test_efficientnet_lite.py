"""EfficientNet-Lite: the package's names, sizes and numbers; and the transformer over its map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.convert import Table, to_jax, to_torch
from jaxvqa.convert.layers import COUNTER, in_collections, with_counters
from jaxvqa.convert.towers.efficientnet_lite import EFFICIENTNET_LITE
from jaxvqa.models.towers.efficientnet_lite import EXPANSIONS, KERNELS, STRIDES, EfficientNetLite
from jaxvqa.models.towers.vit import GridViT
from tests.made_up import made_up
from tests.oracle import Module, torch

KEYS = Table(in_collections(EFFICIENTNET_LITE), (COUNTER, r"_fc\..*"))
TINY = {"stem": 6, "widths": (4, 6, 6, 8, 8, 8, 10), "depths": (1, 2, 1, 1, 2, 1, 1), "features": 12}


def around(x, kernel, stride):
    """TensorFlow's padding of a PyTorch tensor."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return torch.nn.functional.pad(x, pads)


class Block(Module):
    """A block with the package's names."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inside = inputs * expansion
        norm = functools.partial(torch.nn.BatchNorm2d, eps=1e-3)
        if expansion > 1:
            self._expand_conv = torch.nn.Conv2d(inputs, inside, 1, bias=False)
            self._bn0 = norm(inside)
        self._depthwise_conv = torch.nn.Conv2d(inside, inside, kernel, stride, groups=inside, bias=False)
        self._bn1 = norm(inside)
        self._project_conv = torch.nn.Conv2d(inside, outputs, 1, bias=False)
        self._bn2 = norm(outputs)
        self.kernel, self.stride, self.beside = kernel, stride, stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if hasattr(self, "_expand_conv"):
            y = torch.nn.functional.relu6(self._bn0(self._expand_conv(y)))
        y = self._bn1(self._depthwise_conv(around(y, self.kernel, self.stride)))
        y = self._bn2(self._project_conv(torch.nn.functional.relu6(y)))
        return x + y if self.beside else y


class Network(Module):
    """The whole network with its classifier."""

    def __init__(self, stem, widths, depths, features):
        super().__init__()
        self._conv_stem = torch.nn.Conv2d(3, stem, 3, 2, bias=False)
        self._bn0 = torch.nn.BatchNorm2d(stem, eps=1e-3)
        blocks, inputs = [], stem
        for width, depth, kernel, stride, expansion in zip(widths, depths, KERNELS, STRIDES, EXPANSIONS, strict=True):
            for i in range(depth):
                blocks.append(Block(inputs, width, kernel, 1 if i else stride, expansion))
                inputs = width
        self._blocks = torch.nn.ModuleList(blocks)
        self._conv_head = torch.nn.Conv2d(inputs, features, 1, bias=False)
        self._bn1 = torch.nn.BatchNorm2d(features, eps=1e-3)
        self._fc = torch.nn.Linear(features, 5)

    def forward(self, x):
        x = torch.nn.functional.relu6(self._bn0(self._conv_stem(around(x, 3, 2))))
        for block in self._blocks:
            x = block(x)
        return torch.nn.functional.relu6(self._bn1(self._conv_head(x)))


def shapes_of(model, method="stages"):
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda key: model.init(key, image, train=False, method=method), jax.random.key(0))


def test_lite0_has_the_published_number_of_parameters():
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(EfficientNetLite())["params"]))
    assert count == 4_652_008 - 1_281_000  # without the classifier


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(64, 96), (45, 37)])
def test_maps_and_statistics_are_torchs(size):
    torch.manual_seed(0)
    theirs, ours = Network(**TINY), EfficientNetLite(**TINY)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "_bn" in name:
                value.uniform_(0.5, 1.5)
    tensors = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    variables, _ = to_jax(tensors, KEYS, shapes_of(ours))
    back = with_counters(to_torch(variables, KEYS), 0)
    assert list(back) == [key for key in tensors if not key.startswith("_fc")]  # the order in which PyTorch writes
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key])

    x = 2 * torch.randn(3, 3, *size)
    image = jnp.asarray(np.moveaxis(x.numpy(), 1, -1))
    run = jax.jit(lambda v, x: ours.apply(v, x, train=True, mutable="batch_stats", method="stages"))
    maps, changed = run(variables, image)
    expected = theirs(x)
    np.testing.assert_allclose(np.moveaxis(np.asarray(maps["head"]), -1, 1), expected.detach(), atol=1e-4)
    after = to_torch({"params": variables["params"], **changed}, KEYS)
    for key, value in theirs.state_dict().items():
        if "running" in key:
            np.testing.assert_allclose(after[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    theirs.eval()
    found = jax.jit(lambda v, x: ours.apply(v, x, train=False, method="stages"))({**variables, **changed}, image)
    expected = theirs(x).detach()
    assert (expected > 0).float().mean() > 0.1
    np.testing.assert_allclose(np.moveaxis(np.asarray(found["head"]), -1, 1), expected, atol=1e-4)


def test_a_transformer_reads_the_last_map_place_by_place():
    model = GridViT(8, 1, 2, network=functools.partial(EfficientNetLite, **TINY))
    image = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, image), jax.random.key(0))
    assert shapes["params"]["position"].shape == (1 + 2 * 2, 8)
    variables = made_up(shapes)

    @jax.jit
    def read(image):
        grid = EfficientNetLite(**TINY).apply(
            {name: tree["network"] for name, tree in variables.items()}, image, train=False, method="stages"
        )["head"]
        return model.apply(variables, image)[1]["patches"], grid

    patches, grid = read(image)
    layer = variables["params"]["patches"]
    expected = np.asarray(grid).reshape(2, 4, -1) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(patches, expected, atol=1e-4)
