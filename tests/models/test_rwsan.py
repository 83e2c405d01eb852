"""What RWSAN promises: masks by value, no leak between examples, the same numbers however it is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.errors import ConfigError
from tests.made_up import made_up

SIZES = {"vocab_size": 30, "num_answers": 11}
SMALL = {
    "name": "rwsan",
    "embed_width": 12,
    "width": 32,
    "heads": 4,
    "encoder_passes": 1,
    "decoder_passes": 1,
    "question_rank": 3,
    "region_rank": 5,
    "guided_rank": 6,
    "flatten_width": 10,
    "fused_width": 24,
}


def make(**fields):
    return models.build(SMALL | fields, **SIZES)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    regions = rng.standard_normal((3, 7, 20), dtype=np.float32)
    regions[1, 4:] = 0
    regions[2, 2] = 0  # padding may stand in the middle
    question = rng.integers(1, 30, (3, 6))
    question[1, 3:] = 0
    return jnp.asarray(regions), jnp.asarray(question, jnp.int32)


@pytest.fixture(scope="module")
def larger_inputs():
    """For gradients: XLA on CPU takes minutes to compile those of a few numbers only, but seconds for these."""
    rng = np.random.default_rng(1)
    regions = rng.standard_normal((16, 16, 20), dtype=np.float32)
    return jnp.asarray(regions), jnp.asarray(rng.integers(1, 30, (16, 8)), jnp.int32)


def init(model, key, regions, question):
    return model.init(key, regions=regions, question=question)


def call(model, params, regions, question, **options):
    return model.apply(params, regions=regions, question=question, **options)


@pytest.fixture(scope="module")
def params(inputs):
    return made_up(jax.eval_shape(functools.partial(init, make()), jax.random.key(0), *inputs))


@functools.cache
def jitted(model):
    return jax.jit(functools.partial(call, model))


def apply(model, params, *inputs):
    return jitted(model)(params, *inputs)


def test_published_size_has_the_published_number_of_parameters():
    model = models.build({"name": "rwsan"}, vocab_size=20572, num_answers=3129)
    regions, question = jnp.zeros((1, 100, 2048)), jnp.zeros((1, 16), jnp.int32)
    shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0), regions, question)
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    assert len(sizes) == 73
    assert sum(sizes) == 19_540_139
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_passes_share_their_parameters(inputs, params):
    deeper = jax.eval_shape(
        functools.partial(init, make(encoder_passes=4, decoder_passes=1)), jax.random.key(0), *inputs
    )
    assert jax.tree.map(lambda leaf: leaf.shape, deeper) == jax.tree.map(jnp.shape, params)


def test_initial_values_follow_the_original(inputs):
    regions, question = inputs
    params = jax.jit(functools.partial(init, make(width=256)))(jax.random.key(1), regions, question)["params"]
    up = params["encoder"]["unit"]["feed_forward"]["up"]
    for value in (up["kernel"], up["bias"]):  # a bias is bounded by the number of inputs as well
        assert jnp.abs(value).max() <= 1 / 16
        assert jnp.abs(value).max() > 0.9 / 16
    lstm = params["lstm"]["input_kernel"]  # bounded by the state's size, not by its own number of inputs
    assert 0.9 / 16 < jnp.abs(lstm).max() <= 1 / 16
    norm = params["decoder"]["unit"]["attention_norm"]
    assert (norm["scale"] == 1).all()
    assert (norm["bias"] == 0).all()


def test_names_and_shapes_of_the_intermediates(inputs, params):
    logits, out = apply(make(), params, *inputs)
    text, image = (3, 6, 32), (3, 7, 32)
    assert (logits.shape, logits.dtype) == ((3, 11), jnp.float32)
    assert {name: value.shape for name, value in out.items()} == {
        **dict.fromkeys(("lstm", "encoder_unit_first", "encoder_pass_first", "encoder"), text),
        **dict.fromkeys(("region_input", "decoder_unit_first", "decoder_pass_first", "decoder"), image),
        **dict.fromkeys(("question_flat", "region_flat", "fused"), (3, 24)),
        "question_attention": (3, 6),
        "region_attention": (3, 7),
    }


def test_padding_at_the_end_changes_nothing(inputs, params):
    regions, question = inputs
    more = jnp.pad(regions, ((0, 0), (0, 5), (0, 0))), jnp.pad(question, ((0, 0), (0, 3)))
    expected, _ = apply(make(), params, regions, question)
    logits, out = apply(make(), params, *more)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert (out["region_attention"][:, 7:] == 0).all()
    assert (out["question_attention"][:, 6:] == 0).all()


def test_zero_rows_get_no_attention_and_cancelling_rows_do(inputs, params):
    regions, question = inputs
    cancelling = regions.at[0, 3].set(jnp.where(jnp.arange(20) % 2 == 1, 1.0, -1.0))
    attention = apply(make(), params, cancelling, question)[1]["region_attention"]
    np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-6)
    assert attention[0, 3] > 0
    assert attention[2, 2] == 0
    assert (attention[1, 4:] == 0).all()


def test_examples_do_not_see_each_other(inputs, params):
    regions, question = inputs
    together, _ = apply(make(), params, regions, question)
    for i in range(3):
        alone, _ = apply(make(), params, regions[i : i + 1], question[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)


def test_gradients_do_not_leak_between_examples(larger_inputs, params):
    regions, question = larger_inputs
    gradient = jax.jit(jax.grad(lambda r: jnp.sum(call(make(), params, r, question)[0][0])))(regions)
    assert (gradient[1:] == 0).all()
    assert jnp.abs(gradient[0]).sum() > 0


def test_nothing_but_padding_gives_uniform_attention_and_finite_gradients(larger_inputs, params):
    regions, question = (jnp.zeros_like(x) for x in larger_inputs)

    def loss(params):
        logits, out = call(make(), params, regions, question)
        return jnp.sum(logits**2), out

    (value, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(out["region_attention"], 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(out["question_attention"], 1 / 8, rtol=1e-6)


@pytest.mark.slow
def test_jit_and_eager_agree(inputs, params):
    eager, out = call(make(), params, *inputs)
    jitted, jitted_out = apply(make(), params, *inputs)
    np.testing.assert_allclose(jitted, eager, atol=2e-6)
    for name, value in out.items():
        np.testing.assert_allclose(jitted_out[name], value, atol=2e-6, err_msg=name)


def train_gradient(model, params, inputs):
    def loss(params):
        return jnp.sum(call(model, params, *inputs, train=True, rngs={"dropout": jax.random.key(3)})[0] ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
def test_remat_gives_the_same_gradients_with_dropout(larger_inputs, params):
    passes = {"encoder_passes": 2}
    expected, result = (train_gradient(make(remat=remat, **passes), params, larger_inputs) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_remat_needs_less_memory(inputs):
    regions, question = jnp.zeros((8, 64, 20)), jnp.ones((8, 6), jnp.int32)

    def bytes_needed(remat):
        model = make(remat=remat, decoder_passes=3)
        params = jax.eval_shape(functools.partial(init, model), jax.random.key(0), regions, question)

        def loss(params):
            rngs = {"dropout": jax.random.key(3)}
            return jnp.sum(call(model, params, regions, question, train=True, rngs=rngs)[0])

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(True) < 0.7 * bytes_needed(False)


def test_bfloat16_stays_close_to_float32(inputs, params):
    expected, _ = apply(make(), params, *inputs)
    logits, out = apply(make(dtype="bfloat16"), params, *inputs)
    assert logits.dtype == jnp.float32
    assert out["decoder"].dtype == jnp.bfloat16
    assert out["region_attention"].dtype == jnp.float32
    assert 0 < jnp.abs(logits - expected).max() < 0.05 * jnp.abs(expected).max()


def test_masks_come_from_float16_features_as_stored(inputs, params):
    regions, question = inputs
    stored = regions.at[0, 0].set(0).astype(jnp.float16).at[0, 0, 5].set(6e-8)  # the smallest float16: not padding
    assert apply(make(), params, stored, question)[1]["region_attention"][0, 0] > 0


def test_dropout_is_off_in_evaluation_and_follows_its_key(inputs, params):
    model = make(dropout=0.5)

    @jax.jit
    def train(seed):
        return call(model, params, *inputs, train=True, rngs={"dropout": jax.random.key(seed)})[0]

    np.testing.assert_array_equal(train(1), train(1))
    assert (train(1) != train(2)).any()
    np.testing.assert_array_equal(apply(model, params, *inputs)[0], apply(make(), params, *inputs)[0])
    assert (train(1) != apply(model, params, *inputs)[0]).any()


def test_build_names_every_fault():
    config = {"name": "rwsan", "widht": 3, "width": 30, "dtype": "bfloat"}
    with pytest.raises(ConfigError) as error:
        models.build(config, vocab_size=3)
    for part in ("'width'", "num_answers is missing", "'bfloat16'", "does not divide"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match=r"Did you mean 'rwsan' or 'san'\?"):
        models.build({"name": "rwsam"})
    with pytest.raises(ConfigError, match="follows from the data"):
        models.build({"name": "rwsan", "vocab_size": 4}, vocab_size=4, num_answers=3)
