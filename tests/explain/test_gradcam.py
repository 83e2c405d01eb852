"""Attention maps with gradients, for each word: of BLIP's tasks, from a run to a figure."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.errors import ConfigError
from jaxvqa.explain.attention import explain
from jaxvqa.explain.overlay import figure, smooth_overlay
from jaxvqa.runs import Run
from jaxvqa.tasks.attention_gradient import read_at, token_maps
from tests import runs

command = importlib.import_module("jaxvqa.explain.__main__")

CAPTIONS, QUESTIONS = "phantom_vqa/tiny_captions", "phantom_vqa/tiny_questions"
CONFIGS = {
    "blip_pretrain": {"data.examples": CAPTIONS, "loss.queue": 16},
    "blip_caption": {"data.examples": CAPTIONS, "generate.max_length": 10},
    "blip_vqa": {"data.examples": QUESTIONS, "data.answers.min_count": 1, "ranking.first": 4},
}


@pytest.fixture(
    scope="module", params=["blip_pretrain", "blip_vqa", pytest.param("blip_caption", marks=pytest.mark.slow)]
)
def explained(request, phantoms, tmp_path_factory):
    """A run with made-up parameters, and what explains two of its examples."""
    config = configs.load(f"configs/{request.param}.py:pixels,small")
    changes = {
        "data.dir": str(phantoms),
        "data.images": "phantom_vqa/tiny_images",
        "batch_size": 16,
        "data.image_size": 64,
    }
    changes |= {"data.vocabulary_parts": (CAPTIONS, QUESTIONS), "model.text_sizes.depth": 2} | CONFIGS[request.param]
    configs.override(config, [(name, str(value)) for name, value in changes.items()])
    workdir = tmp_path_factory.mktemp(request.param)
    runs.write(config, workdir)
    run = Run.open(workdir)
    return run, explain(run, positions=[0, 9])


def test_each_word_has_a_map_over_the_whole_image(explained):
    _, found = explained
    for e in found:
        assert e.words
        assert tuple(one.label for one in e.maps) == e.words
        assert not {"[PAD]", "[SEP]", "[DEC]", "[ENC]"} & set(e.words)
        side = len(e.boxes) ** 0.5
        assert side == round(side)
        np.testing.assert_allclose([*e.boxes.min(0)[:2], *e.boxes.max(0)[2:]], [0, 0, *e.size])
        for one in e.maps:
            assert one.smooth
            assert one.weights.min() >= 0
            np.testing.assert_allclose(one.weights.sum(), 1 if one.weights.any() else 0, atol=1e-5)
        assert any(one.weights.any() for one in e.maps)
        np.testing.assert_allclose(e.word_attention.sum(), 1, atol=1e-5)
        assert 0 <= e.answers[0][1] <= 1


def test_other_examples_of_a_batch_change_nothing(explained):
    run, found = explained
    again, _ = explain(run, positions=[9, 3])
    for a, b in zip(again.maps, found[1].maps, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-4)


def test_a_figure_has_a_panel_for_each_word(explained):
    (e, _) = explained[1]
    assert set(e.words) <= {axes.get_title() for axes in figure(e).axes}


def test_the_function_is_chosen_by_name(explained):
    run, (ours, _) = explained
    with pytest.raises(ConfigError, match=r"by 'explain_los'.*explain_loss"):
        explain(run, predict="explain_los")
    if run.config.task == "image_text":  # the others' code is the same
        (theirs,) = explain(run, positions=[0], predict="explain_loss")
        assert (ours.words, ours.answers[0][0]) == (theirs.words, theirs.answers[0][0])
        assert any(not np.allclose(a.weights, b.weights) for a, b in zip(ours.maps, theirs.maps, strict=True))


def test_a_score_and_its_loss_share_the_evidence():
    rng = np.random.default_rng(0)
    attention = jnp.asarray(rng.random((1, 2, 3, 5)), jnp.float32)
    gradient = jnp.asarray(rng.standard_normal((1, 2, 3, 5)), jnp.float32)
    mask = jnp.asarray([[True, True, False]])
    ours, theirs = (np.asarray(token_maps(attention, sign * gradient, mask)) for sign in (1, -1))
    expected = np.mean(attention * np.abs(gradient), axis=1)[:, :, 1:] * mask[:, :, None]
    np.testing.assert_allclose(ours + theirs, expected, rtol=1e-5)


@pytest.mark.parametrize(("depth", "block"), [(12, 8), (24, 16), (3, 1), (2, 0), (1, 0)])
def test_the_block_is_two_thirds_up_and_not_the_last(depth, block):
    assert read_at(depth) == block


def test_a_map_of_zeros_leaves_the_image_and_a_peak_is_drawn_where_it_is():
    image = np.full((64, 48, 3), 90, np.uint8)
    np.testing.assert_array_equal(smooth_overlay(image, np.zeros(16, np.float32)), image)
    weights = np.zeros((4, 4), np.float32)
    weights[1, 3] = 1
    changed = np.abs(smooth_overlay(image, weights.ravel()).astype(int) - image).sum(-1)
    top, left = np.unravel_index(changed.argmax(), changed.shape)
    assert 16 <= top < 32
    assert 36 <= left < 48
