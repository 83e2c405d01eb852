"""What BAN and SAN promise: MEVF's branches, attention to several tokens, which the golden cases lack, and every variant."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.errors import ConfigError
from jaxvqa.golden import runner
from jaxvqa.models.mevf import (
    INPUTS,
    AutoEncoder,
    BilinearAttention,
    BilinearFusion,
    MAMLBranch,
    StackedAttention,
    channels_first,
)
from tests.made_up import made_up
from tests.oracle import torch

GOLDEN = Path(__file__).parents[1] / "golden/cmsa"
SIZES = {"vocab_size": 30, "num_answers": 11}
SMALL = {
    "embed_width": 6,
    "width": 16,
    "maml_width": 8,
    "autoencoder_width": 8,
    "code_width": 5,
    "branch": "resnet18",
    "branch_sizes": {"width": 4},
    "organ_width": 4,
    "organ_hidden": 8,
    "image_width": 12,
}


def make(name="ban", **fields):
    return models.build({"name": name} | SMALL | fields, **SIZES)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    question = rng.integers(0, 30, (4, 5))
    question[1, 3:] = 30
    return {
        "question": jnp.asarray(question, jnp.int32),
        "image_84": jnp.asarray(rng.random((4, 20, 20, 1), np.float32)),
        "image_128": jnp.asarray(rng.random((4, 16, 16, 1), np.float32)),
        "image": jnp.asarray(rng.standard_normal((4, 32, 32, 3), np.float32)),
    }


def inputs_of(model, batch):
    return {name: batch[name] for name in model.inputs}


def init(model, batch):
    return made_up(jax.eval_shape(lambda x: model.init(jax.random.key(0), **x), inputs_of(model, batch)))


def apply(model, variables, batch):
    return jax.jit(lambda v, x: model.apply(v, **x))(variables, inputs_of(model, batch))


@pytest.fixture(scope="module")
def ban(batch):
    """A compiled BAN, its variables, and what it gives for the batch."""
    model = make()
    variables, inputs = init(model, batch), inputs_of(model, batch)
    compiled = jax.jit(lambda v, x: model.apply(v, **x))
    return compiled, variables, inputs, *compiled(variables, inputs)


# --- the golden cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "outputs"),
    [
        ("ban_mevf_full", 13),
        pytest.param("san_mevf_full", 11, marks=pytest.mark.slow),
        pytest.param("ban_distmodal_full", 7, marks=pytest.mark.slow),
    ],
)
def test_golden_cases(case, outputs):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert not [row for row in rows if not row.passed]
    assert len(rows) == outputs + 2  # and the checkpoint's way there and back, and its sizes


# --- the published sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"name": "ban"}, 19_635_640),
        ({"name": "san"}, 13_985_199),
        ({"name": "ban", "image_branches": "distmodal", "embed_width": 200}, 164_563_258),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(config, count):
    model = models.build(config, vocab_size=1177, num_answers=458)
    full = {
        "question": jnp.zeros((1, 12), jnp.int32),
        "image_84": jnp.zeros((1, 84, 84, 1)),
        "image_128": jnp.zeros((1, 128, 128, 1)),
        "image": jnp.zeros((1, 224, 224, 3)),
    }
    shapes = jax.eval_shape(lambda key: model.init(key, **inputs_of(model, full)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


# --- variants --------------------------------------------------------------------------------------------------------------

EXTRA = {
    "mevf": {"maml": (4, 8), "autoencoder": (4, 5), "code": (4, 4, 4, 2), "reconstruction": (4, 16, 16, 1)},
    "maml": {"maml": (4, 8)},
    "autoencoder": {"autoencoder": (4, 5), "code": (4, 4, 4, 2), "reconstruction": (4, 16, 16, 1)},
    "distmodal": {"abdomen": (4, 12), "head": (4, 12), "chest": (4, 12), "organ_logits": (4, 3)},
    "resnet50": {},
}
VECTOR = {"mevf": 13, "maml": 8, "autoencoder": 5, "distmodal": 12, "resnet50": 12}


@pytest.mark.parametrize("name", ["ban", "san"])
@pytest.mark.parametrize("branches", list(INPUTS))
def test_names_and_shapes_of_every_variant(name, branches, batch):
    model = make(name, image_branches=branches)
    assert model.inputs == INPUTS[branches]
    logits, out = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), **x)[0], inputs_of(model, batch))
    assert (logits.shape, logits.dtype) == ((4, 11), jnp.float32)
    of_fusion = {
        "ban": {"attention": (4, 2, 1, 5), "attention_logits": (4, 2, 1, 5), "question_attention": (4, 5)},
        "san": {"attention": (4, 2, 1)},
    }
    common = {"question": (4, 5, 16), "image_vector": (4, VECTOR[branches]), "fused": (4, 16)}
    assert {key: value.shape for key, value in out.items()} == common | EXTRA[branches] | of_fusion[name]


def test_other_question_encoders_and_pooled_branches(batch):
    for fields in (
        {"self_attention": True},
        {"rnn": "gru", "tables": 1},
        {"image_branches": "distmodal", "pool": True},
    ):
        model = make(**fields)
        logits, out = jax.eval_shape(
            lambda x, model=model: model.init_with_output(jax.random.key(0), **x)[0], inputs_of(model, batch)
        )
        assert logits.shape == (4, 11)
    assert out["abdomen"].shape == (4, 8 * SMALL["branch_sizes"]["width"])


def test_wrong_or_missing_images_are_named(batch):
    with pytest.raises(ConfigError, match=r"Did you mean 'distmodal'\?"):
        _ = make(image_branches="distmodel").inputs
    with pytest.raises(ValueError, match="'mevf' needs image_128"):
        make().init(jax.random.key(0), question=batch["question"], image_84=batch["image_84"])


@pytest.mark.slow
def test_jit_and_eager_agree(ban):
    _, variables, inputs, logits, _ = ban
    eager, _ = make().apply(variables, **inputs)
    np.testing.assert_allclose(eager, logits, atol=1e-5)


def test_examples_do_not_see_each_other(ban):
    compiled, variables, inputs, logits, _ = ban
    others = {name: value.at[0].set(value[2]) for name, value in inputs.items()}
    changed, _ = compiled(variables, others)
    np.testing.assert_allclose(changed[1:], logits[1:], atol=1e-5)
    np.testing.assert_allclose(changed[0], logits[2], atol=1e-5)


def test_attention_to_the_words_sums_to_1(ban):
    *_, out = ban
    np.testing.assert_allclose(out["question_attention"].sum(axis=-1), 1, rtol=1e-5)


def test_sans_attention_to_one_vector_is_one(batch):
    model = make("san", stacks=3)
    _, out = apply(model, init(model, batch), batch)
    np.testing.assert_array_equal(out["attention"], np.ones((4, 3, 1)))


def test_training_drops_and_moves_the_statistics(ban):
    model, (_, variables, inputs, *_) = make(), ban

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        (logits, _), updates = model.apply(variables, **inputs, train=True, rngs=rngs, mutable=["batch_stats"])
        return logits, updates["batch_stats"]

    (one, stats), (two, _) = train(1), train(2)
    assert (one != two).any()
    before = variables["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, stats)
    assert all(jax.tree.leaves(moved))


def test_padding_words_get_no_gradient_and_everything_else_does(ban):
    model, (_, variables, inputs, *_) = make(), ban

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, out = model.apply(variables | {"params": params}, **inputs)
        return jnp.sum(logits**2) + jnp.sum(out["reconstruction"] ** 2)

    gradients = gradient(variables["params"])
    for table in gradients["embed"].values():
        assert (table[-1] == 0).all()
        assert (table[:-1] != 0).any()
    # And all of BAN takes part in the two losses.
    flat = jax.tree_util.tree_leaves_with_path(gradients)
    assert all(jnp.isfinite(leaf).all() for _, leaf in flat)
    # A softmax does not see the attention's bias.
    assert all((leaf != 0).any() for path, leaf in flat if "'attention']['bias'" not in jax.tree_util.keystr(path))


def test_vectors_of_zeros_give_finite_numbers(ban):
    compiled, variables, inputs, *_ = ban
    params = jax.tree.map(jnp.zeros_like, variables["params"]["image"])
    variables = variables | {"params": variables["params"] | {"image": params}}
    logits, out = compiled(variables, inputs)
    assert jnp.isfinite(logits).all()
    np.testing.assert_allclose(out["question_attention"], 1 / 5, rtol=1e-6)


def test_bfloat16_stays_close_to_float32(ban, batch):
    _, variables, _, expected, _ = ban
    logits, out = apply(make(dtype="bfloat16"), variables, batch)
    assert {logits.dtype, out["reconstruction"].dtype, out["attention"].dtype} == {jnp.dtype("float32")}
    assert {out[key].dtype for key in ("maml", "autoencoder", "question", "fused")} == {jnp.dtype("bfloat16")}
    assert 0 < jnp.abs(logits - expected).max() < 0.05 * jnp.abs(expected).max()


# --- parts -----------------------------------------------------------------------------------------------------------------


def test_flattening_has_pytorchs_order():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 5, 3, 4).astype(np.float32)  # B, C, H, W
    np.testing.assert_array_equal(channels_first(jnp.asarray(np.moveaxis(x, 1, -1))), x.reshape(2, -1))


@pytest.mark.oracle
def test_maml_branch_trains_as_in_pytorch():
    torch.manual_seed(0)
    convs = [torch.nn.Conv2d(1 if i == 0 else 4, 4, 3, 2, 1) for i in range(4)]
    norms = [torch.nn.BatchNorm2d(4, momentum=0.05) for _ in range(4)]
    image = torch.rand(3, 1, 21, 21)
    x = image
    for conv, norm in zip(convs, norms, strict=True):
        x = norm(torch.relu(conv(x)))
    expected = x.mean(dim=(2, 3))

    def array(t):
        return jnp.asarray(t.detach().numpy())

    params = {
        f"conv_{i + 1}": {"kernel": array(c.weight.permute(2, 3, 1, 0)), "bias": array(c.bias)}
        for i, c in enumerate(convs)
    }
    params |= {f"norm_{i + 1}": {"scale": array(n.weight), "bias": array(n.bias)} for i, n in enumerate(norms)}
    stats = {f"norm_{i}": {"mean": jnp.zeros(4), "var": jnp.ones(4)} for i in range(1, 5)}
    variables = {"params": params, "batch_stats": stats}
    train = jax.jit(lambda *x: MAMLBranch(4).apply(*x, train=True, mutable=["batch_stats"]))
    ours, updates = train(variables, array(image.permute(0, 2, 3, 1)))
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=2e-5)
    for i, norm in enumerate(norms):
        np.testing.assert_allclose(updates["batch_stats"][f"norm_{i + 1}"]["mean"], norm.running_mean, atol=1e-6)
        np.testing.assert_allclose(updates["batch_stats"][f"norm_{i + 1}"]["var"], norm.running_var, atol=1e-6)


def test_autoencoder_halves_the_image_twice():
    image = jnp.zeros((2, 12, 20, 1))
    (code, decoded), _ = jax.eval_shape(lambda x: AutoEncoder(16).init_with_output(jax.random.key(0), x), image)
    assert code.shape == (2, 3, 5, 4)
    assert decoded.shape == image.shape


def fc(p, x):
    w = np.asarray(p["v"], np.float64)
    return x @ (w * (float(p["g"]) / np.linalg.norm(w))) + np.asarray(p["bias"])


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def test_bilinear_attention_to_several_tokens():
    rng = np.random.default_rng(2)
    v, q = rng.standard_normal((2, 3, 5), np.float32), rng.standard_normal((2, 4, 6), np.float32)
    v[0, 1] = 0  # takes no part
    layer = BilinearFusion(width=7, glimpses=2, attention_rank=3)
    params = made_up(jax.eval_shape(lambda *x: layer.init(jax.random.key(0), *x, train=False), v, q))
    joint, attention = jax.jit(lambda *x: layer.apply(*x, train=False))(params, jnp.asarray(v), jnp.asarray(q))
    p = params["params"]
    for b in range(2):
        words = q[b].astype(np.float64)
        image, query = (relu(fc(p["attention"][name], x)) for name, x in (("image", v[b]), ("question", words)))
        h = np.asarray(p["attention"]["v"], np.float64)
        h = h * float(p["attention"]["g"]) / np.linalg.norm(h)
        all_weights = []
        for g in range(2):
            scores = np.array([[np.sum(i * h[g] * j) for j in query] for i in image]) + float(p["attention"]["bias"][g])
            scores[~v[b].any(axis=-1)] = -np.inf
            all_weights.append(softmax(scores))
        np.testing.assert_allclose(attention["weights"][b], all_weights, atol=1e-5)
        for g in range(2):
            image, query = relu(fc(p[f"image_{g}"], v[b])), relu(fc(p[f"question_{g}"], words))
            seen = sum(all_weights[g][i, j] * image[i] * query[j] for i in range(3) for j in range(4))
            words = words + fc(p[f"merge_{g}"], seen)
        np.testing.assert_allclose(joint[b], words.sum(axis=0), rtol=1e-4, atol=1e-4)
    assert (np.asarray(attention["weights"])[0, :, 1] == 0).all()


def test_attention_drops_the_image_a_second_time():
    v, q = jnp.ones((1, 1, 64)), jnp.ones((1, 2, 4))
    layer = BilinearAttention(width=2000, glimpses=1, dropout=0.0, image_dropout=0.5)
    params = made_up(jax.eval_shape(lambda *x: layer.init(jax.random.key(0), *x, train=False), v, q))

    @jax.jit
    def train(seed):
        return layer.apply(params, v, q, train=True, rngs={"dropout": jax.random.key(seed)})[0]

    plain, _ = jax.jit(lambda *x: layer.apply(*x, train=False))(params, v, q)
    dropped = [train(i) for i in range(2)]
    assert (dropped[0] != dropped[1]).any()
    assert (dropped[0] != plain).any()


def test_stacked_attention_to_several_tokens():
    rng = np.random.default_rng(3)
    v, q = rng.standard_normal((2, 3, 5), np.float32), rng.standard_normal((2, 6), np.float32)
    v[1, 2] = 0  # no bias: it stays zero, and takes no part
    layer = StackedAttention(width=7, stacks=3)
    params = made_up(jax.eval_shape(lambda *x: layer.init(jax.random.key(0), *x, train=False), v, q))
    u, weights = jax.jit(lambda *x: layer.apply(*x, train=False))(params, jnp.asarray(v), jnp.asarray(q))
    p = jax.tree.map(np.asarray, params["params"])
    for b in range(2):
        state = q[b].astype(np.float64)
        for k in range(3):
            a = state @ p[f"question_{k}"]["kernel"] + p[f"question_{k}"]["bias"]
            m = v[b] @ p[f"image_{k}"]["kernel"]
            scores = (np.tanh(a + m) @ p[f"score_{k}"]["kernel"] + p[f"score_{k}"]["bias"])[:, 0]
            scores[~m.any(axis=-1)] = -np.inf
            share = softmax(scores)
            np.testing.assert_allclose(weights[b, k], share, atol=1e-5)
            state = (a if k == 0 else state) + share @ m
        np.testing.assert_allclose(u[b], state, atol=1e-5)
    assert (np.asarray(weights)[1, :, 2] == 0).all()


def test_initial_values_follow_the_original(batch):
    model = make(width=200, image_branches="distmodal", image_width=300)

    @jax.jit
    def some(x):
        params = model.init(jax.random.key(0), **x)["params"]
        return params["fusion"]["attention"], params["image"]["abdomen_vector"]

    attention, linear = some(inputs_of(model, batch))
    assert jnp.std(attention["v"]) == pytest.approx(1, rel=0.05)  # a standard normal, not scaled by its size
    np.testing.assert_allclose(attention["g"], np.linalg.norm(attention["v"]), rtol=1e-5)
    assert jnp.std(linear["kernel"]) == pytest.approx((2 / sum(linear["kernel"].shape)) ** 0.5, rel=0.05)
    assert (linear["bias"] == 0).all()
