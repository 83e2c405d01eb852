"""Given answers behind prompts that are read once: their likelihoods are those of whole texts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.decoding import ranking, writer
from jaxvqa.decoding.loop import pad
from tests.decoding.small_flamingo import IMAGE, PADDING, media, small_flamingo

PROMPTS = ([3], [IMAGE, 4], [1, IMAGE, 2, IMAGE, 5, 6], [7, 8, IMAGE, 1])
ANSWERS = ([4], [5, 9], [4, 3, 2, 9], [IMAGE, 6, 9], [5, 9, 9])


@pytest.mark.parametrize("together", [2, 5])
@pytest.mark.parametrize("language", ["gpt2", pytest.param("palm", marks=pytest.mark.slow)])
def test_likelihoods_are_those_of_whole_texts(language, together, monkeypatch):
    """Whatever the lengths, with images in prompt and answer, and however many answers are read at a time."""
    model, variables = small_flamingo(language)
    monkeypatch.setattr(ranking, "POSITIONS", together * len(PROMPTS) * 3)
    text, mask = pad(PROMPTS, PADDING, (8,))
    answers = ranking.Answers(ANSWERS, PADDING)
    assert answers.lengths.tolist() == [1, 2, 4, 3, 3]

    @jax.jit
    def likelihoods(variables, text, mask, seen):
        read = writer.read(model, variables, text, mask, new=answers.new, media=seen)
        return ranking.log_likelihoods(model, variables, answers, read)

    found = likelihoods(variables, text, mask, media(len(PROMPTS)))
    np.testing.assert_allclose(found, whole(language), atol=2e-5)


def test_answers_of_one_word_need_no_second_reading():
    model, variables = small_flamingo("gpt2")
    text, mask = pad(PROMPTS, PADDING, (8,))
    answers = ranking.Answers([[5], [6]], PADDING)
    assert answers.new == 0
    read = jax.jit(lambda v, *x: writer.read(model, v, x[0], x[1], new=0, media=x[2]))
    read = read(variables, text, mask, media(len(PROMPTS)))
    found = ranking.log_likelihoods(model, variables, answers, read)
    np.testing.assert_allclose(found, jax.nn.log_softmax(read.logits)[:, 5:7], rtol=1e-6)


@functools.cache
def whole(language):
    """Each answer behind each prompt, all of the text at once."""
    model, variables = small_flamingo(language)
    texts = [[*prompt, *answer] for prompt in PROMPTS for answer in ANSWERS]
    text, mask = pad(texts, PADDING, (16,))
    seen = jnp.repeat(media(len(PROMPTS)), len(ANSWERS), axis=0)
    logits, _ = jax.jit(lambda v, *x: model.apply(v, text=x[0], text_mask=x[1], media=x[2]))(
        variables, text, mask, seen
    )
    logs = np.asarray(jax.nn.log_softmax(logits))
    sums = [
        sum(row[i - 1, word] for i, word in enumerate(t) if i >= len(t) - len(answer))
        for row, t, answer in zip(logs, texts, ANSWERS * len(PROMPTS), strict=True)
    ]
    return np.array(sums).reshape(len(PROMPTS), len(ANSWERS))
