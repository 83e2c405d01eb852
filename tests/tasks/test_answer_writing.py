"""Ranking given answers: short and long ones, many at a time or few, have the losses that each has alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, losses
from jaxvqa.tasks import answer_writing, task_without_data
from tests.made_up import variables_of

LENGTHS = (3, 4, 19, 3, 9, 5, 3, 12, 4)
"""Of the answers, with both ends."""


@pytest.fixture(scope="module")
def asked():
    """A task, its variables, three questions, and the answers to rank."""
    config = configs.load("configs/blip_vqa.py:pixels,small")
    changes = {"compile.vocab_size": 40, "data.image_size": 16, "model.vision_sizes.patch": 8, "data.max_tokens": 6}
    configs.override(config, [(key, str(value)) for key, value in changes.items()])
    task, rng = task_without_data(config), np.random.default_rng(0)
    text = np.full((len(LENGTHS), max(LENGTHS)), task.tokenizer.padding, np.int32)
    for row, length in zip(text, LENGTHS, strict=True):
        row[:length] = [task.tokenizer.decode_begin, *rng.integers(6, 40, length - 2), task.tokenizer.end]
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (3, 16, 16, 3)), jnp.uint8),
        "question": jnp.asarray(rng.integers(6, 40, (3, 6)), jnp.int32),
        "question_mask": jnp.arange(6)[None] < jnp.asarray([6, 3, 4])[:, None],
    }
    return task, *variables_of(task), batch, (text, np.arange(text.shape[1])[None] < np.asarray(LENGTHS)[:, None])


@pytest.mark.parametrize(("positions", "keep"), [(2048, 9), (60, 7)])
def test_every_answer_has_the_loss_that_it_has_alone(asked, monkeypatch, positions, keep):
    task, params, collections, batch, (text, there) = asked
    monkeypatch.setattr(answer_writing, "POSITIONS", positions)
    found = jax.jit(lambda params, batch: task.rank(params, collections, batch, (text, there), keep))(params, batch)

    @jax.jit
    def alone(params, tokens, mask):
        tokens, mask = (jnp.broadcast_to(x, (3, len(x))) for x in (tokens, mask))
        asked = {name: batch[name] for name in ("question", "question_mask")}
        call = task.caller(params, collections, None, train=False)
        logits, _ = call(image=task.pixels(batch["image"]), text=tokens, text_mask=mask, **asked)
        first = jax.nn.softmax(logits[:, 0])[jnp.arange(3), tokens[:, 1]]
        return first, losses.text_loss(logits[:, :-1], tokens[:, 1:], mask[:, 1:], smoothing=task._smoothing)

    first, loss = (
        np.stack(x, axis=1) for x in zip(*(alone(params, *row) for row in zip(text, there, strict=True)), strict=True)
    )
    np.testing.assert_allclose(found.first, first, rtol=1e-5)
    np.testing.assert_array_equal(found.kept, np.argsort(-first, axis=1, kind="stable")[:, :keep])
    kept = np.take_along_axis(loss, np.asarray(found.kept), axis=1)
    np.testing.assert_allclose(found.loss, kept, rtol=1e-5)
    np.testing.assert_array_equal(found.best, [row[i] for row, i in zip(found.kept, kept.argmin(axis=1), strict=True)])


def test_the_memory_of_a_long_list_is_that_of_its_parts(asked):
    task, params, collections, batch, (text, there) = asked
    many = tuple(np.tile(x, (60, 1)) for x in (text, there))

    def temporaries(positions):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answer_writing, "POSITIONS", positions)
            rank = jax.jit(lambda params, batch: task.rank(params, collections, batch, many, len(many[0])))
            return rank.lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(60) < temporaries(10**6) / 4
