"""What CMSA, its pre-training, BAN and SAN share: two tables of tokens, what runs over these, and the image branches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float, Int

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models import towers
from jaxvqa.models.layers.gru import GRU
from jaxvqa.models.layers.lstm import LSTM
from jaxvqa.models.layers.query_norm import QueryNormEncoder


class WordEmbedding(nn.Module):
    """Looks each word up in one table or in two, and puts the vectors side by side (docs/originals/cmsa.md, section 2.1).

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
    """Turns words into a state for each position, padding included (docs/originals/cmsa.md, section 2.3).

    Attributes:
      width: size of the state of an LSTM or a GRU; self-attention keeps the words' own.
      rnn: `lstm` or `gru`.
      self_attention: encode by self-attention instead of `rnn`.
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
            raise ConfigError(f"model.rnn is {self.rnn!r}{choose(self.rnn, self.RNN)}")
        return self.RNN[self.rnn](self.width, self.dtype, name="rnn")(words)


class RadiologyModel(nn.Module, kw_only=True):
    """The fields that these models have in common, and the parts that follow from them.

    Attributes:
      vocab_size: number of tokens V, without padding.
      embed_width: size of a token's vector in each table.
      tables: number of tables, whose vectors are put side by side.
      width: size of the state of the LSTM or GRU.
      rnn: `lstm` or `gru`.
      self_attention: encode the question by self-attention instead of `rnn`; the states are as wide as the vectors then.
      branch: the network of each image branch, one of `towers.IN_STAGES`.
      branch_sizes: fields of these networks that differ from the published ones, such as `width` and `remat`.
      dropout: rate of dropout in the classifiers.
      attention_dropout: rate of dropout in attention to the question or by it.
      dtype: type of the multiplications and of the activations between them; parameters, statistics, softmaxes and logits
        are float32.
    """

    vocab_size: int
    embed_width: int = 200
    tables: int = 2
    width: int = 1024
    rnn: str = "lstm"
    self_attention: bool = False
    branch: str = "resnet34"
    branch_sizes: Mapping[str, Any] = FrozenDict()
    dropout: float = 0.5
    attention_dropout: float = 0.1
    dtype: Any = jnp.float32

    def question_parts(self) -> tuple[WordEmbedding, QuestionEncoder]:
        """What looks the tokens up, and what encodes them."""
        encoder = QuestionEncoder(
            self.width, self.rnn, self.self_attention, self.attention_dropout, self.dtype, parent=None
        )
        return WordEmbedding(self.vocab_size, self.embed_width, self.tables, self.dtype, parent=None), encoder

    def image_branch(self, branch: str = "") -> Callable[..., nn.Module]:
        """Makes a network that reads the image, `self.branch` unless another is named; see `towers.make`."""
        of_branch = (branch or self.branch, self.branch_sizes, "model.branch", "model.branch_sizes")
        return functools.partial(towers.make, "network in stages", *of_branch, dtype=self.dtype)


def last_map(branch: nn.Module, image: Float[Array, "B H W 3"], *, train: bool) -> Float[Array, "B P Q V"]:
    """The smallest of an image branch's maps."""
    *_, last = branch.stages(image, train=train).values()
    return last
