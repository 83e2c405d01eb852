"""Texts from a model that writes: one program that reads the prompts, one loop that adds words, nothing compiled in between.

A model that can write has two methods: `prefill(text=, text_mask=, slots=, texts=, …)`, which reads prompts and gives the
scores of the next word and a cache with room for so many texts of each prompt, and `decode(word, cache)`, which adds a word to
each text (`jaxvqa/models/flamingo.py`). A cache has a method `of_texts(change)`, which applies `change` to every array with a
row for each text, and leaves what the texts of a prompt share: beams go on from one another without a copy of what they have
read.

Prompts are padded at their end to the next of a few lengths (buckets). A program is compiled once for each bucket and number of
rows.
"""

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxvqa import paths
from jaxvqa.errors import ConfigError
from jaxvqa.kernels import FEW_ROWS

BUCKETS = (16, 32, 64, 128, 256, 512, 1024)
"""Lengths of prompts for which there are programs; a longer one gets a program of its own length."""

MANY_WORDS = 8
"""From so many words on, what `_with_transposed` takes (four or five words' time) is won back; with a single row never."""

Prompts = Sequence[Sequence[int] | np.ndarray]
"""Numbers of the words of each prompt."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How words are chosen.

    Attributes:
      words: the most words to write.
      stop: number of the word that ends a text; None: every text has all its words.
      padding: number of the word that fills prompts and what is behind the end.
      beams: how many texts of a prompt are followed at a time; 1: the best word each time, or a drawn one.
      length_penalty: with beams, texts are compared by the sum of their words' log-probabilities divided by this power of their
        number: 0 for the sum, 1 for the mean.
      temperature: 0: the best word; otherwise a word is drawn, with scores divided by this.
      top_k: draw from this many best words; 0: from all.
      top_p: draw from the fewest words that are together at least so probable.
    """

    words: int = 20
    stop: int | None = None
    padding: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {getattr(self, name)}, and not {what}"
            for name, fits, what in (
                ("words", self.words >= 1, "at least 1"),
                ("beams", self.beams >= 1, "at least 1"),
                ("temperature", self.temperature >= 0, "at least 0"),
                ("top_k", self.top_k >= 0, "at least 0"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            )
            if not fits
        ]
        if self.beams > 1 and self.temperature:
            faults.append("beams follow the best words: temperature has to be 0")
        if faults:
            raise ConfigError("Nothing can be written with these settings: " + "; ".join(faults) + ".")


class Generated(flax.struct.PyTreeNode):
    """What was written.

    Attributes:
      words: int32[B, W], padding from the stop word on.
      lengths: int32[B], number of words before it.
      scores: float32[B], sum of the log-probabilities, the stop word's among them; with beams as the settings compare texts.
    """

    words: Int[Array, "B W"]
    lengths: Int[Array, " B"]
    scores: Float32[Array, " B"]


class _State(flax.struct.PyTreeNode):
    """Where the loop is: N = B texts, or B times the number of beams.

    Attributes:
      step: words written so far.
      words: int32[N, W].
      scores: float32[N], sums of log-probabilities.
      done: bool[N], which texts have ended; without beams.
      lengths: int32[N], their numbers of words; without beams.
      parents: int32[N], the row from which each text goes on; with beams.
      ended: the best texts that have ended, their words int32[B, E, W], lengths and scores [B, E]; with beams.
    """

    step: Int[Array, ""]
    words: Int[Array, "N W"]
    scores: Float32[Array, " N"]
    done: Bool[Array, " N"]
    lengths: Int[Array, " N"]
    parents: Int[Array, " N"]
    ended: tuple[Array, Array, Array] | None


class Generator:
    """Writes with a model.

    Attributes:
      model: the model.
      settings: how words are chosen.
      prefill: the compiled program that reads prompts.
      loop: the compiled one that writes.
    """

    def __init__(self, model: nn.Module, settings: Settings, buckets: Sequence[int] = BUCKETS) -> None:
        self.model, self.settings, self.buckets = model, settings, tuple(buckets)
        self.prefill = jax.jit(self._prefill, static_argnames="slots")
        self.loop = jax.jit(self._loop)

    def prepare(self, variables: Any) -> Any:
        """Adds what makes each word faster to the model's variables, for many calls with the same ones.

        On a CPU these are copies of the kernels, as large as they are (`Linear`); elsewhere nothing. A call makes them itself,
        and forgets them, where that pays.
        """
        return jax.jit(_with_transposed)(variables) if jax.default_backend() == "cpu" else variables

    def __call__(self, variables: Any, prompts: Prompts, *, seed: int = 0, **inputs: Any) -> Generated:
        """Goes on with each prompt.

        Args:
          variables: the model's, or what `prepare` made of them.
          prompts: numbers of the words of each, at least one.
          seed: of the draws; a row's depend on it, on its place and on the word's number, not on the other rows.
          **inputs: what else the model reads, such as `image`, with a row for each prompt.
        """
        if not all(len(prompt) for prompt in prompts):
            raise ConfigError("A prompt has to have a word to go on from.")
        text, mask = pad(prompts, self.settings.padding, self.buckets)
        slots = text.shape[1] + self.settings.words
        logits, cache = self.prefill(variables, text, mask, inputs, slots=slots)
        return self.loop(variables, logits, cache, jax.random.key(seed))

    def _prefill(self, variables: Any, text: Any, mask: Any, inputs: Mapping[str, Any], *, slots: int) -> Any:
        given = {"text": text, "text_mask": mask, "slots": slots, "texts": self.settings.beams, **inputs}
        return self.model.apply(variables, method="prefill", **given)

    def _loop(self, variables: Any, logits: Float32[Array, "B V"], cache: Any, key: Key[Array, ""]) -> Generated:
        settings, batch = self.settings, len(logits)
        choose = functools.partial(_choose_beams if settings.beams > 1 else _choose, settings, key)
        rows = batch * settings.beams
        pays = rows > 1 and rows in FEW_ROWS and settings.words >= MANY_WORDS
        if pays and "transposed" not in variables and jax.default_backend() == "cpu":
            variables = _with_transposed(variables)
        state = _start(settings, batch)
        if settings.beams > 1:
            logits = jnp.repeat(logits, settings.beams, axis=0)
            cache = cache.of_texts(lambda x: jnp.repeat(x, settings.beams, axis=0))
        state = choose(state, logits)

        def go_on(carry: tuple[_State, Any]) -> Array:
            state, _ = carry
            return (state.step < settings.words) & ~_finished(settings, state)

        def add(carry: tuple[_State, Any]) -> tuple[_State, Any]:
            state, cache = carry
            if settings.beams > 1:
                cache = cache.of_texts(lambda x: x[state.parents])
            word = jnp.take(state.words, state.step - 1, axis=1)
            logits, cache = self.model.apply(variables, word, cache, method="decode")
            return choose(state, logits), cache

        state, _ = jax.lax.while_loop(go_on, add, (state, cache))
        return _result(settings, state)


def pad(prompts: Prompts, padding: int, buckets: Sequence[int] = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Puts prompts into one array, int32[B, T] and its mask bool[B, T], T the smallest bucket that holds the longest."""
    longest = max(len(prompt) for prompt in prompts)
    length = min((size for size in buckets if size >= longest), default=longest)
    text = np.full((len(prompts), length), padding, np.int32)
    mask = np.zeros(text.shape, np.bool_)
    for row, real, prompt in zip(text, mask, prompts, strict=True):
        row[: len(prompt)], real[: len(prompt)] = prompt, True
    return text, mask


def _with_transposed(variables: Any) -> Any:
    """Puts each map's kernel transposed beside it, for `Linear`: done once, it makes every word's products faster."""
    kernels = {path: x for path, x in paths.flatten(variables.get("params", {})).items() if path.endswith("/kernel")}
    return {**variables, "transposed": paths.nest({path: x.T for path, x in kernels.items() if x.ndim == 2})}


def _start(settings: Settings, batch: int) -> _State:
    rows = batch * settings.beams
    ended = None
    scores = jnp.zeros(rows)
    if settings.beams > 1:
        shape = (batch, settings.beams)
        ended = jnp.zeros((*shape, settings.words), jnp.int32), jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf)
        # At first all beams are the same text: one of them counts.
        scores = jnp.tile(jnp.where(jnp.arange(settings.beams) == 0, 0.0, -jnp.inf), batch)
    return _State(
        step=jnp.zeros((), jnp.int32),
        words=jnp.full((rows, settings.words), settings.padding, jnp.int32),
        scores=scores,
        done=jnp.zeros(rows, jnp.bool_),
        lengths=jnp.zeros(rows, jnp.int32),
        parents=jnp.arange(rows, dtype=jnp.int32),
        ended=ended,
    )


# --- one text of each prompt -----------------------------------------------------------------------------------------------


def restrict(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Takes away, by a score of -inf, the words that `top_k` and then `top_p` leave out; see `Settings`."""
    if top_k:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
        # The best word always stays: nothing is before it.
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _choose(settings: Settings, key: Key[Array, ""], state: _State, logits: Float32[Array, "B V"]) -> _State:
    """Adds a word to each text that has not ended."""
    if settings.temperature:
        allowed = restrict(logits / settings.temperature, settings.top_k, settings.top_p)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), state.step))(
            jnp.arange(len(logits))
        )
        word = jax.vmap(jax.random.categorical)(keys, allowed).astype(jnp.int32)
    else:
        word = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    gained = jnp.take_along_axis(jax.nn.log_softmax(logits), word[:, None], axis=-1)[:, 0]
    scores = state.scores + jnp.where(state.done, 0.0, gained)
    done = state.done if settings.stop is None else state.done | (word == settings.stop)
    word = jnp.where(done, settings.padding, word)
    words = jax.lax.dynamic_update_slice_in_dim(state.words, word[:, None], state.step, 1)
    return state.replace(step=state.step + 1, words=words, scores=scores, done=done, lengths=state.lengths + ~done)


# --- several texts of each prompt ------------------------------------------------------------------------------------------


def _penalised(settings: Settings, scores: Array, length: Any) -> Array:
    return scores / jnp.asarray(length, jnp.float32) ** settings.length_penalty


def _choose_beams(settings: Settings, key: Key[Array, ""], state: _State, logits: Float32[Array, "N V"]) -> _State:
    """Goes on with the best of all texts that are one word longer, and keeps the best that end with it."""
    beams, vocabulary = settings.beams, logits.shape[-1]
    batch = len(logits) // beams
    sums = state.scores[:, None] + jax.nn.log_softmax(logits)
    # Of twice as many texts as there are beams, at most half end, so that enough are left to go on with.
    best, at = jax.lax.top_k(sums.reshape(batch, -1), min(2 * beams, beams * vocabulary))
    parents = at // vocabulary + beams * jnp.arange(batch)[:, None]
    word = (at % vocabulary).astype(jnp.int32)
    words = state.words[parents]
    step = state.step + 1
    ends = jnp.zeros_like(word, jnp.bool_) if settings.stop is None else word == settings.stop

    old_words, old_lengths, old_scores = state.ended  # type: ignore[misc]
    new_scores = jnp.where(ends, _penalised(settings, best, step), -jnp.inf)
    scores, kept = jax.lax.top_k(jnp.concatenate([old_scores, new_scores], axis=1), beams)
    all_words = jnp.concatenate([old_words, words], axis=1)
    all_lengths = jnp.concatenate([old_lengths, jnp.full(word.shape, state.step)], axis=1)
    ended = (
        jnp.take_along_axis(all_words, kept[..., None], axis=1),
        jnp.take_along_axis(all_lengths, kept, axis=1),
        scores,
    )

    alive, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), beams)
    parents, word = (jnp.take_along_axis(x, kept, axis=1).reshape(-1) for x in (parents, word))
    words = jax.lax.dynamic_update_slice_in_dim(state.words[parents], word[:, None], state.step, 1)
    return state.replace(
        step=step, words=words, scores=alive.reshape(-1), parents=parents.astype(jnp.int32), ended=ended
    )


def _finished(settings: Settings, state: _State) -> Bool[Array, ""]:
    """Whether nothing can change the result any more."""
    if settings.beams == 1:
        return jnp.all(state.done)
    _, _, ended = state.ended  # type: ignore[misc]
    best = jnp.max(state.scores.reshape(len(ended), -1), axis=1)
    # Sums only fall; divided by a growing length, the best that can become of one is at the last word, or now.
    length = settings.words if settings.length_penalty > 0 else state.step + 1
    return jnp.all(_penalised(settings, best, length) <= jnp.max(ended, axis=1))


def _result(settings: Settings, state: _State) -> Generated:
    if settings.beams == 1:
        return Generated(state.words, state.lengths, state.scores)
    words, lengths, scores = state.ended  # type: ignore[misc]
    batch = len(scores)
    # Texts that were cut off at the last word stand beside those that ended.
    cut = _penalised(settings, state.scores, state.step).reshape(batch, -1)
    reached = state.step >= settings.words
    scores = jnp.concatenate([scores, jnp.where(reached, cut, -jnp.inf)], axis=1)
    words = jnp.concatenate([words, state.words.reshape(batch, -1, settings.words)], axis=1)
    lengths = jnp.concatenate([lengths, jnp.full(cut.shape, state.step)], axis=1)
    best = jnp.argmax(scores, axis=1)[:, None]
    length = jnp.take_along_axis(lengths, best, axis=1)[:, 0]
    words = jnp.take_along_axis(words, best[..., None], axis=1)[:, 0]
    words = jnp.where(jnp.arange(settings.words)[None] < length[:, None], words, settings.padding)
    return Generated(words, length, jnp.take_along_axis(scores, best, axis=1)[:, 0])


# --- the original's search -------------------------------------------------------------------------------------------------


def best_first(
    next_scores: Callable[[list[int]], np.ndarray],
    prompt: Sequence[int],
    *,
    stop: int,
    width: int,
    count: int,
    branch: int = 10,
    limit: int = 200,
) -> list[tuple[float, list[int]]]:
    """MLMI's search, which it calls a beam search (Flamingo spec, section 14): for comparing with its numbers.

    Always the text with the best mean log-probability goes on, by each of its `width` best words; probabilities are among the
    `branch` best words only. Nothing bounds the length but `limit`, on the texts in all.

    Args:
      next_scores: a text to the scores float[V] of its next word.
      prompt: numbers of the words.
      stop: number of the word that ends a text.
      width: continuations of a text.
      count: ended texts after which the search is over.
      branch: words among which probabilities are taken.
      limit: texts after which the search is over.

    Returns:
      (score, text with the prompt), the lower the better; the best that are left where none has ended.
    """

    def entry(total: float, text: list[int]) -> tuple[float, int, float, list[int]]:
        words = len(text) - len(prompt)
        return (-total / (words + 1e-6), next(number), total, text)

    number = itertools.count()
    queue, ended, texts = [entry(0.0, list(prompt))], [], 1
    while queue and texts <= limit:
        found = heapq.heappop(queue)
        _, _, total, text = found
        if text[-1] == stop and len(text) > len(prompt):
            ended.append(found)
            if len(ended) >= count:
                break
            continue
        scores = np.asarray(next_scores(text), np.float64)
        best = np.argsort(-scores, kind="stable")[:branch]
        logs = scores[best] - functools.reduce(np.logaddexp, scores[best])
        for word, log in list(zip(best, logs, strict=True))[:width]:
            heapq.heappush(queue, entry(total + float(log), [*text, int(word)]))
        texts += width - 1
    ended = ended or [heapq.heappop(queue) for _ in range(min(count, len(queue)))]
    return [(score, text) for score, _, _, text in sorted(ended)]
