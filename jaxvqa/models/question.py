"""The question side that CMSA, its pre-training, BAN and SAN share: two word tables, and what runs over the words."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvqa.errors import ConfigError, nearest
from jaxvqa.models.layers.gru import GRU
from jaxvqa.models.layers.lstm import LSTM
from jaxvqa.models.layers.query_norm import QueryNormEncoder


class WordEmbedding(nn.Module):
    """Looks each word up in one table or in two, and puts the vectors side by side (CMSA spec, section 2.1).

    The last row of a table, number V, is the padding word's. It begins as zeros and never gets a gradient, but is looked up
    like any other: a checkpoint may hold something else there.

    Attributes:
      vocab_size: number of words V, without the padding word.
      width: size d of a vector in each table.
      tables: number of tables.
      dtype: type of the result; the tables are float32.
    """

    vocab_size: int
    width: int
    tables: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, question: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Returns E = tables · width numbers for each word. question: int[B, T], V is padding."""

        def init(key: Array, shape: tuple[int, int]) -> Array:
            return jax.random.normal(key, shape).at[-1].set(0.0)

        shape = (self.vocab_size + 1, self.width)
        found = [jnp.take(self.param(f"table_{i}", init, shape), question, axis=0) for i in range(self.tables)]
        words = jnp.concatenate(found, axis=-1).astype(self.dtype)
        padding = jnp.expand_dims(question == self.vocab_size, -1)
        return jnp.where(padding, jax.lax.stop_gradient(words), words)


class QuestionEncoder(nn.Module):
    """Turns words into a state for each position, padding included (CMSA spec, section 2.3).

    Attributes:
      width: size of the state of an LSTM or a GRU; self-attention keeps the words' own.
      rnn: `lstm` or `gru`.
      self_attention: encode by self-attention in place of `rnn`.
      dropout: rate of dropout in the self-attention; the others have none.
      dtype: type of the multiplications and of the states.
    """

    RNN: ClassVar = {"lstm": LSTM, "gru": GRU}

    width: int = 1024
    rnn: str = "lstm"
    self_attention: bool = False
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, words: Float[Array, "B T E"], *, train: bool) -> Float[Array, "B T D"]:
        """Encodes a question; nothing is masked, so that the states of later positions have passed over the padding."""
        if self.self_attention:
            return QueryNormEncoder(dropout=self.dropout, dtype=self.dtype, name="encoder")(words, train=train)
        if self.rnn not in self.RNN:
            raise ConfigError(f"model.rnn is {self.rnn!r}; there is lstm, gru.{nearest(self.rnn, self.RNN)}")
        return self.RNN[self.rnn](self.width, self.dtype, name="rnn")(words)
