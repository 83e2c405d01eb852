"""What SYSU-HCP's networks promise: the original's numbers, torchvision's VGG under every head, sizes, faults."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.convert import sysu_hcp
from jaxvqa.errors import ConfigError
from jaxvqa.golden import runner
from jaxvqa.models.towers.resnest import SplitAttention
from tests.oracle import torch

GOLDEN = Path(__file__).parent.parent / "golden" / "sysu_hcp"
WIDTHS = (2, 3, 4, 5, 6)
LEVELS = ("stem", "pool", "layer1", "layer2", "layer3", "layer4")
SMALL_RESNEST = {"blocks": (1, 1, 1, 1), "stem_width": 4, "bottleneck_width": 8}


def make(backbone, answers=7, **fields):
    return models.build({"name": "sysu_hcp", "backbone": backbone, "num_answers": answers, **fields})


def shapes(model, side=224):
    return jax.eval_shape(lambda key: model.init(key, image=jnp.zeros((1, side, side, 3))), jax.random.key(0))


def random_variables(model, side=224):
    """Random variables, with positive variances."""
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten_with_path(shapes(model, side))
    values = []
    for path, leaf in leaves:
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        value = scale * rng.standard_normal(leaf.shape)
        values.append(jnp.asarray(np.abs(value) + 0.5 if path[-1].key in ("var", "scale") else value, jnp.float32))
    return jax.tree.unflatten(tree, values)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- the golden cases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "outputs"),
    [
        ("small_resnest.npz", 84),
        ("small_repvgg.npz", 22),
        ("small_densenet.npz", 29),
        pytest.param("small_resnest_train.npz", 64, marks=pytest.mark.slow),
    ],
)
def test_golden_cases(case, outputs):
    rows = runner.run(GOLDEN / case)
    assert not [row for row in rows if row.decides and not row.passed]
    assert len(rows) == outputs + 1  # and the checkpoint's way there and back


FULL = [
    *("resnet18", "resnet34", "resnet50", "resnet50HGap", "resnest50", "resnest101", "resnest50HGap"),
    *(
        "vgg16",
        "vgg19",
        "vgg16HGap",
        "vgg16HGap_bn",
        "vgg16HGap_resizer",
        "vgg19HGap",
        "vgg16_add",
        "vgg16_multi_scales",
    ),
    *("densenet121", "RepVGG-B0", "se_resnet50", "xception", "inceptionv4", "inceptionresnetv2", "polynet"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_full_size_golden_cases(case, jaxvqa_data):
    rows = runner.run(jaxvqa_data / "reference" / "sysu" / f"{case}.npz")
    assert len(rows) > 15
    assert not [row for row in rows if not row.passed]


# --- VGG under every head, beside torchvision's layers -----------------------------------------------------------------


def torch_vgg(norm):
    """torchvision's feature layers of VGG-16, with this file's widths, and the indices at which HAGAP cuts them."""
    layers, cuts, inputs = [], [0], 3
    for width, count in zip(WIDTHS, (2, 2, 3, 3, 3), strict=True):
        for _ in range(count):
            layers.append(torch.nn.Conv2d(inputs, width, 3, padding=1))
            layers += [torch.nn.BatchNorm2d(width)] if norm else []
            layers.append(torch.nn.ReLU())
            inputs = width
        cuts.append(len(layers))
        layers.append(torch.nn.MaxPool2d(2))
    return torch.nn.Sequential(*layers).eval(), [*cuts, len(layers)]


def theirs(backbone, tensors, x):
    """The original's logits and features from its own tensors."""
    net, cuts = torch_vgg("_bn" in backbone)
    first = "features." if "features.0.weight" in tensors else "vgg."
    net.load_state_dict({k.removeprefix(first): v for k, v in tensors.items() if k.startswith(first)})

    def linear(name, x):
        return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    if first == "features.":
        x = torch.flatten(torch.nn.functional.adaptive_avg_pool2d(net(x), 7), 1)
        features = linear("classifier.3", linear("classifier.0", x).relu()).relu()
        return linear("classifier.6", features), features
    levels = []
    for start, end in itertools.pairwise(cuts):
        x = net[start:end](x)
        levels.append(x)
    if "fc4.weight" in tensors:
        scores = [linear(f"fc{i}", x.mean((2, 3))) for i, x in enumerate(levels[2:], 1)]
        return sum(scores) if "add" in backbone else scores[-1], levels[-1].mean((2, 3))
    windows = (224, 112, 56, 28, 14, 7) if backbone != "vgg16HGap" else [None] * 6
    pool = torch.nn.functional.avg_pool2d
    means = [pool(x, w)[:, :, 0, 0] if w else x.mean((2, 3)) for x, w in zip(levels, windows, strict=True)]
    features = torch.cat(means, 1)
    return linear("classifier", features), features


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vgg16", (96, 110)),  # the pool in front of the classifier repeats rows
        ("vgg16HGap", (70, 64)),
        ("vgg16HGap_bn", (240, 250)),  # only the top left 224×224 count
        ("vgg16_add", (64, 64)),
        ("vgg16_multi_scales", (64, 64)),
    ],
)
def test_vgg_with_each_head_is_the_originals(backbone, size):
    model = make(backbone, sizes={"widths": WIDTHS})
    variables = random_variables(model)
    x = images(2, *size, 3)
    logits, out = jax.jit(model.apply)(variables, image=x)
    tensors = sysu_hcp.layout({"backbone": backbone}).write(variables, 1)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}
    with torch.no_grad():
        expected, features = theirs(backbone, tensors, torch.from_numpy(x).permute(0, 3, 1, 2))
    np.testing.assert_allclose(out["features"], features, atol=1e-4 * float(features.abs().max()))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))


def test_scales_are_added_or_the_last_one_counts():
    """Both give each scale's logits by name, in training as well."""
    variables = random_variables(make("vgg16_add", sizes={"widths": WIDTHS}))
    for backbone, picked in (("vgg16_add", (1, 2, 3, 4)), ("vgg16_multi_scales", (4,))):
        model = make(backbone, sizes={"widths": WIDTHS})
        logits, out = jax.jit(lambda v, x, m=model: m.apply(v, image=x, train=True))(variables, images(2, 32, 32, 3))
        np.testing.assert_allclose(logits, sum(out[f"logits_{i}"] for i in picked), rtol=1e-5)


# --- HAGAP on residual networks ----------------------------------------------------------------------------------------


def test_hagap_is_the_means_of_six_depths_in_order():
    model = make("resnest50HGap", sizes=SMALL_RESNEST)
    variables = random_variables(model)
    logits, out = jax.jit(model.apply)(variables, image=images(2, 64, 80, 3))
    np.testing.assert_allclose(
        out["features"], np.concatenate([np.mean(out[name], (1, 2)) for name in LEVELS], -1), rtol=1e-4, atol=1e-5
    )
    assert out["features"].shape == (2, 8 + 8 + 256 + 512 + 1024 + 2048)
    assert jnp.min(out["stem"]) < 0  # as the convolution gave it, before normalisation and ReLU
    assert jnp.min(out["pool"]) == 0
    assert logits.shape == (2, 7)


def test_split_attention_shares_each_channel_among_its_splits():
    layer = SplitAttention(8, 2, jnp.float32)
    x = jnp.asarray(images(2, 5, 6, 8))
    variables = jax.jit(lambda key: layer.init(key, x, train=False))(jax.random.key(0))
    _, seen = jax.jit(lambda v, x: layer.apply(v, x, train=False, mutable="intermediates"))(variables, x)
    (attention,) = seen["intermediates"]["attention"]
    assert attention.shape == (2, 16)
    np.testing.assert_allclose(attention[:, :8] + attention[:, 8:], 1, rtol=1e-6)
    assert np.ptp(attention[:, :8]) > 0.01


# --- sizes, types, initial values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("vgg16_bn", 135_621_002),
        ("vgg19_bn", 140_933_258),
        ("resnet50HGap", 26_866_802 - 2_049_000),  # without the classifier that nothing uses
        ("RepVGG-B1", 56_042_186),
        pytest.param("RepVGG-B2", 87_306_506, marks=pytest.mark.slow),
        pytest.param("resnet101", 43_176_330, marks=pytest.mark.slow),
        pytest.param("densenet169", 13_033_930, marks=pytest.mark.slow),
        pytest.param("densenet201", 18_726_858, marks=pytest.mark.slow),
    ],
)
def test_published_sizes_have_the_originals_number_of_parameters(backbone, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(make(backbone, 330))["params"])) == count


@pytest.mark.parametrize(("backbone", "count"), [("RepVGG-B0", 13_480_778), ("RepVGG-B1", 50_456_650)])
def test_folded_repvgg_has_the_originals_number_of_parameters(backbone, count):
    found = shapes(make(backbone, 330, sizes={"folded": True}))
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == count  # and no statistics


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model = make("resnest50", sizes=SMALL_RESNEST)
    variables = random_variables(model)
    x = images(2, 64, 64, 3)
    expected, _ = jax.jit(model.apply)(variables, image=x)
    short = make("resnest50", sizes=SMALL_RESNEST, dtype="bfloat16")
    logits, out = jax.jit(short.apply)(variables, image=x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(short))} == {jnp.dtype("float32")}
    assert (logits.dtype, out["layer4"].dtype, out["features"].dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    assert 0 < jnp.abs(logits - expected).max() < 0.05 * jnp.abs(expected).max()


@pytest.mark.parametrize(
    ("backbone", "sizes", "path", "deviation"),
    [
        ("vgg16HGap", {"widths": (32, 8, 8, 8, 8)}, "block_1_conv_1/kernel", (2 / (9 * 32)) ** 0.5),
        ("densenet121", {"blocks": (1, 1, 1, 1), "growth": 16}, "block_1_layer_1_conv_2/kernel", (2 / (9 * 64)) ** 0.5),
        (
            "RepVGG-B0",
            {"blocks": (1, 1, 1, 1), "widths": (8, 64, 8, 8, 8)},
            "stage_1_block_0/dense/conv/kernel",
            (1 / 3 / 72) ** 0.5,
        ),
    ],
)
def test_initial_values_are_the_originals(backbone, sizes, path, deviation):
    params = jax.jit(make(backbone, 500, sizes=sizes).init)(jax.random.key(0), image=images(1, 32, 32, 3))["params"]
    kernel = params["tower"]
    for part in path.split("/"):
        kernel = kernel[part]
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
    classifier = params["head"]["classifier"]
    bound = len(classifier["kernel"]) ** -0.5
    for value in classifier.values():
        assert 0.9 * bound < jnp.abs(value).max() <= bound


# --- faults ------------------------------------------------------------------------------------------------------------


def test_sizes_come_from_a_config():
    config = {"name": "sysu_hcp", "backbone": "vgg16_add", "num_answers": 3, "sizes": {"widths": list(WIDTHS)}}
    found = shapes(models.build(ml_collections.ConfigDict(config).to_dict()), 32)
    assert found["params"]["tower"]["block_5_conv_2"]["kernel"].shape == (3, 3, 6, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnest51"}, "model.backbone is 'resnest51': .*Did you mean 'resnest50'"),
        (
            {"backbone": "vgg16", "sizes": {"width": 1, "dtype": 2}},
            "model.sizes.width .*\n.*model.sizes.dtype is not a size",
        ),
    ],
)
def test_unknown_names_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        shapes(make(**fields), 64)


@pytest.mark.parametrize(
    ("backbone", "side", "fits"),
    [
        ("vgg19HGap", 223, False),
        ("vgg19HGap", 384, True),
        ("vgg19HGap", 448, False),
        ("vgg16HGap", 448, True),
        ("se_resnet50", 256, False),
    ],
)
def test_images_that_the_originals_pools_fail_at_are_refused(backbone, side, fits):
    sizes = {"widths": WIDTHS} if "vgg" in backbone else {"blocks": (1, 1, 1, 1), "width": 16}
    model = make(backbone, sizes=sizes)
    if fits:
        assert shapes(model, side)
    else:
        with pytest.raises(ConfigError, match="give images of another size"):
            shapes(model, side)
