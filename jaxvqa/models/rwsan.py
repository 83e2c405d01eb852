"""RWSAN: the deep residual weight-sharing attention network with low-rank attention.

Bosheng Qin, Haoji Hu, Yueting Zhuang, IEEE Transactions on Multimedia 25, 2022, DOI 10.1109/TMM.2022.3173131.
A question and the features of an image's regions go in, a score for each candidate answer comes out:

    question ── embedding ── LSTM ── encoder pass ×3 ──┬──────────── pooling ──┐
                                                       │ guides                + ── norm ── answer
    regions ─────────────── linear ─────────────── decoder pass ×3 ─ pooling ──┘

A pass calls one unit three times. All encoder passes share one set of parameters, and so do all decoder passes, so that
depth costs time but no parameters. Where the paper and its public code differ, this follows the code.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.attention import AttentionPooling, MultiHeadAttention
from jaxvqa.models.layers.feed_forward import FeedForward
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.lstm import LSTM
from jaxvqa.models.layers.norm import StdNorm
from jaxvqa.models.layers.transformer import Block
from jaxvqa.precision import widened


def unit(width: int, heads: int, ranks: tuple[int, ...], dropout: float, dtype: Any) -> Block:
    """Attention to the sequence itself, to the question where there is a second rank, and a feed-forward part.

    A query and a key have only `rank` entries in each head, and the scores are divided by the root of the rank, not of a
    value's size (docs/originals/rwsan.md, section 1.4).

    Args:
      width: size D of a state.
      heads: number of heads of each attention.
      ranks: of the self-attention, and of the attention to the question.
      dropout: rate of dropout in the weights, after the ReLU and of what each part adds.
      dtype: type of the multiplications.
    """
    attention, guided = (
        MultiHeadAttention(heads, rank, width, width // heads, dropout=dropout, dtype=dtype, parent=None)
        for rank in (ranks[0], ranks[-1])
    )
    return Block(
        attention=attention,
        feed_forward=FeedForward(4 * width, width, dropout, dtype, parent=None),
        norm=functools.partial(StdNorm, dtype=dtype),
        norm_first=False,
        cross_attention=guided if len(ranks) > 1 else None,
        dropout=dropout,
        parent=None,
    )


class EncoderPass(nn.Module):
    """One pass over the question: x₁ = U(x), x₂ = U(N₁(x₁ + x)), x₃ = U(N₂(x₂ + x)), with the pass's own input x.

    Attributes:
      unit: U.
      train: whether dropout is applied.
    """

    unit: Block
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 1 T"]
    ) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B T D"]]]:
        """Returns x₃, and the same again with x₁ by name."""

        def refined(x: Array) -> Array:
            return self.unit(x, mask, train=self.train)[0]

        first = refined(x)
        second = refined(self.unit.norm(name="second_norm")(first + x))
        third = refined(self.unit.norm(name="third_norm")(second + x))
        return third, {"unit": first, "pass": third}


class DecoderPass(nn.Module):
    """One pass over the regions: y₁ = U(y), y₂ = U(N₁(y₁ + y)), y₃ = U(y₂), result N₂(y₃ + y), with its own input y.

    Not wired like the encoder's: no residual before the third call, but one with a norm after it (docs/originals/rwsan.md,
    section 1.7).

    Attributes:
      unit: U, which reads the question too.
      train: whether dropout is applied.
    """

    unit: Block
    train: bool

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "B R D"],
        mask: Bool[Array, "B 1 1 R"],
        question: Float[Array, "B T D"],
        question_mask: Bool[Array, "B 1 1 T"],
    ) -> tuple[Float[Array, "B R D"], dict[str, Float[Array, "B R D"]]]:
        """Returns the result, and the same again with y₁ by name."""

        def refined(y: Array) -> Array:
            memory = self.unit.remember(question)
            return self.unit(y, mask, memory=memory, memory_mask=question_mask, train=self.train)[0]

        first = refined(y)
        third = refined(refined(self.unit.norm(name="second_norm")(first + y)))
        result = self.unit.norm(name="last_norm")(third + y)
        return result, {"unit": first, "pass": result}


def repeated(module: type[nn.Module], times: int, remat: bool) -> Any:
    """Applies a module `times` times in a row, always with the same parameters.

    The module takes what it changes, then what stays; it returns the former, and values that are stacked over the passes.

    Without `remat` the loop is written out, which on CPU is a fifth faster than a loop of the compiler. With it, it has to
    be a loop: written out, XLA on CPU computes things again and keeps them all the same. The random numbers are the same.
    """
    return nn.scan(
        nn.remat(module, prevent_cse=False) if remat else module,
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True},
        in_axes=nn.broadcast,
        length=times,
        unroll=1 if remat else times,
    )


class RWSAN(nn.Module):
    """The whole network; the defaults are the published sizes.

    Attributes:
      vocab_size: number of tokens V, padding and the unknown token included.
      num_answers: number of candidate answers A.
      embed_width: size of a token's vector.
      width: width D of both streams; the feed-forward blocks are four times as wide.
      heads: number of attention heads K; divides the width.
      encoder_passes: how often the encoder's pass is applied.
      decoder_passes: how often the decoder's pass is applied.
      question_rank: size of a key in each head of the question's self-attention.
      region_rank: size of a key in each head of the regions' self-attention.
      guided_rank: size of a key in each head of the regions' attention to the question.
      flatten_width: hidden width of the scorers that pool each stream into one vector.
      fused_width: width of the pooled vectors and of their sum.
      dropout: rate of dropout in attention weights, before residuals and after each ReLU.
      dtype: type of the multiplications and of the activations between them; parameters, norms, softmaxes, masks and
        logits are float32.
      remat: keep only what each pass begins with, and compute the rest again in the backward pass: at the published size
        a third of the memory for a sixth more time (measured on CPU).
    """

    vocab_size: int
    num_answers: int
    embed_width: int = 300
    width: int = 512
    heads: int = 4
    encoder_passes: int = 3
    decoder_passes: int = 3
    question_rank: int = 4
    region_rank: int = 16
    guided_rank: int = 64
    flatten_width: int = 256
    fused_width: int = 1024
    dropout: float = 0.1
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, *, regions: Float[Array, "B R F"], question: Int[Array, "B T"], train: bool = False
    ) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Scores every candidate answer.

        Args:
          regions: float[B, R, F], features of the image's regions; a row of zeros is padding, wherever it stands.
          question: int[B, T], token ids; 0 is padding.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          float32[B, A] logits, and the named intermediates: `lstm` [B, T, D], `region_input` [B, R, D],
          `encoder_unit_first`, `encoder_pass_first`, `encoder` [B, T, D], `decoder_unit_first`, `decoder_pass_first`,
          `decoder` [B, R, D], `question_flat`, `region_flat`, `fused` [B, fused_width], and the weights of the pooling,
          `question_attention` float32[B, T] and `region_attention` float32[B, R].
        """
        # By value and before any projection: afterwards a padding row is the projection's bias (docs/originals/rwsan.md,
        # section 1.1).
        region_mask, question_mask = jnp.any(regions != 0, axis=-1), question != 0

        words = nn.Embed(
            self.vocab_size,
            self.embed_width,
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
            name="embed",
        )(question)
        x = LSTM(self.width, self.dtype, name="lstm")(words)
        y = Linear(self.width, self.dtype, name="region_input")(regions)
        out = {"lstm": x, "region_input": y}

        def make_unit(*ranks: int) -> Block:
            return unit(self.width, self.heads, ranks, self.dropout, self.dtype)

        encoder = repeated(EncoderPass, self.encoder_passes, self.remat)
        encoder = encoder(make_unit(self.question_rank), train, name="encoder")
        x, passes = encoder(x, question_mask[:, None, None])
        out |= {"encoder": x, "encoder_unit_first": passes["unit"][0], "encoder_pass_first": passes["pass"][0]}
        decoder = repeated(DecoderPass, self.decoder_passes, self.remat)
        decoder = decoder(make_unit(self.region_rank, self.guided_rank), train, name="decoder")
        y, passes = decoder(y, region_mask[:, None, None], x, question_mask[:, None, None])
        out |= {"decoder": y, "decoder_unit_first": passes["unit"][0], "decoder_pass_first": passes["pass"][0]}

        def pool(name: str) -> AttentionPooling:
            return AttentionPooling(self.flatten_width, self.fused_width, self.dropout, self.dtype, name=name)

        x, out["question_attention"] = pool("question_pooling")(x, question_mask, train=train)
        y, out["region_attention"] = pool("region_pooling")(y, region_mask, train=train)
        fused = StdNorm(dtype=self.dtype, name="fused_norm")(x + y)
        out |= {"question_flat": x, "region_flat": y, "fused": fused}
        logits = Linear(self.num_answers, self.dtype, name="classifier")(fused)
        return widened(logits), out
