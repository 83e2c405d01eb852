"""The loop: one program that reads the prompts, one that adds tokens, nothing compiled in between.

Prompts are padded at their end to the next of a few lengths (buckets). A program is compiled once for each bucket and number of
rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxvqa import paths
from jaxvqa.decoding import rules
from jaxvqa.decoding.search import Beams, Generated, Limits, Search, SearchRule, Single
from jaxvqa.decoding.writer import Read, read
from jaxvqa.errors import ConfigError
from jaxvqa.kernels import FEW_ROWS
from jaxvqa.types import Collections, Config

BUCKETS = (16, 32, 64, 128, 256, 512, 1024)
"""Lengths of prompts for which there are programs; a longer one gets a program of its own length."""

MANY_TOKENS = 8
"""From this many tokens on, what `_with_transposed` takes (four or five tokens' time) is won back; with a single row never."""

Prompts = Sequence[Sequence[int] | np.ndarray]
"""Token ids of each prompt."""


def search_of(settings: Config | Mapping[str, Any], *, end: int | None = None, padding: int = 0) -> Search:
    """The search that `config.generate` names.

    Args:
      settings: `max_new_tokens`; `beams` and their `length_penalty` (see `SearchRule`); or with one beam `temperature` (0: the
        best token each time; otherwise one is drawn), `top_k` (0: of all tokens) and `top_p`, see `jaxvqa.decoding.rules`.
      end: id of the token that ends a text; None: every text has all its tokens.
      padding: id of the token that fills prompts and what is behind the end.

    Raises:
      ConfigError: there are beams and a temperature.
    """
    temperature, top_k, top_p = (settings.get(name, 0) for name in ("temperature", "top_k", "top_p"))
    tokens, beams = settings["max_new_tokens"], settings.get("beams", 1)
    if beams > 1:
        if temperature:
            raise ConfigError(
                f"config.generate.beams is {beams} and config.generate.temperature {temperature}: beams follow the best texts. "
                "Set one of them to 1 or 0."
            )
        return Beams(Limits(tokens, end, padding), beams, SearchRule(settings.get("length_penalty", 1.0)))
    drawn: tuple[rules.Rule, ...] = ()
    if temperature:
        drawn = (rules.Temperature(temperature), *([rules.TopK(top_k)] if top_k else []))
        drawn += (rules.TopP(top_p),) if 0 < top_p < 1 else ()
    return Single(Limits(tokens, end, padding, drawn), draw=bool(temperature))


class Generator:
    """Writes with a model.

    Attributes:
      model: a `jaxvqa.decoding.writer.Writer`.
      search: how tokens are chosen.
      prefill: the compiled program that reads prompts: (variables, prompt, mask, inputs) -> `Read`.
      loop: the compiled one that writes: (variables, `Read`, key) -> `Generated`.
    """

    def __init__(self, model: nn.Module, search: Search, buckets: Sequence[int] = BUCKETS) -> None:
        self.model, self.search, self.buckets = model, search, tuple(buckets)
        self.prefill = jax.jit(self._prefill)
        self.loop = jax.jit(self._loop)

    def prepare(self, variables: Collections) -> Collections:
        """Adds what makes each token faster to the model's variables, for many calls with the same ones.

        On a CPU these are copies of the kernels, as large as they are (`Linear`); elsewhere nothing. A call makes them itself,
        and forgets them, where that pays.
        """
        return jax.jit(_with_transposed)(variables) if jax.default_backend() == "cpu" else variables

    def __call__(self, variables: Collections, prompts: Prompts, *, seed: int = 0, **inputs: Any) -> Generated:
        """Goes on with each prompt.

        Args:
          variables: the model's, or what `prepare` made of them.
          prompts: token ids of each, at least one.
          seed: of the draws; a row's depend on it, on its place and on the token's number, not on the other rows.
          **inputs: what else the model reads, such as `image`, with a row for each prompt.
        """
        if not all(len(prompt) for prompt in prompts):
            raise ConfigError("A prompt has to have a token to go on from.")
        text, mask = pad(prompts, self.search.limits.padding, self.buckets)
        return self.write(variables, text, mask, jax.random.key(seed), **inputs)

    def write(self, variables: Collections, prompt: Any, mask: Any, key: Key[Array, ""], **inputs: Any) -> Generated:
        """Goes on with prompts int32[B, P] whose padding, on either side, has a mask of False."""
        return self.loop(variables, self.prefill(variables, prompt, mask, inputs), key)

    def _prefill(self, variables: Collections, prompt: Any, mask: Any, inputs: Mapping[str, Any]) -> Read:
        new, texts = self.search.limits.tokens, self.search.texts
        return read(self.model, variables, prompt, mask, new=new, texts=texts, **inputs)

    def _loop(self, variables: Collections, start: Read, key: Key[Array, ""]) -> Generated:
        search, most = self.search, self.search.limits.tokens
        rows = len(start.logits) * search.texts
        pays = rows > 1 and rows in FEW_ROWS and most >= MANY_TOKENS
        if pays and "transposed" not in variables and jax.default_backend() == "cpu":
            variables = _with_transposed(variables)
        logits, cache = start.logits, start.cache
        if search.texts > 1:
            logits = jnp.repeat(logits, search.texts, axis=0)
            cache = cache.of_texts(lambda x: jnp.repeat(x, search.texts, axis=0))
        state = search.choose(search.start(start), logits, key)

        def go_on(carry: tuple[Any, Any]) -> Array:
            state, _ = carry
            return (state.written.count < most) & ~jnp.all(state.done)

        def add(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, cache = carry
            if (parents := search.parents(state)) is not None:
                cache = cache.of_texts(lambda x: x[parents])
            token = jnp.take(state.written.tokens, state.written.count - 1, axis=1)
            logits, cache = self.model.apply(variables, token, cache, method="decode")
            return search.choose(state, logits, key), cache

        state, _ = jax.lax.while_loop(go_on, add, (state, cache))
        return search.result(state)


def pad(prompts: Prompts, padding: int, buckets: Sequence[int] = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Puts prompts into one array, int32[B, P] and its mask bool[B, P], P the smallest bucket that holds the longest."""
    longest = max(len(prompt) for prompt in prompts)
    length = min((size for size in buckets if size >= longest), default=longest)
    text = np.full((len(prompts), length), padding, np.int32)
    mask = np.zeros(text.shape, np.bool_)
    for row, real, prompt in zip(text, mask, prompts, strict=True):
        row[: len(prompt)], real[: len(prompt)] = prompt, True
    return text, mask


def _with_transposed(variables: Collections) -> Collections:
    """Puts each linear layer's kernel transposed beside it, for `Linear`: done once, it makes every token's products faster."""
    kernels = {path: x for path, x in paths.flatten(variables.get("params", {})).items() if path.endswith("/kernel")}
    return {**variables, "transposed": paths.nest({path: x.T for path, x in kernels.items() if x.ndim == 2})}
