"""RWSAN: the deep residual weight-sharing attention network with low-rank attention.

Bosheng Qin, Haoji Hu, Yueting Zhuang, IEEE Transactions on Multimedia 25, 2022, DOI 10.1109/TMM.2022.3173131.
A question and the features of an image's regions go in, a score for each candidate answer comes out:

    question ── embedding ── LSTM ── encoder pass ×3 ──┬──────────── pooling ──┐
                                                       │ guides                + ── norm ── answer
    regions ─────────────── linear ─────────────── decoder pass ×3 ─ pooling ──┘

A pass calls one unit three times. All encoder passes share one set of parameters, and so do all decoder passes, so that
depth costs time but no parameters. Where the paper and its public code differ, this follows the code.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvqa.models.layers.attention import AttentionPooling, FeedForward, LowRankAttention
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.lstm import LSTM
from jaxvqa.models.layers.norm import StdNorm
from jaxvqa.precision import widened


class SelfUnit(nn.Module):
    """Self-attention, then a feed-forward block, each with a residual and a norm after it.

    Attributes:
      heads: number of attention heads.
      rank: size of a key in each head.
      dropout: dropout rate.
      dtype: type of the multiplications.
    """

    heads: int
    rank: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], padding: Bool[Array, "B T"], train: bool) -> Float[Array, "B T D"]:
        """Refines the sequence x."""
        width = x.shape[-1]
        attended = LowRankAttention(self.heads, self.rank, self.dropout, self.dtype, name="self_attention")(
            x, x, padding, train=train
        )
        x = StdNorm(dtype=self.dtype, name="self_attention_norm")(x + Dropout(self.dropout)(attended, train=train))
        mapped = FeedForward(4 * width, width, self.dropout, self.dtype, name="feed_forward")(x, train=train)
        return StdNorm(dtype=self.dtype, name="feed_forward_norm")(x + Dropout(self.dropout)(mapped, train=train))


class GuidedUnit(nn.Module):
    """Self-attention, attention guided by the question, then a feed-forward block, each with a residual and a norm.

    Attributes:
      heads: number of attention heads.
      self_rank: size of a key in each head of the self-attention.
      guided_rank: size of a key in each head of the guided attention.
      dropout: dropout rate.
      dtype: type of the multiplications.
    """

    heads: int
    self_rank: int
    guided_rank: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "B R D"],
        padding: Bool[Array, "B R"],
        question: Float[Array, "B T D"],
        question_padding: Bool[Array, "B T"],
        train: bool,
    ) -> Float[Array, "B R D"]:
        """Refines the regions y, which read from each other and from the encoded question."""
        width = y.shape[-1]
        attended = LowRankAttention(self.heads, self.self_rank, self.dropout, self.dtype, name="self_attention")(
            y, y, padding, train=train
        )
        y = StdNorm(dtype=self.dtype, name="self_attention_norm")(y + Dropout(self.dropout)(attended, train=train))
        guided = LowRankAttention(self.heads, self.guided_rank, self.dropout, self.dtype, name="guided_attention")(
            y, question, question_padding, train=train
        )
        y = StdNorm(dtype=self.dtype, name="guided_attention_norm")(y + Dropout(self.dropout)(guided, train=train))
        mapped = FeedForward(4 * width, width, self.dropout, self.dtype, name="feed_forward")(y, train=train)
        return StdNorm(dtype=self.dtype, name="feed_forward_norm")(y + Dropout(self.dropout)(mapped, train=train))


class EncoderPass(nn.Module):
    """One pass over the question: x₁ = U(x), x₂ = U(N₁(x₁ + x)), x₃ = U(N₂(x₂ + x)), with the pass's own input x.

    Attributes:
      heads: number of attention heads.
      rank: size of a key in each head.
      dropout: dropout rate.
      dtype: type of the multiplications.
      train: whether dropout is applied.
    """

    heads: int
    rank: int
    dropout: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], padding: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B T D"]]]:
        """Returns x₃, and the same again with x₁ by name."""
        unit = SelfUnit(self.heads, self.rank, self.dropout, self.dtype, name="unit")
        first = unit(x, padding, self.train)
        second = unit(StdNorm(dtype=self.dtype, name="second_norm")(first + x), padding, self.train)
        third = unit(StdNorm(dtype=self.dtype, name="third_norm")(second + x), padding, self.train)
        return third, {"unit": first, "pass": third}


class DecoderPass(nn.Module):
    """One pass over the regions: y₁ = U(y), y₂ = U(N₁(y₁ + y)), y₃ = U(y₂), result N₂(y₃ + y), with its own input y.

    Not wired like the encoder's: no residual before the third call, but one with a norm after it (spec section 1.7).

    Attributes:
      heads: number of attention heads.
      self_rank: size of a key in each head of the self-attention.
      guided_rank: size of a key in each head of the guided attention.
      dropout: dropout rate.
      dtype: type of the multiplications.
      train: whether dropout is applied.
    """

    heads: int
    self_rank: int
    guided_rank: int
    dropout: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(
        self,
        y: Float[Array, "B R D"],
        padding: Bool[Array, "B R"],
        question: Float[Array, "B T D"],
        question_padding: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B R D"], dict[str, Float[Array, "B R D"]]]:
        """Returns the result, and the same again with y₁ by name."""
        unit = GuidedUnit(self.heads, self.self_rank, self.guided_rank, self.dropout, self.dtype, name="unit")
        first = unit(y, padding, question, question_padding, self.train)
        second = StdNorm(dtype=self.dtype, name="second_norm")(first + y)
        second = unit(second, padding, question, question_padding, self.train)
        third = unit(second, padding, question, question_padding, self.train)
        result = StdNorm(dtype=self.dtype, name="last_norm")(third + y)
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
      vocab_size: number of words V, padding and unknown word included.
      num_answers: number of candidate answers A.
      embed_width: size of a word vector.
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
          question: int[B, T], numbers of the words; 0 is padding.
          train: applies dropout, which needs the random stream "dropout".

        Returns:
          float32[B, A] logits, and the named intermediates: `lstm` [B, T, D], `region_input` [B, R, D],
          `encoder_unit_first`, `encoder_pass_first`, `encoder` [B, T, D], `decoder_unit_first`, `decoder_pass_first`,
          `decoder` [B, R, D], `question_flat`, `region_flat`, `fused` [B, fused_width], and the weights of the pooling,
          `question_attention` float32[B, T] and `region_attention` float32[B, R].
        """
        # By value and before any projection: afterwards a padding row is the projection's bias (spec section 1.1).
        region_padding = jnp.all(regions == 0, axis=-1)
        question_padding = question == 0

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

        encoder = repeated(EncoderPass, self.encoder_passes, self.remat)(
            self.heads, self.question_rank, self.dropout, self.dtype, train, name="encoder"
        )
        x, passes = encoder(x, question_padding)
        out |= {"encoder": x, "encoder_unit_first": passes["unit"][0], "encoder_pass_first": passes["pass"][0]}
        decoder = repeated(DecoderPass, self.decoder_passes, self.remat)(
            self.heads,
            self.region_rank,
            self.guided_rank,
            self.dropout,
            self.dtype,
            train,
            name="decoder",
        )
        y, passes = decoder(y, region_padding, x, question_padding)
        out |= {"decoder": y, "decoder_unit_first": passes["unit"][0], "decoder_pass_first": passes["pass"][0]}

        def pool(name: str) -> AttentionPooling:
            return AttentionPooling(self.flatten_width, self.fused_width, self.dropout, self.dtype, name=name)

        x, out["question_attention"] = pool("question_pooling")(x, question_padding, train=train)
        y, out["region_attention"] = pool("region_pooling")(y, region_padding, train=train)
        fused = StdNorm(dtype=self.dtype, name="fused_norm")(x + y)
        out |= {"question_flat": x, "region_flat": y, "fused": fused}
        logits = Linear(self.num_answers, self.dtype, name="classifier")(fused)
        return widened(logits), out
