"""What Flamingo promises: the original's numbers of each year, samples and padding apart, each word its own image."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models, optim, paths
from jaxvqa.errors import ConfigError
from jaxvqa.golden import runner
from jaxvqa.models.flamingo_quirks import FREEZE, PUBLISHED, Quirks
from jaxvqa.models.layers.perceiver import visible_media
from jaxvqa.models.towers.gpt2 import GPT2
from jaxvqa.models.towers.regions import Regions
from jaxvqa.models.towers.resnet import PatchResNet
from tests.made_up import made_up

GOLDEN = Path(__file__).parent.parent / "golden" / "flamingo"
IMAGE, WORDS = 10, 12
LANGUAGE = {"width": 16, "depth": 3, "heads": 2, "positions": 16}
SMALL = {
    "name": "flamingo",
    "vocab_size": WORDS,
    "image_token": IMAGE,
    "num_answers": 3,
    "language_sizes": LANGUAGE,
    "vision_sizes": {"patch": 4, "width": 8, "depth": 1, "heads": 2, "features": 6},
    "every": 2,
    "latents": 3,
    "resampler_depth": 1,
    "cross_heads": 2,
    "cross_head_width": 4,
}


def make(**fields):
    return models.build(SMALL | fields)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    text = rng.integers(0, 9, (2, 8))
    text[0, [2, 5]] = text[1, 0] = IMAGE
    real = np.arange(8)[None] < np.array([[8], [5]])
    return {
        "text": jnp.asarray(text, jnp.int32),
        "text_mask": jnp.asarray(real),
        "image": jnp.asarray(rng.standard_normal((2, 2, 8, 8, 3), dtype=np.float32)),
        "question_end": jnp.asarray([7, 3], jnp.int32),
    }


def gates_of(params):
    return {path: gate for path, gate in paths.flatten(params).items() if path.endswith("_gate")}


@pytest.fixture(scope="module")
def params(inputs):
    """Parameters whose gates are open."""
    made = made_up(jax.eval_shape(lambda key: make().init(key, **inputs), jax.random.key(0)))["params"]
    return paths.nest(paths.flatten(made) | {path: jnp.full_like(gate, 0.7) for path, gate in gates_of(made).items()})


@pytest.fixture(scope="module")
def fresh(inputs, params):
    """The same parameters with the gates as they are initialised."""
    gates = jax.jit(lambda key: gates_of(make().init(key, **inputs)["params"]))(jax.random.key(0))
    return paths.nest(paths.flatten(params) | gates)


@pytest.fixture(scope="module")
def call():
    model = make()
    return jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs))


# --- the original ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "outputs"),
    [
        ("resampler_small", 5),
        ("gated_xattn_small", 6),
        ("palm_small", 3),
        ("flamingo_small", 23),
        pytest.param("flamingo_head_text_small", 11, marks=pytest.mark.slow),
        pytest.param("flamingo_report_small", 6, marks=pytest.mark.slow),
        pytest.param("flamingo_bert_small", 19, marks=pytest.mark.slow),
        pytest.param("flamingo_train_small", 106, marks=pytest.mark.slow),
    ],
)
def test_given_cases(case, outputs):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert [row for row in rows if row.decides and not row.passed] == []
    assert len(rows) == outputs


@pytest.mark.slow
@pytest.mark.parametrize("case", ["resampler_full", "flamingo_full"])
def test_full_size_golden_cases(case, jaxvqa_data):
    rows = runner.run(jaxvqa_data / "reference" / "flamingo" / f"{case}.manifest.json")
    assert len(rows) > 8
    assert [row for row in rows if not row.passed] == []


def test_published_size_has_the_published_number_of_parameters():
    model = models.build({"name": "flamingo", "compat": "2022"} | SIZES)
    inputs = {"text": jnp.zeros((1, 2), jnp.int32), "image": jnp.zeros((1, 224, 224, 3))}
    inputs["question_end"] = jnp.zeros((1,), jnp.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 250_431_316
    for mode, count in (("flamingo_mode", 77_526_868), ("vision", 162_582_100)):
        frozen = paths.flatten(paths.lookup(FREEZE[mode], shapes, "optim.freeze"))
        assert sum(leaf.size for path, leaf in paths.flatten(shapes).items() if not frozen[path]) == count


SIZES = {"vocab_size": 50261, "image_token": 50258, "num_answers": 332, "language_sizes": {"positions": 256}}

# --- the default -------------------------------------------------------------------------------------------------------


def test_without_images_or_with_fresh_gates_it_is_the_language_model(inputs, fresh, params, call):
    text = {"text": inputs["text"], "text_mask": inputs["text_mask"]}
    tower = GPT2(vocab_size=WORDS, **LANGUAGE)
    expected, _ = jax.jit(tower.apply)({"params": params["language"]}, inputs["text"], inputs["text_mask"])
    logits, out = call(params, text)
    real = np.asarray(inputs["text_mask"])
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-6)
    assert "class_logits" not in out
    with_images, _ = call(fresh, inputs)
    np.testing.assert_allclose(with_images[real], expected[real], atol=1e-6)
    opened, out = call(params, inputs)
    assert jnp.abs(opened - expected)[0, 2:].max() > 1e-3
    assert {name: out[name].shape for name in ("latents", "projected", "class_logits", "media_attention_2")} == {
        "latents": (2, 2, 3, 16),
        "projected": (2, 2, 16),
        "class_logits": (2, 3),
        "media_attention_2": (2, 2, 8, 6),
    }


def test_each_word_reads_the_last_image_before_it(inputs, params, call):
    """Through a cross-attention of its own; earlier images reach it only through words between."""
    logits, out = call(params, inputs)
    maps = np.asarray(out["media_attention_0"])
    np.testing.assert_array_equal(maps[0, :, :2], 0)
    np.testing.assert_allclose(maps[0, :, 2:5, :3].sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(maps[0, :, 2:5, 3:], 0)
    np.testing.assert_allclose(maps[0, :, 5:, 3:].sum(-1), 1, rtol=1e-6)
    other, other_out = call(params, inputs | {"image": inputs["image"].at[:, 1].add(1.0)})
    np.testing.assert_array_equal(other[0, :5], logits[0, :5])
    assert (other[0, 5:] != logits[0, 5:]).any(axis=-1).all()
    # What stands behind a sample's own images changes nothing.
    np.testing.assert_array_equal(other[1], logits[1])
    np.testing.assert_array_equal(other_out["class_logits"][1], out["class_logits"][1])


def test_what_is_seen_in_each_form():
    count = jnp.asarray([[0, 1, 2, 3]])
    sees, reads = visible_media(count, 2)
    np.testing.assert_array_equal(sees[0], [[0, 0], [1, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(reads[0], [0, 1, 1, 0])
    sees, reads = visible_media(count, 2, immediate=False)
    np.testing.assert_array_equal(sees[0], [[0, 0], [1, 0], [1, 1], [1, 1]])
    _, reads = visible_media(count, 2, uniform_before=True, uniform_beyond=True)
    assert reads.all()


def test_padding_on_either_side_changes_nothing(inputs, params, call):
    logits, out = call(params, inputs)
    left = jnp.roll(inputs["text"][1], 3).at[:3].set(5)
    moved = inputs | {"text": inputs["text"].at[1].set(left), "question_end": jnp.asarray([7, 6], jnp.int32)}
    moved["text_mask"] = inputs["text_mask"].at[1].set(jnp.arange(8) >= 3)
    again, out_again = call(params, moved)
    np.testing.assert_allclose(again[1, 3:], logits[1, :5], atol=1e-5)
    np.testing.assert_allclose(out_again["class_logits"], out["class_logits"], atol=1e-5)
    behind = inputs | {"text": inputs["text"].at[1, 5:].set(7)}
    np.testing.assert_array_equal(call(params, behind)[0][1, :5], logits[1, :5])


def test_frozen_parameters_have_no_gradient_and_may_be_short(inputs, params, call):
    model = make()

    def loss(params):
        logits, out = model.apply({"params": optim.without_frozen_gradients(params, FREEZE["flamingo_mode"])}, **inputs)
        return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.sin(out["class_logits"]))

    short = optim.shorten_frozen(params, FREEZE["flamingo_mode"])
    gradient = paths.flatten(jax.jit(jax.grad(loss))(short))
    frozen = paths.flatten(paths.lookup(FREEZE["flamingo_mode"], params, "optim.freeze"))
    assert sum(frozen.values()) == 16 + 8 + 3 * 16 + 2
    for path, value in gradient.items():
        assert value.dtype == (jnp.bfloat16 if frozen[path] else jnp.float32), path
        assert bool(jnp.any(value)) != frozen[path], path
    exact, _ = call(params, inputs)
    rounded, _ = call(short, inputs)
    assert 0 < jnp.abs(rounded - exact).max() < 0.03 * jnp.abs(exact).max()


def test_texts_side_by_side_may_share_their_images(inputs, params, call):
    logits, out = call(params, inputs | {"image": jnp.repeat(inputs["image"][:1], 2, axis=0)})
    shared, shared_out = call(params, inputs | {"image": inputs["image"][:1]})
    np.testing.assert_allclose(shared, logits, atol=1e-5)
    assert shared_out.keys() == out.keys()
    for name, value in out.items():
        assert shared_out[name].shape == value.shape, name
    np.testing.assert_allclose(shared_out["class_logits"], out["class_logits"], atol=1e-5)


# --- for a small network from nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [0.0, 0.5])
def test_gates_start_where_they_are_reported_to(inputs, gate):
    @jax.jit
    def start(key):
        params = make(gate=gate).init(key, **inputs)["params"]
        return [
            params[name][kind] for name in ("cross_0", "cross_2") for kind in ("attention_gate", "feed_forward_gate")
        ]

    np.testing.assert_array_equal(start(jax.random.key(0)), np.full((4, 1), gate, np.float32))


def test_a_residual_network_gives_the_places_of_its_last_map():
    tower = PatchResNet(depth=10, width=4, features=0)
    pictures = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 64, 3), dtype=np.float32))
    variables = jax.jit(tower.init)(jax.random.key(0), pictures)
    vector, out = jax.jit(tower.apply)(variables, pictures)
    assert out["tokens"].shape == (2, 1 + 2 * 2, 32)
    places = out["tokens"][:, 1:] - variables["params"]["position"][None]
    np.testing.assert_allclose(vector, places.mean(axis=1), atol=1e-5)
    np.testing.assert_array_equal(out["tokens"][:, 0], vector)


def test_regions_are_read_as_they_are_and_padding_counts_for_nothing():
    features = np.random.default_rng(0).random((2, 3, 1, 5), np.float32)
    features[1, 2] = 0
    vector, out = Regions().apply({}, jnp.asarray(features))
    np.testing.assert_array_equal(out["tokens"][:, 1:], features[:, :, 0])
    np.testing.assert_allclose(vector[1], features[1, :2, 0].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(vector[0], features[0, :, 0].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(out["real"], [[True] * 4, [True] * 3 + [False]])


def test_padding_of_regions_changes_nothing(inputs):
    model = make(vision="regions", vision_sizes={}, patches=True)
    rows = np.random.default_rng(0).random((2, 3, 1, 6), np.float32)
    given = inputs | {"image": jnp.asarray(rows)}
    padded = jnp.pad(given["image"], ((0, 0), (0, 4), (0, 0), (0, 0)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), **given)
    random = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), shapes)
    see = jax.jit(lambda image: model.apply(variables, image=image, method="see")[0])
    np.testing.assert_allclose(see(given["image"]), see(padded), atol=1e-5)


def test_what_has_no_projected_vector_is_read_by_its_patches(inputs):
    with pytest.raises(ConfigError, match=r"set model\.patches"):
        jax.eval_shape(make(vision="resnet", vision_sizes={}).init, jax.random.key(0), **inputs)


# --- faults ------------------------------------------------------------------------------------------------------------


def test_names_of_compat():
    def names(compat):
        return {name for name, there in dataclasses.asdict(Quirks.parse(compat)).items() if there}

    assert names("") == set()
    assert names("2022, first_sample") == {*PUBLISHED["2022"], "first_sample"}
    assert names("2022") - names("2023") == {"uniform_before_media"}
    with pytest.raises(
        ConfigError, match=r"compat has 'one_media': choose mlmi_gpt2, .* or 2023\. Did you mean 'one_medium'"
    ):
        Quirks.parse("2022,one_media")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"language": "gpt"}, "model.language is 'gpt', not a language model: .*Did you mean 'gpt2'"),
        ({"head": "images"}, "model.head is 'images': .*Did you mean 'image'"),
        ({"media": 1}, "2 media; model.media allows 1"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(fields, message, inputs):
    model = make(**fields)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda key: model.init(key, **inputs), jax.random.key(0))
