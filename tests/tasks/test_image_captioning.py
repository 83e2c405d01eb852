"""Captions: what is learned is what is written, the prompt is not learned, and rules of the published search hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvqa import configs
from jaxvqa.decoding import rules
from jaxvqa.errors import ConfigError
from jaxvqa.tasks import task_without_data
from jaxvqa.tasks.image_captioning import search_of


def config_with(**changes):
    config = configs.load("configs/blip_caption.py:pixels,small")
    everything = {"compile.vocab_size": 40, "batch_size": 2, "data.image_size": 16, "model.vision_sizes.patch": 8}
    everything |= {"data.max_tokens": 9, "generate.max_length": 9, "generate.min_length": 1, "data.prompt": ""}
    everything |= {"model.text_sizes.dropout": 0.0} | {name.replace("__", "."): v for name, v in changes.items()}
    configs.override(config, [(key, str(value)) for key, value in everything.items()])
    return config


@pytest.fixture(scope="module")
def fitted():
    """A captioner fitted to one caption for each of two images."""
    task = task_without_data(config_with())
    words = task.tokenizer
    captions = [[7, 8, 9, 7, 11], [12, 13]]
    text = np.full((2, 9), words.padding, np.int32)
    for row, ids in zip(text, captions, strict=True):
        row[: len(ids) + 2] = [words.decode_begin, *ids, words.end]
    batch = {
        "image": jnp.asarray(np.stack([np.zeros((16, 16, 3)), np.full((16, 16, 3), 255)]), jnp.uint8),
        "text": jnp.asarray(text),
        "text_mask": jnp.asarray(text != words.padding),
        "mask": jnp.ones(2),
    }
    params = jax.jit(task.init)(jax.random.key(0))["params"]
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, {}, batch, {}, train=False)[0])(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=150)
    return task, params, batch, captions, losses


def test_what_is_learned_is_written(fitted):
    """Labels that were shifted twice, or not at all, would give another caption."""
    task, params, batch, captions, losses = fitted
    assert losses[-1] < losses[0] / 4
    found = task.predictions["answers"].jitted(params, {}, {"image": batch["image"]})
    written = [list(map(int, ids[:length])) for ids, length in zip(found["tokens"], found["length"], strict=True)]
    assert written == captions


def test_the_prompt_is_not_learned_and_padding_counts_nothing(fitted):
    task, params, batch, _, _ = fitted
    each, count, _ = task.of_captions(task.caller(params, {}, None, train=False), batch)
    np.testing.assert_array_equal(count, [6, 3])  # the end counts, [DEC] does not
    other = {**batch, "text": jnp.where(batch["text_mask"], batch["text"], 5)}
    np.testing.assert_allclose(task.of_captions(task.caller(params, {}, None, train=False), other)[0], each, rtol=1e-5)
    task._prompt = np.asarray([*task._prompt, 7, 8])
    behind, fewer, _ = task.of_captions(task.caller(params, {}, None, train=False), batch)
    np.testing.assert_array_equal(fewer, [4, 1])
    assert (behind < each).all()


def test_the_search_is_the_published_one():
    ends = {"end": 3, "padding": 0, "prompt": 4}
    settings = {"max_length": 20, "min_length": 5, "beams": 3, "repetition_penalty": 1.0, "sample": False, "top_p": 0.9}
    beams = search_of(settings, **ends)
    assert (beams.texts, beams.limits.tokens, beams.limits.rules) == (3, 16, (rules.MinimumLength(5, 3, True),))
    drawn = search_of(settings | {"sample": True}, **ends)
    assert drawn.draw
    assert drawn.limits.rules == (
        rules.RepetitionPenalty(1.1),
        rules.MinimumLength(5, 3, True),
        rules.TopK(50),
        rules.TopP(0.9),
    )


def test_a_prompt_without_room_behind_it_says_so():
    with pytest.raises(ConfigError, match="leave no room"):
        task_without_data(config_with(generate__max_length=1))
