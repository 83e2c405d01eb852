"""Models in float64 compute in float64 throughout; in float32, long sums are as exact as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvqa import losses, models
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.gru import GRU
from jaxvqa.models.layers.norm import StdNorm
from jaxvqa.models.layers.pooling import adaptive_average_pool, average_pool, global_average
from jaxvqa.models.layers.transformer import LayerNorm
from jaxvqa.models.layers.weight_norm import whole_norm
from jaxvqa.precision import wide, widened
from tests.oracle import torch

# --- float64 ---------------------------------------------------------------------------------------------------------------

IMAGE, WORDS = (2, 64, 64, 3), (2, 6)
QUESTION = {"image": IMAGE, "question": WORDS}
GENERATED = {"text": WORDS, "image": IMAGE, "question_end": (2,)}
SMALL = {"vocab_size": 20, "num_answers": 7}
TINY_GPT2 = {"width": 32, "depth": 2, "heads": 2, "positions": 16}
TINY_VISION = {"patch": 16, "width": 32, "depth": 2, "heads": 2, "features": 32}
FLAMINGO = {"name": "flamingo", "language_sizes": TINY_GPT2, "vision_sizes": TINY_VISION} | SMALL
FLAMINGO |= {"image_token": 3, "latents": 4, "every": 1}

RESNET = {"branch": "resnet10", "branch_sizes": {"width": 4}}
CMSA = {"name": "cmsa", "width": 16, "organ_width": 4, "organ_hidden": 8} | RESNET | SMALL
MEVF = {"image_84": (2, 84, 84, 1), "image_128": (2, 128, 128, 1), "question": WORDS}
MTPT = {"name": "mtpt", "vocab_size": 20, "classes": 3, "width": 8} | RESNET
SYSU = {"name": "sysu_hcp", "num_answers": 7}
SMALL_RESNEST = {"blocks": (1, 1, 1, 1), "stem_width": 4, "bottleneck_width": 8}

SYSTEMS = {
    "rwsan": ({"name": "rwsan", "width": 16} | SMALL, {"regions": (2, 5, 12), "question": WORDS}),
    "cmsa_gru": (CMSA | {"rnn": "gru"}, QUESTION),
    "cmsa_attention": (CMSA | {"self_attention": True, "cross_attention": True}, QUESTION),
    "ban": ({"name": "ban", "width": 16} | SMALL, MEVF),
    "san": ({"name": "san", "width": 16} | SMALL, MEVF),
    "mtpt_segment": (MTPT | {"task": "segment"}, QUESTION),
    "mtpt_classify": (MTPT | {"task": "classify"}, QUESTION),
    "resnest": (SYSU | {"backbone": "resnest50HGap", "sizes": SMALL_RESNEST}, {"image": IMAGE}),
    "resizer": (SYSU | {"backbone": "vgg16HGap_resizer", "sizes": {"widths": (2, 3, 4, 5, 6)}}, {"image": IMAGE}),
    "flamingo": (FLAMINGO | {"mean_head": True}, GENERATED),
}
SLOW = {
    name: (SYSU | {"backbone": name}, {"image": (2, side, side, 3)})
    for name, side in {
        "densenet121": 64,
        "RepVGG-B0": 64,
        "se_resnet50": 224,
        "xception": 128,
        "inceptionv4": 128,
    }.items()
}


@pytest.mark.parametrize("system", [*SYSTEMS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_float64_throughout(system):
    config, shapes = (SYSTEMS | SLOW)[system]
    model = models.build(config)
    kinds = {"question": jnp.int32, "text": jnp.int32, "question_end": jnp.int32}
    narrow = {name: jax.ShapeDtypeStruct(shape, kinds.get(name, jnp.float32)) for name, shape in shapes.items()}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(lambda x: model.init(keys, **x), narrow)

    def as_float64(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, jnp.float64 if floating else x.dtype)

    with jax.enable_x64(True):
        wide_model = model.copy(dtype=jnp.float64)

        def loss(params, rest, inputs):
            given = {"params": params} | rest
            out, _ = wide_model.apply(
                given, **inputs, train=True, rngs={"dropout": jax.random.key(1)}, mutable="batch_stats"
            )
            leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum(jnp.sum(x) for x in leaves)

        variables, inputs = jax.tree.map(as_float64, (dict(variables), narrow))
        params = variables.pop("params")
        written = str(jax.make_jaxpr(jax.value_and_grad(loss))(params, variables, inputs))
    lines = [line for line in written.splitlines() if "f32[" in line or "f16[" in line]
    assert not lines, "\n".join(lines[:5])
    assert "f64[" in written


def test_losses_in_float64():
    logits, targets = jnp.zeros((3, 5)), jnp.zeros(3, jnp.int32)
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)))
        for each in losses.LOSSES.values():
            written = str(jax.make_jaxpr(jax.value_and_grad(lambda z, e=each: e(z, targets).sum()))(logits))
            assert "f32[" not in written
        text = jax.make_jaxpr(
            lambda z: losses.text_loss(z, targets[None], targets[None] == 0, smoothing=0.1, shared_mask=True)
        )
        assert "f32[" not in str(text(logits[None]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_half_precision_stays_float32_inside(dtype):
    assert wide(dtype) == widened(jnp.zeros(1, dtype)).dtype == jnp.float32


# --- long sums -------------------------------------------------------------------------------------------------------------

ULP = float(jnp.finfo(jnp.float32).eps)


def made(*shape, offset=0.0, uniform=False):
    rng = np.random.default_rng(0)
    return (rng.random(shape) if uniform else rng.standard_normal(shape) + offset).astype(np.float32)


def batch_norm(x):
    """The normalised rows, and the running statistics after one batch that counts wholly."""
    norm, width = BatchNorm(momentum=1.0), x.shape[-1]
    variables = {
        "params": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        "batch_stats": {"mean": jnp.zeros(width), "var": jnp.ones(width)},
    }
    y, changed = norm.apply(variables, x, train=True, mutable="batch_stats")
    return y, changed["batch_stats"]["mean"], changed["batch_stats"]["var"]


def layer_norm(x):
    ones = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return LayerNorm(epsilon=1e-5).apply({"params": ones}, x)


def std_norm(x):
    ones = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return StdNorm().apply({"params": ones}, x)


def normal(x, axis, epsilon=1e-5):
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon)


def bce(z):
    return optax.sigmoid_binary_cross_entropy(z, jax.nn.sigmoid(-z)).sum()


TARGETS = np.arange(256, dtype=np.int32)
ROWS = made(200_704, 16, uniform=True)  # those of a batch of maps
MAPS = ROWS.reshape(16, 112, 112, 16)

SUMS = {
    # name: (ours, NumPy's in float64, x)
    "batch norm": (lambda x: batch_norm(x)[0], lambda x: normal(x, (0, 1, 2)), MAPS),
    "batch mean": (lambda x: batch_norm(x)[1], lambda x: x.mean((0, 1, 2)), MAPS),
    "batch variance": (lambda x: batch_norm(x)[2], lambda x: x.var((0, 1, 2), ddof=1), MAPS),
    "gradient of a bias": (lambda x: jnp.sum(x, axis=0), lambda x: x.sum(0), ROWS),
    "layer norm": (layer_norm, lambda x: normal(x, -1), made(64, 768, offset=1)),
    "sample deviation norm": (
        std_norm,
        lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6),
        made(64, 1024, offset=1),
    ),
    "global average": (global_average, lambda x: x.mean((1, 2)), made(2, 56, 56, 64, uniform=True)),
    "adaptive average": (
        lambda x: adaptive_average_pool(x, 1)[:, 0, 0],
        lambda x: x.mean((1, 2)),
        made(2, 56, 56, 64, uniform=True),
    ),
    "average pool": (
        lambda x: average_pool(x, 7, 1)[:, 0, 0],
        lambda x: x[:, :7, :7].mean((1, 2)),
        made(2, 7, 7, 64, uniform=True),
    ),
    "norm of a matrix": (whole_norm, lambda x: np.sqrt(np.square(x).sum()), made(1544, 1024)),
    "softmax": (
        jax.nn.softmax,
        lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
        made(64, 8192),
    ),
    "cross entropy": (
        lambda x: losses.cross_entropy(x, jnp.asarray(TARGETS)).mean(),
        lambda x: (np.log(np.exp(x).sum(-1)) - x[TARGETS, TARGETS]).mean(),
        made(256, 2048),
    ),
    "binary cross entropy": (
        bce,
        lambda x: (np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - x / (1 + np.exp(x))).sum(),
        made(64, 3129),
    ),
}


def error(ours, expected):
    ours = np.asarray(ours, np.float64)
    return np.max(np.abs(ours - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", SUMS)
def test_long_sums_are_within_a_few_units_of_the_last_place(name):
    # A sum over so many rows, one after the other, would be off by 20 to 1,000 units.
    ours, exact, x = SUMS[name]
    assert error(jax.jit(ours)(jnp.asarray(x)), exact(x.astype(np.float64))) <= 6 * ULP


def test_a_gated_unit_keeps_float64():
    with jax.enable_x64(True):
        x = jnp.ones((1, 3, 2), jnp.float64)
        variables = GRU(4, jnp.float64).init(jax.random.key(0), x)
        assert GRU(4, jnp.float64).apply(variables, x).dtype == jnp.float64


TORCH = {
    "batch norm": lambda x: torch.nn.functional.batch_norm(
        x.permute(0, 3, 1, 2).contiguous(), None, None, training=True
    ).permute(0, 2, 3, 1),
    "gradient of a bias": lambda x: bias_gradient(x),
    "layer norm": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]),
    "global average": lambda x: torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1)[:, :, 0, 0],
    "norm of a matrix": lambda x: x.norm(),
    "softmax": lambda x: x.softmax(-1),
    "cross entropy": lambda x: torch.nn.functional.cross_entropy(x, torch.from_numpy(TARGETS).long()),
    "binary cross entropy": lambda x: torch.nn.functional.binary_cross_entropy_with_logits(
        x, (-x).sigmoid(), reduction="sum"
    ),
}


def bias_gradient(rows):
    bias = torch.zeros(rows.shape[1], requires_grad=True)
    (torch.zeros_like(rows) + bias).backward(rows)
    return bias.grad


@pytest.mark.oracle
@pytest.mark.parametrize("name", TORCH)
def test_forward_errors_are_at_most_twice_pytorchs(name):
    ours, exact, x = SUMS[name]
    expected = exact(x.astype(np.float64))
    theirs = error(TORCH[name](torch.from_numpy(x)).numpy(), expected)
    # One unit in the last place is the least that can be asked of a result in float32.
    assert error(jax.jit(ours)(jnp.asarray(x)), expected) <= max(2 * theirs, ULP)
