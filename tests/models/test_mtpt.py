"""What the pre-training networks promise: both tasks, a backbone that CMSA can take, statistics that move."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.errors import ConfigError
from jaxvqa.golden import runner
from jaxvqa.models.mtpt import UpBlock
from tests.made_up import made_up
from tests.oracle import torch

GOLDEN = Path(__file__).parents[1] / "golden/cmsa"
SMALL = {
    "name": "mtpt",
    "vocab_size": 9,
    "classes": 4,
    "task": "segment",
    "embed_width": 3,
    "width": 8,
    "branch": "resnet18",
    "branch_sizes": {"width": 8},
}


def make(**fields):
    return models.build(SMALL | fields)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.standard_normal((3, 32, 64, 3), np.float32))
    return {"image": image, "question": jnp.asarray(rng.integers(0, 10, (3, 5)), jnp.int32)}


def shapes_of(model, inputs):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), **x), inputs)


@pytest.mark.parametrize(
    ("case", "outputs"), [("mtpt_classify", 19), pytest.param("mtpt_segment", 22, marks=pytest.mark.slow)]
)
def test_golden_cases(case, outputs):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert not [row for row in rows if not row.passed]
    assert len(rows) == outputs + 4  # and each file's way there and back, and the sizes


def test_published_sizes_have_the_published_number_of_parameters():
    config = {"name": "mtpt", "vocab_size": 1177}
    full = {"image": jnp.zeros((1, 224, 224, 3)), "question": jnp.zeros((1, 12), jnp.int32)}
    counts = {}
    for fields in (
        {"task": "segment", "classes": 14},
        {"task": "classify", "classes": 3, "embed_width": 300, "spatial": False},
    ):
        params = shapes_of(models.build(config | fields), full)["params"]
        assert set(params) == {"backbone", "decoder", "compatibility"}
        counts[fields["task"]] = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
    backbone = 21_284_672
    assert counts == {
        "segment": {"backbone": backbone, "decoder": 375_982, "compatibility": 14_772_296},
        "classify": {"backbone": backbone, "decoder": 1_054_723, "compatibility": 15_769_588},
    }


def test_the_backbone_is_a_branch_of_cmsa():
    image, question = jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 12), jnp.int32)
    ours = shapes_of(
        models.build({"name": "mtpt", "vocab_size": 9, "classes": 2, "task": "classify"}),
        {"image": image, "question": question},
    )
    cmsa = models.build({"name": "cmsa", "vocab_size": 9, "num_answers": 2})
    theirs = jax.eval_shape(lambda: cmsa.init(jax.random.key(0), image=image, question=question))
    for collection in ("params", "batch_stats"):
        for organ in ("abdomen", "head", "chest"):
            assert ours[collection]["backbone"] == theirs[collection][organ]


def test_other_networks_classify_and_only_residual_ones_segment(inputs):
    sizes = {"branch": "vgg16", "branch_sizes": {"widths": (2, 3, 4, 5, 6)}}
    (image, _), out = jax.eval_shape(
        lambda x: make(task="classify", **sizes).init_with_output(jax.random.key(0), **x)[0], inputs
    )
    assert image.shape == (3, 4)
    assert {"map_0", "map_5"} <= out.keys()
    with pytest.raises(ConfigError, match=r"'vgg16', whose maps are conv1, .* resnet34"):
        shapes_of(make(**sizes), inputs)
    with pytest.raises(ConfigError, match=r"'resnet43', not a network in stages.* 'resnet34'"):
        shapes_of(make(branch="resnet43"), inputs)


@pytest.mark.parametrize(("task", "shape"), [("segment", (3, 32, 64, 4)), ("classify", (3, 4))])
def test_names_and_shapes(task, shape, inputs):
    (image, fits), out = jax.eval_shape(lambda x: make(task=task).init_with_output(jax.random.key(0), **x)[0], inputs)
    assert image.shape == shape
    assert fits.shape == (3, 2)
    assert {image.dtype, fits.dtype} == {jnp.dtype("float32")}
    maps = {"map_0": (3, 16, 32, 8), "map_1": (3, 8, 16, 8), "map_2": (3, 4, 8, 16), "map_3": (3, 2, 4, 32)}
    assert {name: value.shape for name, value in out.items()} == maps | {
        "map_4": (3, 1, 2, 64),
        "question": (3, 5, 8),
        "block": (3, 5, 1, 2, 64 + 8 + 8),
        "pooled": (3, 5, 64 + 8 + 8),
        "fused": (3, 8),
    }


@pytest.mark.slow
def test_both_tasks_train_the_backbone(inputs):
    model = make()
    variables = made_up(shapes_of(model, inputs))

    @jax.jit
    def step(seed, task):
        def loss(params):
            ((image, fits), _), updates = model.apply(
                variables | {"params": params},
                **inputs,
                train=True,
                rngs={"dropout": jax.random.key(seed)},
                mutable=["batch_stats"],
            )
            return jnp.where(task == 0, jnp.mean(image**2), jnp.mean(fits**2)), (fits, updates["batch_stats"])

        return jax.grad(loss, has_aux=True)(variables["params"])

    (segment, (one, stats)), (fit, (two, _)) = step(0, 0), step(1, 1)
    assert (one != two).any()  # dropout
    assert all(
        bool((a != b).any())
        for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(variables["batch_stats"]), strict=True)
    )
    for gradient, other in ((segment, "compatibility"), (fit, "decoder")):
        assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradient["backbone"]))
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient[other]))
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_bfloat16_stays_close_to_float32(inputs):
    model = make(task="classify", spatial=False)
    variables = made_up(shapes_of(model, inputs))
    (image, fits), _ = jax.jit(model.apply)(variables, **inputs)
    lower = make(task="classify", spatial=False, dtype="bfloat16")
    (low_image, low_fits), out = jax.jit(lower.apply)(variables, **inputs)
    assert {low_image.dtype, low_fits.dtype} == {jnp.dtype("float32")}
    assert out["map_4"].dtype == out["block"].dtype == jnp.bfloat16
    assert 0 < jnp.abs(low_image - image).max() < 0.05 * jnp.abs(image).max()
    assert 0 < jnp.abs(low_fits - fits).max() < 0.05 * jnp.abs(fits).max()


@pytest.mark.oracle
def test_up_block_trains_as_in_pytorch():
    torch.manual_seed(0)
    layers = {
        "reduce": torch.nn.Conv2d(12, 3, 1),
        "reduce_norm": torch.nn.BatchNorm2d(3),
        "double": torch.nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, output_padding=1),
        "double_norm": torch.nn.BatchNorm2d(3),
        "expand": torch.nn.Conv2d(3, 5, 1),
        "expand_norm": torch.nn.BatchNorm2d(5),
    }
    image = torch.randn(2, 12, 3, 4)
    x = image
    for name, layer in layers.items():
        x = layer(x) if not name.endswith("norm") else torch.relu(layer(x))

    def array(t):
        return jnp.asarray(t.detach().numpy())

    params, stats = {}, {}
    for name, layer in layers.items():
        if name.endswith("norm"):
            params[name] = {"scale": array(layer.weight), "bias": array(layer.bias)}
            stats[name] = {"mean": jnp.zeros(len(layer.bias)), "var": jnp.ones(len(layer.bias))}
        else:
            axes = (2, 3, 0, 1) if name == "double" else (2, 3, 1, 0)
            params[name] = {"kernel": array(layer.weight.permute(*axes)), "bias": array(layer.bias)}
    train = jax.jit(lambda *x: UpBlock(5).apply(*x, train=True, mutable=["batch_stats"]))
    ours, updates = train({"params": params, "batch_stats": stats}, array(image.permute(0, 2, 3, 1)))
    np.testing.assert_allclose(ours, x.detach().numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(
        updates["batch_stats"]["expand_norm"]["var"], layers["expand_norm"].running_var, atol=1e-5
    )


def test_unknown_tasks_are_named(inputs):
    with pytest.raises(ConfigError, match="Did you mean 'segment'"):
        shapes_of(make(task="segmnt"), inputs)
