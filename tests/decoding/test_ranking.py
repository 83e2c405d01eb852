"""Given answers behind prompts that are read once: their likelihoods are those of whole texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models, paths
from jaxvqa.decoding import ranking, writer
from jaxvqa.decoding.loop import pad

IMAGE, PADDING = 10, 0
SMALL = {
    "name": "flamingo",
    "vocab_size": 12,
    "image_token": IMAGE,
    "every": 2,
    "latents": 3,
    "resampler_depth": 1,
    "cross_heads": 2,
    "cross_head_width": 4,
}
LANGUAGES = {
    "gpt2": {"width": 16, "depth": 3, "heads": 2, "positions": 16},
    "palm": {"width": 16, "depth": 3, "heads": 2, "head_width": 8},
}
PROMPTS = ([3], [IMAGE, 4], [1, IMAGE, 2, IMAGE, 5, 6], [7, 8, IMAGE, 1])
ANSWERS = ([4], [5, 9], [4, 3, 2, 9], [IMAGE, 6, 9], [5, 9, 9])


@pytest.mark.parametrize("together", [2, 5])
@pytest.mark.parametrize("language", ["gpt2", pytest.param("palm", marks=pytest.mark.slow)])
def test_likelihoods_are_those_of_whole_texts(language, together, monkeypatch):
    """Whatever the lengths, with images in prompt and answer, and however many answers are read at a time."""
    model, variables, media = made(language)
    monkeypatch.setattr(ranking, "POSITIONS", together * len(PROMPTS) * 3)
    text, mask = pad(PROMPTS, PADDING, (8,))
    answers = ranking.Answers(ANSWERS, PADDING)
    assert answers.lengths.tolist() == [1, 2, 4, 3, 3]

    @jax.jit
    def likelihoods(variables, text, mask, media):
        read = writer.read(model, variables, text, mask, new=answers.new, media=media)
        return ranking.log_likelihoods(model, variables, answers, read)

    found = likelihoods(variables, text, mask, media)
    np.testing.assert_allclose(found, whole(language), atol=2e-5)


def test_answers_of_one_word_need_no_second_reading():
    model, variables, media = made("gpt2")
    text, mask = pad(PROMPTS, PADDING, (8,))
    answers = ranking.Answers([[5], [6]], PADDING)
    assert answers.new == 0
    read = jax.jit(lambda v, *x: writer.read(model, v, x[0], x[1], new=0, media=x[2]))(variables, text, mask, media)
    found = ranking.log_likelihoods(model, variables, answers, read)
    np.testing.assert_allclose(found, jax.nn.log_softmax(read.logits)[:, 5:7], rtol=1e-6)


_MADE, _WHOLE = {}, {}


def made(language):
    if language not in _MADE:
        rng = np.random.default_rng(0)
        model = models.build(SMALL | {"language": language, "language_sizes": LANGUAGES[language]})
        media = jnp.asarray(rng.standard_normal((len(PROMPTS), 2, 4, 16), dtype=np.float32))
        start = {"text": jnp.zeros((1, 2), jnp.int32), "media": media[:1]}
        variables = jax.jit(lambda key: model.init(key, **start))(jax.random.key(0))
        flat = paths.flatten(variables).items()
        opened = paths.nest({p: jnp.full_like(x, 0.7) if p.endswith("_gate") else x for p, x in flat})
        _MADE[language] = model, opened, media
    return _MADE[language]


def whole(language):
    """Each answer behind each prompt, all of the text at once."""
    if language not in _WHOLE:
        model, variables, media = made(language)
        texts = [[*prompt, *answer] for prompt in PROMPTS for answer in ANSWERS]
        text, mask = pad(texts, PADDING, (16,))
        seen = jnp.repeat(media, len(ANSWERS), axis=0)
        logits, _ = jax.jit(lambda v, *x: model.apply(v, text=x[0], text_mask=x[1], media=x[2]))(
            variables, text, mask, seen
        )
        logs = jax.nn.log_softmax(logits)
        sums = [
            sum(float(row[i - 1, word]) for i, word in enumerate(t) if i >= len(t) - len(answer))
            for row, t, answer in zip(logs, texts, ANSWERS * len(PROMPTS), strict=True)
        ]
        _WHOLE[language] = np.array(sums).reshape(len(PROMPTS), len(ANSWERS))
    return _WHOLE[language]
