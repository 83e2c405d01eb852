"""Searches: how the next token of each text is chosen, and when a text is done. Values, one loop for all of them."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Key

from jaxvqa.decoding.rules import Rule, Written, apply
from jaxvqa.decoding.writer import Read


class Generated(flax.struct.PyTreeNode):
    """What was written.

    Attributes:
      tokens: int32[B, W], padding from the end token on.
      lengths: int32[B], number of tokens before it.
      scores: float32[B], sum of the log-probabilities, the end token's among them; with beams, as these compare texts.
    """

    tokens: Int[Array, "B W"]
    lengths: Int[Array, " B"]
    scores: Float32[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What holds for all texts.

    Attributes:
      tokens: the most tokens W to write.
      end: id of the token that ends a text; None: every text has all its tokens.
      padding: id of the token that fills prompts and what is behind the end.
      rules: applied to the scores before a token is chosen.
    """

    tokens: int = 20
    end: int | None = None
    padding: int = 0
    rules: tuple[Rule, ...] = ()


@runtime_checkable
class State(Protocol):
    """Where the loop is, for N texts: those of a prompt side by side.

    Attributes:
      written: the texts so far.
      scores: float32[N], sums of log-probabilities.
      done: bool, for which texts or prompts nothing changes any more; when that is so for all, the loop ends.
    """

    written: Written
    scores: Float32[Array, " N"]
    done: Bool[Array, " _"]


@runtime_checkable
class Search(Protocol):
    """Chooses tokens."""

    @property
    def limits(self) -> Limits:
        """What holds for all texts."""

    @property
    def texts(self) -> int:
        """How many texts of a prompt are followed side by side."""

    def start(self, read: Read) -> Any:
        """The `State` before the first token."""

    def choose(self, state: Any, logits: Float32[Array, "N V"], key: Key[Array, ""]) -> Any:
        """The state with a token more in each text."""

    def parents(self, state: Any) -> Int[Array, " N"] | None:
        """The text from which each one goes on; None where each goes on from itself."""

    def result(self, state: Any) -> Generated:
        """What was written, once the loop has ended."""


def _start(limits: Limits, read: Read, texts: int = 1) -> Written:
    prompt, mask = (jnp.repeat(x, texts, axis=0) if texts > 1 else x for x in (read.prompt, read.prompt_mask))
    tokens = jnp.full((len(prompt), limits.tokens), limits.padding, jnp.int32)
    return Written(prompt, mask, tokens, jnp.zeros((), jnp.int32))


def _add(written: Written, token: Int[Array, " N"]) -> Written:
    tokens = jax.lax.dynamic_update_slice_in_dim(written.tokens, token[:, None], written.count, 1)
    return written.replace(tokens=tokens, count=written.count + 1)


# --- one text of each prompt -----------------------------------------------------------------------------------------------


class _Single(flax.struct.PyTreeNode):
    written: Written
    scores: Float32[Array, " B"]
    done: Bool[Array, " B"]
    lengths: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class Single:
    """The best token each time, or a drawn one.

    Attributes:
      limits: what holds for all texts.
      draw: whether a token is drawn, by the softmax of the scores after all rules.
    """

    limits: Limits = Limits()
    draw: bool = False
    texts = 1

    def start(self, read: Read) -> _Single:
        """Nothing is written, and nothing is done."""
        rows = len(read.prompt)
        zeros = jnp.zeros(rows, jnp.int32)
        return _Single(_start(self.limits, read), jnp.zeros(rows), jnp.zeros(rows, jnp.bool_), zeros)

    def choose(self, state: _Single, logits: Float32[Array, "B V"], key: Key[Array, ""]) -> _Single:
        """Adds a token to each text that has not ended. A draw depends on the key, on its row and on the token's number."""
        written = state.written
        scores = apply(self.limits.rules, logits, written)
        if self.draw:
            keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), written.count))(
                jnp.arange(len(logits))
            )
            token = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
        else:
            token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        gained = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        scores = state.scores + jnp.where(state.done, 0.0, gained)
        done = state.done if self.limits.end is None else state.done | (token == self.limits.end)
        token = jnp.where(done, self.limits.padding, token)
        return _Single(_add(written, token), scores, done, state.lengths + ~done)

    def parents(self, state: _Single) -> None:
        """None: each goes on from itself."""

    def result(self, state: _Single) -> Generated:
        """All texts as they are."""
        return Generated(state.written.tokens, state.lengths, state.scores)


# --- several texts of each prompt ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SearchRule:
    """How texts of unequal length are compared, which of them end, and when a prompt's search is over.

    Here the search goes on until no text can become better than the best that has ended. Other rules are other classes with
    these methods.

    Attributes:
      length_penalty: a text's score is the sum of its log-probabilities divided by this power of its length: 0 for the sum, 1
        for the mean.
      with_prompt: whether the prompt's tokens count in the length.
      with_end: whether the end token does; its log-probability always counts in the sum.
    """

    length_penalty: float = 1.0
    with_prompt: bool = False
    with_end: bool = True

    def score(self, total: Float32[Array, "B K"], tokens: Any, ended: bool, prompt: Int[Array, " B"]) -> Array:
        """float32[B, K], by which texts are compared.

        Args:
          total: float32[B, K], sums of log-probabilities.
          tokens: int[], how many tokens have been written before the end.
          ended: whether the end token is among the sum.
          prompt: int32[B], lengths of the prompts.
        """
        length = jnp.asarray(tokens + (ended and self.with_end), jnp.float32)
        if self.with_prompt:
            length = length + prompt[:, None]
        return total / length**self.length_penalty

    def ends(self, ends: Bool[Array, "B C"]) -> Bool[Array, "B C"]:
        """Which of the candidates, best first, that have an end token count as ended; the others are dropped."""
        return ends

    def over(
        self,
        ended: Float32[Array, "B K"],
        going: Float32[Array, " B"],
        candidate: Float32[Array, " B"],
        tokens: Int[Array, ""],
        most: int,
        prompt: Int[Array, " B"],
    ) -> Bool[Array, " B"]:
        """For which prompts the search is over.

        Args:
          ended: the scores of the texts that have ended; -inf for each that is not there yet.
          going: the best sum of the texts that go on.
          candidate: the best sum of this step's candidates, which may have ended.
          tokens: how many tokens each text has that goes on.
          most: how many it can have.
          prompt: lengths of the prompts.
        """
        # Sums only fall; divided by a growing length, the best that can become of one is at the last token, or at the next.
        last = most if self.length_penalty > 0 else tokens + 1
        longest = self.score(going[:, None], last - self.with_end, True, prompt)[:, 0]
        return longest <= jnp.max(ended, axis=1)


@dataclasses.dataclass(frozen=True)
class FullBeamsRule(SearchRule):
    """transformers' rule of version 4.15, which BLIP's captions and answers were written with.

    docs/originals/blip.md, section 8. The prompt counts in lengths, and the end does not; a text ends only if it is among
    the first K candidates; and a search is over once K texts have ended of which the worst is at least as good as the best
    candidate is at the length before the step.
    """

    with_prompt: bool = True
    with_end: bool = False

    def ends(self, ends: Bool[Array, "B C"]) -> Bool[Array, "B C"]:
        """Those among the first half of the candidates."""
        return ends & (jnp.arange(ends.shape[1]) < ends.shape[1] // 2)[None]

    def over(
        self,
        ended: Float32[Array, "B K"],
        going: Float32[Array, " B"],
        candidate: Float32[Array, " B"],
        tokens: Int[Array, ""],
        most: int,
        prompt: Int[Array, " B"],
    ) -> Bool[Array, " B"]:
        """Where K texts have ended, and no candidate is better than the worst of them; see `SearchRule.over`."""
        best = self.score(candidate[:, None], tokens - 1, False, prompt)[:, 0]
        return best <= jnp.min(ended, axis=1)


class _Beams(flax.struct.PyTreeNode):
    """`ended`: the best texts that have ended, int32[B, K, W], their lengths int32[B, K] and scores float32[B, K]."""

    written: Written
    scores: Float32[Array, " N"]
    done: Bool[Array, " B"]
    parents: Int[Array, " N"]
    ended: tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class Beams:
    """Follows the best `texts` texts of each prompt, and keeps as many that have ended.

    Attributes:
      limits: what holds for all texts.
      texts: how many K.
      rule: how they are compared, and when the search is over.
    """

    limits: Limits
    texts: int
    rule: SearchRule = SearchRule()

    def start(self, read: Read) -> _Beams:
        """At first all texts of a prompt are the same: one of them counts."""
        batch, beams = len(read.prompt), self.texts
        return _Beams(
            written=_start(self.limits, read, beams),
            scores=jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), batch),
            done=jnp.zeros(batch, jnp.bool_),
            parents=jnp.arange(batch * beams, dtype=jnp.int32),
            ended=(
                jnp.zeros((batch, beams, self.limits.tokens), jnp.int32),
                jnp.zeros((batch, beams), jnp.int32),
                jnp.full((batch, beams), -jnp.inf),
            ),
        )

    def choose(self, state: _Beams, logits: Float32[Array, "N V"], key: Key[Array, ""]) -> _Beams:
        """Goes on with the best of all texts that are one token longer, and keeps the best that end with it."""
        beams, vocabulary, written = self.texts, logits.shape[-1], state.written
        batch, end = len(logits) // beams, self.limits.end
        scores = apply(self.limits.rules, jax.nn.log_softmax(logits), written)
        sums = state.scores[:, None] + scores
        # Of twice as many texts as there are beams, at most half end, so that enough are left to go on with.
        best, at = jax.lax.top_k(sums.reshape(batch, -1), min(2 * beams, beams * vocabulary))
        parents = at // vocabulary + beams * jnp.arange(batch)[:, None]
        token = (at % vocabulary).astype(jnp.int32)
        stops = jnp.zeros_like(token, jnp.bool_) if end is None else token == end

        prompt = written.prompt_length[::beams]
        old_tokens, old_lengths, old_scores = state.ended
        ends = self.rule.ends(stops) & ~state.done[:, None]
        new_scores = jnp.where(ends, self.rule.score(best, written.count, True, prompt), -jnp.inf)
        ended_scores, kept = jax.lax.top_k(jnp.concatenate([old_scores, new_scores], axis=1), beams)
        all_tokens = jnp.concatenate([old_tokens, written.tokens[parents]], axis=1)
        all_lengths = jnp.concatenate([old_lengths, jnp.full(token.shape, written.count)], axis=1)
        ended = (
            jnp.take_along_axis(all_tokens, kept[..., None], axis=1),
            jnp.take_along_axis(all_lengths, kept, axis=1),
            ended_scores,
        )

        going, kept = jax.lax.top_k(jnp.where(stops, -jnp.inf, best), beams)
        parents, token = (jnp.take_along_axis(x, kept, axis=1).reshape(-1) for x in (parents, token))
        written = _add(written.replace(tokens=written.tokens[parents]), token)
        over = self.rule.over(ended_scores, going[:, 0], best[:, 0], written.count, self.limits.tokens, prompt)
        return _Beams(written, going.reshape(-1), state.done | over, parents.astype(jnp.int32), ended)

    def parents(self, state: _Beams) -> Int[Array, " N"]:
        """The texts from which the last token was chosen."""
        return state.parents

    def result(self, state: _Beams) -> Generated:
        """The best text of each prompt. Those that were cut off at the last token stand beside those that ended."""
        written, (tokens, lengths, scores) = state.written, state.ended
        batch, most = len(scores), self.limits.tokens
        prompt = written.prompt_length[:: self.texts]
        cut = self.rule.score(state.scores.reshape(batch, -1), written.count, False, prompt)
        scores = jnp.concatenate([scores, jnp.where(state.done[:, None], -jnp.inf, cut)], axis=1)
        tokens = jnp.concatenate([tokens, written.tokens.reshape(batch, -1, most)], axis=1)
        lengths = jnp.concatenate([lengths, jnp.full(cut.shape, written.count)], axis=1)
        best = jnp.argmax(scores, axis=1)[:, None]
        length = jnp.take_along_axis(lengths, best, axis=1)[:, 0]
        tokens = jnp.take_along_axis(tokens, best[..., None], axis=1)[:, 0]
        tokens = jnp.where(jnp.arange(most)[None] < length[:, None], tokens, self.limits.padding)
        return Generated(tokens, length, jnp.take_along_axis(scores, best, axis=1)[:, 0])
