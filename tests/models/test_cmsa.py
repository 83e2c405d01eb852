"""What CMSA promises: the original's numbers, short-cuts that change nothing, padding without a gradient."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jaxvqa import models
from jaxvqa.errors import ConfigError
from jaxvqa.golden import runner
from jaxvqa.models.cmsa import CMSA
from jaxvqa.models.layers.non_local import Mixture, NonLocal, cross_modal_map, spatial_map
from jaxvqa.models.layers.query_norm import sinusoids
from jaxvqa.models.question import QuestionEncoder, WordEmbedding
from tests.made_up import made_up

GOLDEN = Path(__file__).parent.parent / "golden" / "cmsa"
SIZES = {"vocab_size": 30, "num_answers": 11}
SMALL = {"name": "cmsa", "embed_width": 6, "width": 16, "branch": "resnet10", "branch_sizes": FrozenDict(width=4)}
SMALL |= {"organ_width": 4, "organ_hidden": 8}


def make(**fields):
    return models.build(SMALL | fields, **SIZES)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    question = rng.integers(0, 30, (4, 5))
    question[1, 3:] = 30  # padding
    image = rng.standard_normal((4, 64, 96, 3), dtype=np.float32)
    return {"image": jnp.asarray(image), "question": jnp.asarray(question, jnp.int32)}


BLOCKS = ("block_0", "block_1")


def with_norms(variables, norms):
    """The variables with other normalisations at the ends of the non-local blocks."""
    params = variables["params"]
    return variables | {"params": params | {name: params[name] | {"norm": norms[name]} for name in BLOCKS}}


@pytest.fixture(scope="module")
def variables(inputs):
    """Variables whose non-local blocks add something: at first they are the identity."""
    variables = made_up(jax.eval_shape(lambda key: make().init(key, **inputs), jax.random.key(0)))
    norms = {name: variables["params"][name]["norm"] for name in BLOCKS}
    values = {"scale": 0.5, "bias": 0.1}
    return with_norms(
        variables, {name: {k: jnp.full_like(v, values[k]) for k, v in norm.items()} for name, norm in norms.items()}
    )


@functools.cache  # three residual networks take long to compile: once for all tests
def compiled(model):
    return jax.jit(lambda v, x: model.apply(v, **x))


def apply(model, variables, inputs):
    return compiled(model)(variables, inputs)


@functools.cache
def compiled_step(model):
    def loss(params, statistics, inputs, seed):
        (logits, out), changed = model.apply(
            {"params": params, "batch_stats": statistics},
            **inputs,
            train=True,
            mutable="batch_stats",
            rngs={"dropout": jax.random.key(seed)},
        )
        return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.sin(out["organ_logits"])), changed["batch_stats"]

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def train(model, variables, inputs, seed=3):
    """Loss, gradients of the parameters and new statistics of a training step."""
    step = compiled_step(model)
    (value, changed), gradient = step(variables["params"], variables["batch_stats"], inputs, seed)
    return value, gradient, changed


# --- the original ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "outputs"), [("small", 15), ("small_train", 27), ("small_selfatt", 15)])
def test_given_cases(case, outputs, float64_alone):
    rows = runner.run(GOLDEN / f"cmsa_{case}.manifest.json")
    assert not [row for row in rows if row.passed is False]
    assert sum(row.passed is True for row in rows) == outputs + 2  # the checkpoint's way there and back, and its sizes


@pytest.mark.slow
def test_the_given_training_case_in_both_precisions():
    rows = runner.run(GOLDEN / "cmsa_small_train.manifest.json")
    assert not [row for row in rows if row.passed is False]
    assert sum(row.passed is True for row in rows) == 33 + 2


def test_published_size_has_the_published_number_of_parameters():
    model = models.build({"name": "cmsa"}, vocab_size=1177, num_answers=458)
    inputs = {"image": jnp.zeros((1, 224, 224, 3)), "question": jnp.zeros((1, 12), jnp.int32)}
    shapes = jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes["params"].items()}
    assert sum(counts.values()) == 86_020_215
    assert counts["embed"] == 471_200
    assert counts["block_0"] + counts["block_1"] == 9_549_640
    assert counts["abdomen"] == counts["head"] == counts["chest"] == 21_284_672
    assert counts["organ"] == 1_684_739
    assert len(jax.tree.leaves(shapes["params"])) == 376
    assert CMSA.inputs == ("image", "question")


# --- its parts ---------------------------------------------------------------------------------------------------------


def spelt_out(variables, x, train):
    """A non-local block over [B, N, D], computed as the paper writes it."""
    p = variables["params"]
    theta, phi, value = (x @ p[name]["kernel"] + p[name]["bias"][None, None] for name in ("theta", "phi", "value"))
    weights = jax.nn.softmax(jnp.einsum("bni,bmi->bnm", theta, phi), axis=-1)
    y = jnp.einsum("bnm,bmi->bni", weights, value) @ p["project"]["kernel"] + p["project"]["bias"][None, None]
    mean, var = (variables["batch_stats"]["norm"][name] for name in ("mean", "var"))
    if train:
        mean, var = y.mean(axis=(0, 1)), y.var(axis=(0, 1))
    y = (y - mean[None, None]) / jnp.sqrt(var + 1e-5)[None, None]
    return y * p["norm"]["scale"][None, None] + p["norm"]["bias"][None, None], weights


@pytest.mark.parametrize("train", [False, True])
def test_block_gives_what_the_spelt_out_one_does(train):
    keys = jax.random.split(jax.random.key(0), 6)
    words, image = jax.random.normal(keys[0], (3, 4, 10)), jax.random.normal(keys[1], (3, 2, 3, 8))
    block = NonLocal()
    x = cross_modal_map(words, image, spatial=True)
    variables = block.init(keys[2], x, train=False)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(keys[3], p.shape), variables["params"])
    variables = {"params": params, "batch_stats": {"norm": {"mean": jnp.full(26, 0.1), "var": jnp.full(26, 2.0)}}}

    def short(params, words, image):
        x = cross_modal_map(words, image, spatial=True)
        (added, out), changed = block.apply(variables | {"params": params}, x, train=train, mutable="batch_stats")
        twice, _ = block.apply(variables | {"params": params}, added + x * 2.0, train=train, mutable="batch_stats")[0]
        return jnp.sum(jnp.sin((twice + added + x * 2.0).dense())), (added.dense(), out["attention"], changed)

    def long(params, words, image):
        x = cross_modal_map(words, image, spatial=True).dense()
        added, attention = spelt_out(variables | {"params": params}, x, train)
        twice, _ = spelt_out(variables | {"params": params}, added + x * 2.0, train)
        return jnp.sum(jnp.sin(twice + added + x * 2.0)), (added, attention)

    def run(function):
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(params, words, image)

    (value, (added, attention, changed)), gradients = run(short)
    (expected, (added_expected, attention_expected)), gradients_expected = run(long)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(added, added_expected, atol=1e-4)
    np.testing.assert_allclose(attention, attention_expected, atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradients_expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3)
    moved = jnp.abs(changed["batch_stats"]["norm"]["mean"] - 0.1).max() > 0
    assert moved == train


def test_blocks_begin_as_the_identity(inputs, variables):
    def norms(key):
        params = make().init(key, **inputs)["params"]
        return {name: params[name]["norm"] for name in BLOCKS}

    _, out = apply(make(), with_norms(variables, jax.jit(norms)(jax.random.key(0))), inputs)
    np.testing.assert_array_equal(out["block_0"], out["map"])
    np.testing.assert_allclose(out["block_1"], 2 * out["map"], rtol=1e-6)


def test_mixtures_add_and_scale():
    keys = jax.random.split(jax.random.key(0), 4)
    a, b = (
        Mixture(jax.nn.softmax(jax.random.normal(keys[i], (2, 5, k))), jax.random.normal(keys[i + 2], (2, k, 6)))
        for i, k in enumerate((3, 4))
    )
    together = a * 3.0 + b
    np.testing.assert_allclose(together.dense(), 3 * a.dense() + b.dense(), atol=1e-5)
    np.testing.assert_allclose(together.weights.sum(axis=-1), 1, rtol=1e-6)


def test_map_holds_image_word_and_place():
    words, image = jnp.arange(12.0).reshape(1, 3, 4), 100 + jnp.arange(12.0).reshape(1, 2, 2, 3)
    dense = cross_modal_map(words, image, spatial=True).dense().reshape(3, 2, 2, 15)
    np.testing.assert_array_equal(dense[..., :3], np.broadcast_to(image, (3, 2, 2, 3)))
    np.testing.assert_array_equal(dense[..., 3:7], np.broadcast_to(words[0, :, None, None], (3, 2, 2, 4)))
    np.testing.assert_array_equal(dense[1, ..., 7:], spatial_map(2, 2))
    assert cross_modal_map(words, image, spatial=False).dense().shape == (1, 12, 7)


def test_spatial_map_has_the_originals_channels():
    cells = spatial_map(2, 4)
    np.testing.assert_allclose(cells[1, 3], [0.5, 0, 1, 1, 0.75, 0.5, 1 / 4, 1 / 2])
    np.testing.assert_allclose(cells[0, 0], [-1, -1, -0.5, 0, -0.75, -0.5, 1 / 4, 1 / 2])


def test_padding_word_is_looked_up_but_gets_no_gradient():
    layer = WordEmbedding(5, 3)
    question = jnp.asarray([[0, 4, 5, 5]], jnp.int32)
    params = layer.init(jax.random.key(0), question)["params"]
    assert params["table_0"].shape == params["table_1"].shape == (6, 3)
    assert (params["table_0"][5] == 0).all()
    params = jax.tree.map(lambda table: table.at[5].set(7.0), params)
    words = layer.apply({"params": params}, question)
    np.testing.assert_array_equal(words[0, 2:], 7)
    np.testing.assert_array_equal(words[0, 1], jnp.concatenate([params["table_0"][4], params["table_1"][4]]))
    gradient = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, question)))(params)
    for table in gradient.values():
        np.testing.assert_array_equal(table[:, 0], [1, 0, 0, 0, 1, 0])
    assert WordEmbedding(5, 3, tables=1).init(jax.random.key(0), question)["params"].keys() == {"table_0"}


def test_question_encoders():
    words = jax.random.normal(jax.random.key(0), (2, 4, 6))
    for fields, width in (({}, 8), ({"rnn": "gru"}, 8), ({"self_attention": True}, 6)):
        encoder = QuestionEncoder(8, **fields)
        params = encoder.init(jax.random.key(1), words, train=False)
        assert encoder.apply(params, words, train=False).shape == (2, 4, width)
    with pytest.raises(ConfigError, match=r"Did you mean 'lstm'\?"):
        QuestionEncoder(8, "lsdm").init(jax.random.key(1), words, train=False)
    table = sinusoids(3, 5)
    np.testing.assert_allclose(table[0], [0, 1, 0, 1, 0])
    np.testing.assert_allclose(table[2, 2], np.sin(2 / 10000 ** (2 / 5)), rtol=1e-6)
    np.testing.assert_allclose(table[2, 3], np.cos(2 / 10000 ** (2 / 5)), rtol=1e-6)


# --- the whole ---------------------------------------------------------------------------------------------------------


def test_names_and_shapes_of_the_intermediates(inputs, variables):
    logits, out = apply(make(), variables, inputs)
    assert (logits.shape, logits.dtype) == ((4, 11), jnp.float32)
    assert {name: value.shape for name, value in out.items()} == {
        **dict.fromkeys(("abdomen", "head", "chest", "image_map"), (4, 2, 3, 32)),
        **dict.fromkeys(("map", "block_0", "map_1", "block_1"), (4, 5, 2, 3, 56)),
        **dict.fromkeys(("theta_0", "phi_0", "value_0"), (4, 5, 2, 3, 28)),
        **dict.fromkeys(("question", "read", "joint"), (4, 5, 16)),
        **dict.fromkeys(("attention_0", "attention_1"), (4, 5, 2, 3)),
        "organ_logits": (4, 3),
        "question_attention": (4, 5),
        "region_attention": (4, 2, 3),
        "pooled": (4, 5, 56),
        "fused": (4, 16),
    }
    share = jax.nn.softmax(out["organ_logits"])[..., None, None, None]
    mixed = share[:, 0] * out["abdomen"] + share[:, 1] * out["head"] + share[:, 2] * out["chest"]
    np.testing.assert_allclose(out["image_map"], mixed, atol=1e-5)
    np.testing.assert_allclose(out["pooled"], out["block_1"].mean(axis=(2, 3)), atol=1e-4)
    np.testing.assert_allclose(out["fused"], out["joint"].sum(axis=1), atol=1e-4)
    for name in ("attention_0", "attention_1"):
        np.testing.assert_allclose(out[name].sum(axis=(2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(out["region_attention"], out["attention_1"].mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(out["question_attention"].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"self_attention": True, "cross_attention": True},
        {"rnn": "gru", "spatial": False, "tables": 1},
        {"branch": "resnet50"},
        {"branch": "RepVGG-B0", "branch_sizes": {"widths": (2, 3, 4, 5, 6)}},
    ],
)
def test_every_option_trains(inputs, fields):
    model = make(**fields)
    shapes = jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))
    logits, changed = jax.eval_shape(
        lambda v: model.apply(v, **inputs, train=True, mutable="batch_stats", rngs={"dropout": jax.random.key(0)}),
        shapes,
    )
    assert logits[0].shape == (4, 11)
    assert jax.tree.map(jnp.shape, changed["batch_stats"]) == jax.tree.map(jnp.shape, shapes["batch_stats"])


def test_examples_do_not_see_each_other_in_evaluation(inputs, variables):
    together, _ = apply(make(), variables, inputs)
    others = {name: value.at[0].set(value[2]).at[2:].set(value[0]) for name, value in inputs.items()}
    np.testing.assert_allclose(apply(make(), variables, others)[0][1], together[1], atol=1e-5)


@pytest.mark.slow  # golden training cases hold the same against the original's numbers
def test_training_moves_statistics_and_reaches_every_parameter(inputs, variables):
    _, gradient, changed = train(make(), variables, inputs)
    for before, after in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(changed), strict=True):
        assert (before != after).any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path
    for table in gradient["embed"].values():
        assert (table[-1] == 0).all()


@pytest.mark.slow
def test_remat_changes_neither_gradients_nor_statistics(inputs, variables):
    expected, result = (
        train(make(branch_sizes=FrozenDict(width=4, remat=remat)), variables, inputs) for remat in (False, True)
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * max(1.0, float(jnp.abs(a).max())))


def test_dropout_is_off_in_evaluation_and_follows_its_key(inputs, variables):
    model = make()
    one, again, other = (train(model, variables, inputs, seed=seed)[0] for seed in (1, 1, 2))
    assert one == again
    assert one != other
    logits, _ = apply(model, variables, inputs)
    np.testing.assert_array_equal(apply(model, variables, inputs)[0], logits)


def test_bfloat16_stays_close_to_float32(inputs, variables):
    expected, _ = apply(make(), variables, inputs)
    logits, out = apply(make(dtype="bfloat16"), variables, inputs)
    assert logits.dtype == out["organ_logits"].dtype == out["attention_1"].dtype == jnp.float32
    assert out["block_1"].dtype == out["image_map"].dtype == jnp.bfloat16
    assert 0 < jnp.abs(logits - expected).max() < 0.05 * jnp.abs(expected).max()
