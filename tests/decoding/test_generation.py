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

from jaxvqa.decoding import rules
from jaxvqa.decoding.loop import MANY_TOKENS, Generator, pad, search_of
from jaxvqa.decoding.search import Beams, Limits, SearchRule, Single
from jaxvqa.errors import ConfigError
from jaxvqa.golden import runner
from tests.decoding.small_flamingo import IMAGE, PADDING, media, small_flamingo

GOLDEN = Path(__file__).parent.parent / "golden" / "flamingo"


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
    texts = [rng.integers(1, 9, length + ANSWER) for length, _ in TEXTS]
    for text, (_, images) in zip(texts, TEXTS, strict=True):
        text[[i for i in images if i < len(text)]] = IMAGE
    return *small_flamingo(request.param), texts, media(len(texts))


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
    read = Generator(model, Single(Limits(ANSWER))).prefill(params, text, mask, {"media": media})
    logits, cache = read.logits, read.cache
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
    generator = Generator(model, Single(Limits(ANSWER, padding=PADDING)), buckets=(8,))
    prompts = [text[:length].tolist() for text, (length, _) in zip(texts, TEXTS, strict=True)]
    result = generator(params, prompts, media=media)
    logits = score([p + w.tolist() for p, w in zip(prompts, result.tokens, strict=True)])
    for row, prompt in enumerate(prompts):
        best = jnp.argmax(logits[row, len(prompt) - 1 : len(prompt) - 1 + ANSWER], axis=-1)
        np.testing.assert_array_equal(result.tokens[row], best)
    shorter = [prompt[:1] for prompt in prompts]
    generator(params, shorter, media=media)
    assert (generator.prefill._cache_size(), generator.loop._cache_size()) == (1, 1)
    # Rows do not depend on one another.
    again = generator(params, [*prompts[:4], *shorter[4:]], media=media)
    np.testing.assert_array_equal(again.tokens[:4], result.tokens[:4])
    prepared = generator.prepare(params)
    assert set(prepared) == {"params", "transposed"}
    np.testing.assert_array_equal(generator(prepared, prompts, media=media).tokens, result.tokens)


@pytest.mark.parametrize("written", ["gpt2"], indirect=True)
def test_beams_read_their_own_words_only(written, score):
    """The score of a text that beams found, which share a cache, is that of its words all at once."""
    model, params, texts, media = written
    words = MANY_TOKENS
    search = Beams(Limits(words, padding=PADDING), 3, SearchRule(length_penalty=0.0))
    prompts = [text[:length].tolist() for text, (length, _) in zip(texts, TEXTS, strict=True)]
    result = Generator(model, search, buckets=(8,))(params, prompts, media=media)
    logs = jax.nn.log_softmax(score([p + w.tolist() for p, w in zip(prompts, result.tokens, strict=True)]))
    for row, (prompt, written_words) in enumerate(zip(prompts, result.tokens, strict=True)):
        place = np.arange(len(prompt) - 1, len(prompt) - 1 + words)
        np.testing.assert_allclose(result.scores[row], logs[row, place, written_words].sum(), rtol=1e-5)


@pytest.mark.parametrize("written", ["gpt2"], indirect=True)
def test_texts_that_do_not_fit_are_refused(written):
    model, params, _, media = written
    generator = Generator(model, Single(Limits(20)))
    with pytest.raises(ConfigError, match="take 36 tokens; the language model has positions for 24"):
        generator(params, [[1, 2]], media=media[:1])
    with pytest.raises(ConfigError, match="A prompt has to have a token"):
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


RULES = [SearchRule(0.0), SearchRule(0.6), SearchRule(1.0), SearchRule(1.0, with_prompt=True, with_end=False)]


@pytest.mark.parametrize("rule", RULES)
def test_enough_beams_find_the_best_of_all_texts(chain, rule):
    model, logs = chain
    tokens, prompts = 4, [[0], [2, 3]]
    result = Generator(model, Beams(Limits(tokens, STOP), 64, rule))({}, prompts)
    for row, prompt in enumerate(prompts):
        best = (-np.inf, ())
        for text in itertools.product(range(5), repeat=tokens):
            text = text[: text.index(STOP) + 1] if STOP in text else text
            total = sum(logs[a, b] for a, b in itertools.pairwise((prompt[-1], *text)))
            length = len(text) - (text[-1] == STOP and not rule.with_end) + rule.with_prompt * len(prompt)
            best = max(best, (total / length**rule.length_penalty, text))
        length = len(best[1]) - (best[1][-1] == STOP)
        assert int(result.lengths[row]) == length
        assert tuple(result.tokens[row, :length].tolist()) == best[1][:length]
        np.testing.assert_allclose(result.scores[row], best[0], rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 64])
def test_rules_hold_for_every_search(chain, beams):
    """The best of all texts of at least two tokens without token 1, where tokens that have occurred are less likely."""
    model, logs = chain
    penalty, least, most = 1.7, 2, 3
    ruled = (rules.RepetitionPenalty(penalty), rules.MinimumLength(least, STOP), rules.Barred((1,)))
    limits = Limits(most, STOP, rules=ruled)
    search = Single(limits) if beams == 1 else Beams(limits, beams, SearchRule(0.0))
    result = Generator(model, search)({}, [[0], [2, 3]])

    def scores(text, written, raw):
        changed = raw[text[-1]].copy()
        for token in set(text):
            changed[token] *= penalty if changed[token] < 0 else 1 / penalty
        changed[1] = -np.inf
        if written < least:
            changed[STOP] = -np.inf
        return changed

    for row, prompt in enumerate(([0], [2, 3])):
        best = (-np.inf, ())
        if beams == 1:
            text = list(prompt)
            while len(text) < len(prompt) + most and text[-1] != STOP:
                text.append(int(scores(text, len(text) - len(prompt), np.asarray(model.table)).argmax()))
            best = (0.0, tuple(text[len(prompt) :]))
        for text in itertools.product(range(5), repeat=most) if beams > 1 else ():
            text = text[: text.index(STOP) + 1] if STOP in text else text
            total = sum(scores([*prompt, *text[:i]], i, logs)[token] for i, token in enumerate(text))
            best = max(best, (total, text))
        length = len(best[1]) - (best[1][-1] == STOP)
        assert result.tokens[row, : int(result.lengths[row])].tolist() == list(best[1][:length])
        if beams > 1:
            np.testing.assert_allclose(result.scores[row], best[0], rtol=1e-5)


def test_a_text_ends_at_its_stop_word(chain):
    model, logs = chain
    result = Generator(model, Single(Limits(12, STOP, padding=1)))({}, [[0], [1], [2], [3]])
    for row in range(4):
        text, last, total = [], row, 0.0
        while len(text) < 12 and last != STOP:
            best = int(logs[last].argmax())
            total, last = total + logs[last, best], best
            text.append(best)
        text = text[:-1] if text[-1] == STOP else text
        assert result.tokens[row].tolist() == text + [1] * (12 - len(text))
        assert int(result.lengths[row]) == len(text)
        np.testing.assert_allclose(result.scores[row], total, rtol=1e-5)


def test_draws_follow_the_seed_and_the_probabilities(chain):
    model, logs = chain
    prompts = [[0]] * 2000
    draw = Generator(model, search_of({"max_new_tokens": 1, "temperature": 2.0}))
    first = draw({}, prompts, seed=1).tokens[:, 0]
    np.testing.assert_array_equal(draw({}, prompts, seed=1).tokens[:, 0], first)
    assert (draw({}, prompts, seed=2).tokens[:, 0] != first).mean() > 0.2
    share = np.bincount(first, minlength=5) / 2000
    np.testing.assert_allclose(share, jax.nn.softmax(logs[0] / 2), atol=0.04)
    np.testing.assert_array_equal(draw({}, prompts[:3], seed=1).tokens[:, 0], first[:3])
    best = Generator(model, search_of({"max_new_tokens": 1, "temperature": 1.0, "top_k": 1}))({}, prompts[:9]).tokens[
        :, 0
    ]
    assert set(best.tolist()) == {int(logs[0].argmax())}


def test_what_top_k_and_top_p_leave():
    logits = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.3]]))
    prompt = jnp.zeros((1, 1), jnp.int32)
    written = rules.Written(prompt, prompt == 0, prompt, jnp.asarray(0))

    def left(*ruled):
        return np.flatnonzero(np.isfinite(rules.apply(ruled, logits, written))[0]).tolist()

    assert left() == [0, 1, 2, 3]
    assert left(rules.TopK(2)) == [1, 3]
    assert left(rules.TopK(9), rules.TopP(0.1)) == [1]
    assert left(rules.TopP(0.65)) == [1, 3]
    assert left(rules.TopP(0.75)) == [1, 2, 3]
    assert left(rules.TopK(2), rules.TopP(0.75)) == [1, 3]


def test_what_a_config_names_is_a_search():
    drawn = search_of({"max_new_tokens": 3, "temperature": 0.5, "top_k": 2, "top_p": 0.9}, end=STOP, padding=1)
    assert drawn == Single(Limits(3, STOP, 1, (rules.Temperature(0.5), rules.TopK(2), rules.TopP(0.9))), draw=True)
    best = {"max_new_tokens": 3, "beams": 1, "length_penalty": 0.5, "temperature": 0.0, "top_k": 2, "top_p": 1.0}
    assert search_of(best) == Single(Limits(3))
    assert search_of(best | {"beams": 4}) == Beams(Limits(3), 4, SearchRule(0.5))
    with pytest.raises(ConfigError, match=r"beams is 4 and config.generate.temperature 1"):
        search_of(best | {"beams": 4, "temperature": 1.0})
