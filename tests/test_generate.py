"""What generation promises: the cache changes nothing, nothing compiles twice, searches find what they claim to."""

import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import models, paths
from jaxvqa.errors import ConfigError
from jaxvqa.generate import MANY_WORDS, Generator, Settings, pad, restrict
from jaxvqa.golden import runner
from tests.made_up import made_up

GOLDEN = Path(__file__).parent / "golden" / "flamingo"


@pytest.mark.parametrize(
    ("case", "outputs"),
    [
        ("flamingo_generate_tied_small", 10),
        pytest.param("flamingo_generate_small", 10, marks=pytest.mark.slow),
        pytest.param("flamingo_beam_small", 15, marks=pytest.mark.slow),
    ],
)
def test_given_cases(case, outputs):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert [row for row in rows if not row.passed] == []
    assert len(rows) == outputs


# --- Flamingo with a cache, and without --------------------------------------------------------------------------------

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
    "gpt2": {"width": 16, "depth": 3, "heads": 2, "positions": 24},
    "palm": {"width": 16, "depth": 3, "heads": 2, "head_width": 8},
}
TEXTS = [  # length of the prompt, and where images begin in prompt and answer
    (1, ()),
    (2, (0,)),
    (3, (1,)),
    (4, (0, 1)),
    (5, (2, 4)),
    (6, (0, 9)),
    (7, (8, 11)),
    (8, (0, 1, 2, 9)),  # more marks than images
]
ANSWER = 5


@pytest.fixture(scope="module", params=["gpt2", pytest.param("palm", marks=pytest.mark.slow)])
def written(request):
    """A model, parameters with open gates, prompts with their answers, and media for each."""
    rng = np.random.default_rng(0)
    model = models.build(SMALL | {"language": request.param, "language_sizes": LANGUAGES[request.param]})
    texts = [rng.integers(1, 9, length + ANSWER) for length, _ in TEXTS]
    for text, (_, images) in zip(texts, TEXTS, strict=True):
        text[[i for i in images if i < len(text)]] = IMAGE
    media = jnp.asarray(rng.standard_normal((len(texts), 2, 4, 16), dtype=np.float32))
    start = {"text": jnp.zeros((1, 2), jnp.int32), "media": media[:1]}
    params = made_up(jax.eval_shape(lambda key: model.init(key, **start), jax.random.key(0)))
    opened = {p: jnp.full_like(x, 0.7) if p.endswith("_gate") else x for p, x in paths.flatten(params).items()}
    return model, paths.nest(opened), texts, media


@pytest.fixture(scope="module")
def score(written):
    """Scores after each word of each text, from all of its words at once."""
    model, params, _, media = written
    call = jax.jit(lambda text, mask: model.apply(params, text=text, text_mask=mask, media=media)[0])
    return lambda texts: call(*pad(texts, PADDING, (16,)))


@pytest.fixture(scope="module")
def uncached(written, score):
    return score(written[2])


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_cache_changes_nothing_for_any_length_and_layout(written, uncached, side):
    model, params, texts, media = written
    prompts = [text[:length] for text, (length, _) in zip(texts, TEXTS, strict=True)]
    text, mask = pad(prompts, PADDING, (8,))
    if side == "left":
        text, mask = (
            np.stack([np.roll(row, 8 - len(p)) for row, p in zip(x, prompts, strict=True)]) for x in (text, mask)
        )
    generator = Generator(model, Settings(words=ANSWER))
    logits, cache = generator.prefill(params, text, mask, {"media": media}, slots=8 + ANSWER)
    decode = jax.jit(lambda word, cache: model.apply(params, word, cache, method="decode"))
    for step in range(ANSWER):
        for row, prompt in enumerate(prompts):
            expected = uncached[row, len(prompt) + step - 1]
            np.testing.assert_allclose(logits[row], expected, atol=2e-5, err_msg=f"{TEXTS[row]}, word {step}")
        words = [text[len(prompt) + step] for text, prompt in zip(texts, prompts, strict=True)]
        logits, cache = decode(jnp.asarray(words, jnp.int32), cache)


@pytest.mark.parametrize("written", ["gpt2"], indirect=True)
def test_written_words_are_the_best_ones_and_nothing_compiles_twice(written, score):
    model, params, texts, media = written
    generator = Generator(model, Settings(words=ANSWER, padding=PADDING), buckets=(8,))
    prompts = [text[:length].tolist() for text, (length, _) in zip(texts, TEXTS, strict=True)]
    result = generator(params, prompts, media=media)
    logits = score([p + w.tolist() for p, w in zip(prompts, result.words, strict=True)])
    for row, prompt in enumerate(prompts):
        best = jnp.argmax(logits[row, len(prompt) - 1 : len(prompt) - 1 + ANSWER], axis=-1)
        np.testing.assert_array_equal(result.words[row], best)
    shorter = [prompt[:1] for prompt in prompts]
    generator(params, shorter, media=media)
    assert (generator.prefill._cache_size(), generator.loop._cache_size()) == (1, 1)
    # Rows do not depend on one another.
    again = generator(params, [*prompts[:4], *shorter[4:]], media=media)
    np.testing.assert_array_equal(again.words[:4], result.words[:4])
    prepared = generator.prepare(params)
    assert set(prepared) == {"params", "transposed"}
    np.testing.assert_array_equal(generator(prepared, prompts, media=media).words, result.words)


@pytest.mark.parametrize("written", ["gpt2"], indirect=True)
def test_beams_read_their_own_words_only(written, score):
    """The score of a text that beams found, which share a cache, is that of its words all at once."""
    model, params, texts, media = written
    words = MANY_WORDS
    settings = Settings(words=words, padding=PADDING, beams=3, length_penalty=0.0)
    prompts = [text[:length].tolist() for text, (length, _) in zip(texts, TEXTS, strict=True)]
    result = Generator(model, settings, buckets=(8,))(params, prompts, media=media)
    logs = jax.nn.log_softmax(score([p + w.tolist() for p, w in zip(prompts, result.words, strict=True)]))
    for row, (prompt, written_words) in enumerate(zip(prompts, result.words, strict=True)):
        place = np.arange(len(prompt) - 1, len(prompt) - 1 + words)
        np.testing.assert_allclose(result.scores[row], logs[row, place, written_words].sum(), rtol=1e-5)


@pytest.mark.parametrize("written", ["gpt2"], indirect=True)
def test_texts_that_do_not_fit_are_refused(written):
    model, params, _, media = written
    generator = Generator(model, Settings(words=20))
    with pytest.raises(ConfigError, match="take 36 words; the language model has positions for 24"):
        generator(params, [[1, 2]], media=media[:1])
    with pytest.raises(ConfigError, match="A prompt has to have a word"):
        generator(params, [[1], []], media=media[:2])


# --- searches, with a model that knows the last word only --------------------------------------------------------------


class Nothing(flax.struct.PyTreeNode):
    """A cache of nothing."""

    def of_texts(self, change):
        return self


class Chain(nn.Module):
    """A Markov chain: the scores of the next word are the last one's row of a table."""

    table: Any

    def prefill(self, *, text, text_mask, slots, texts):
        last = jnp.sum(text_mask, axis=1) - 1
        word = jnp.take_along_axis(text, last[:, None], axis=1)[:, 0]
        return jnp.asarray(self.table)[word], Nothing()

    def decode(self, word, cache):
        return jnp.asarray(self.table)[word], cache


STOP = 4


@pytest.fixture(scope="module")
def chain():
    table = 2 * np.random.default_rng(3).standard_normal((5, 5)).astype(np.float32)
    return Chain(tuple(map(tuple, table.tolist()))), np.asarray(jax.nn.log_softmax(table))


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_enough_beams_find_the_best_of_all_texts(chain, penalty):
    model, logs = chain
    words = 4
    result = Generator(model, Settings(words, STOP, beams=64, length_penalty=penalty))({}, [[0], [2, 3]])
    for row, last in enumerate((0, 3)):
        best = (-np.inf, ())
        for text in itertools.product(range(5), repeat=words):
            text = text[: text.index(STOP) + 1] if STOP in text else text
            total = sum(logs[a, b] for a, b in itertools.pairwise((last, *text)))
            best = max(best, (total / len(text) ** penalty, text))
        length = len(best[1]) - (best[1][-1] == STOP)
        assert int(result.lengths[row]) == length
        assert tuple(result.words[row, :length].tolist()) == best[1][:length]
        np.testing.assert_allclose(result.scores[row], best[0], rtol=1e-5)


def test_a_text_ends_at_its_stop_word(chain):
    model, logs = chain
    result = Generator(model, Settings(12, STOP, padding=1))({}, [[0], [1], [2], [3]])
    for row in range(4):
        text, last, total = [], row, 0.0
        while len(text) < 12 and last != STOP:
            best = int(logs[last].argmax())
            total, last = total + logs[last, best], best
            text.append(best)
        text = text[:-1] if text[-1] == STOP else text
        assert result.words[row].tolist() == text + [1] * (12 - len(text))
        assert int(result.lengths[row]) == len(text)
        np.testing.assert_allclose(result.scores[row], total, rtol=1e-5)


def test_draws_follow_the_seed_and_the_probabilities(chain):
    model, logs = chain
    prompts = [[0]] * 2000
    draw = Generator(model, Settings(1, temperature=2.0))
    first = draw({}, prompts, seed=1).words[:, 0]
    np.testing.assert_array_equal(draw({}, prompts, seed=1).words[:, 0], first)
    assert (draw({}, prompts, seed=2).words[:, 0] != first).mean() > 0.2
    share = np.bincount(first, minlength=5) / 2000
    np.testing.assert_allclose(share, jax.nn.softmax(logs[0] / 2), atol=0.04)
    np.testing.assert_array_equal(draw({}, prompts[:3], seed=1).words[:, 0], first[:3])
    best = Generator(model, Settings(1, temperature=1.0, top_k=1))({}, prompts[:9]).words[:, 0]
    assert set(best.tolist()) == {int(logs[0].argmax())}


def test_what_top_k_and_top_p_leave():
    logits = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.3]]))

    def left(top_k, top_p):
        return np.flatnonzero(np.isfinite(restrict(logits, top_k, top_p))[0]).tolist()

    assert left(0, 1.0) == [0, 1, 2, 3]
    assert left(2, 1.0) == [1, 3]
    assert left(9, 0.1) == [1]
    assert left(0, 0.65) == [1, 3]
    assert left(0, 0.75) == [1, 2, 3]


def test_settings_that_fit_nothing_are_told_together():
    with pytest.raises(ConfigError, match=r"words is 0.*top_p is 0.*temperature has to be 0"):
        Settings(words=0, top_p=0.0, beams=2, temperature=1.0)
