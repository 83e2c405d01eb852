"""CMSA: cross-modal self-attention over the words of a question and the places of an image.

H. Gong, G. Chen, S. Liu, Y. Yu, G. Li, "Cross-Modal Self-Attention with Multi-Task Pre-Training for Medical Visual Question
Answering", ICMR 2021, DOI 10.1145/3460426.3463584. An image and a question go in, a score for each candidate answer comes out:

              ┌─ abdomen ─┐
    image ────┼─ head ────┼─ mean, weighted ─┐
          │   └─ chest ───┘       │          │
          └──── which organ? ─────┘          ├─ block_0 ── block_1 ── mean over places ── read ─ + ── sum ── classifier
    question ── embedding ── LSTM ───────────┴───────────────────────────────────────────────────┘

Three residual networks, each pre-trained on images of one part of the body, are mixed by how probable each part is. The blocks
are non-local: every pair of a word and a place reads from every other one. Where the paper and its public code differ, this
follows the code.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, kaiming_fan_out
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.non_local import NonLocal, cross_modal_map
from jaxvqa.models.layers.pooling import max_pool
from jaxvqa.models.layers.query_norm import QueryNormAttention
from jaxvqa.models.layers.weight_norm import Classifier
from jaxvqa.models.question import RadiologyModel, last_map
from jaxvqa.precision import wide, widened

ORGANS = ("abdomen", "head", "chest")
"""Parts of the body, in the order of the organ classifier's classes."""


class OrganClassifier(nn.Module):
    """A small convolutional network that classifies which part of the body an image shows (docs/originals/cmsa.md, section 3).

    Its first linear map reads a flattened map, so that its parameters fit images of one size only.

    Attributes:
      width: channels of the three convolutions.
      hidden: width between the two linear maps.
      dropout: rate of dropout between them.
      dtype: type of the multiplications; the logits are float32.
    """

    width: int = 64
    hidden: int = 512
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B 3"]:
        """Scores each of `ORGANS`."""
        x = image
        for i in range(3):
            x = Conv(self.width, 3, 2, 1, True, kaiming_fan_out(3, self.width), self.dtype, name=f"conv_{i}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm_{i}")(x, train=train))
            x = max_pool(x) if i < 2 else x
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # the checkpoints' order: channels, rows, columns

        def linear(features: int, name: str) -> nn.Dense:
            xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
            return nn.Dense(features, kernel_init=xavier, dtype=self.dtype, name=name)

        x = BatchNorm(dtype=self.dtype, name="hidden_norm")(linear(self.hidden, "hidden")(x), train=train)
        x = Dropout(self.dropout)(nn.relu(x), train=train)
        return widened(linear(len(ORGANS), "output")(x))


class CMSA(RadiologyModel, kw_only=True):
    """The whole network; the defaults are the published sizes.

    Attributes:
      num_answers: number of candidate answers A.
      organ_width: channels of the organ classifier.
      organ_hidden: width between its two linear layers.
      spatial: whether 8 more channels tell the blocks where a place lies.
      cross_attention: let the words read from the blocks' result by attention instead of adding it to them.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image", "question")

    num_answers: int
    organ_width: int = 64
    organ_hidden: int = 512
    spatial: bool = True
    cross_attention: bool = False

    def setup(self) -> None:
        """Makes the parts, which both methods below use."""
        dtype, states = self.dtype, self.tables * self.embed_width if self.self_attention else self.width
        self.embed, self.question = self.question_parts()
        self.abdomen, self.head, self.chest = (self.image_branch()() for _ in ORGANS)
        self.organ = OrganClassifier(self.organ_width, self.organ_hidden, self.dropout, dtype)
        self.block_0, self.block_1 = NonLocal(dtype), NonLocal(dtype)
        self.projection = Linear(states, dtype)
        if self.cross_attention:
            self.word_attention = QueryNormAttention(1, states, self.attention_dropout, dtype)
        self.classifier = Classifier(2 * states, self.num_answers, self.dropout, dtype)

    def __call__(
        self, *, image: Float[Array, "B H W 3"], question: Int[Array, "B T"], train: bool = False
    ) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Scores every candidate answer.

        Args:
          image: float[B, H, W, 3], normalised.
          question: int[B, T], numbers of the words; V is padding, which is not masked.
          train: applies dropout, which needs the random stream "dropout", and normalises by the batch's statistics, which
            needs the collection `batch_stats` to be mutable.

        Returns:
          float32[B, A] logits, and the named intermediates: `abdomen`, `head`, `chest`, the branches' maps [B, H', W', V],
          and those of `from_maps`.
        """
        branches = {"abdomen": self.abdomen, "head": self.head, "chest": self.chest}
        maps = {name: last_map(branch, image, train=train) for name, branch in branches.items()}
        logits, out = self.from_maps(
            maps=tuple(maps.values()), organ_logits=self.organ(image, train=train), question=question, train=train
        )
        return logits, maps | out

    def from_maps(
        self,
        *,
        maps: tuple[Float[Array, "B H W V"], ...],
        organ_logits: Float[Array, "B 3"],
        question: Int[Array, "B T"],
        train: bool = False,
    ) -> tuple[Float[Array, "B A"], dict[str, Array]]:
        """Scores every candidate answer by the branches' maps.

        Returns:
          float32[B, A] logits, and the named intermediates: `organ_logits` float32[B, 3]; `image_map` [B, H, W, V], the
          mixed one; `question` [B, T, D], the words' states; `map`, `block_0`, `map_1` and `block_1` [B, T, H, W, C], what goes
          into each block and what comes out of it; `theta_0`, `phi_0` and `value_0` [B, T, H, W, C/2]; `pooled` [B, T, C];
          `read` and `joint` [B, T, D]; `fused` [B, D]; and `attention_0` and `attention_1` float32[B, T, H, W], how much each
          word reads from each place in a block, as a mean over the places from where it reads; and `question_attention`
          float32[B, T] and `region_attention` float32[B, H, W], how much the last block reads from each word and each place.
        """
        share = jax.nn.softmax(organ_logits, axis=-1).astype(self.dtype)
        image = jnp.einsum("bk,kbhwv->bhwv", share, jnp.stack(maps).astype(self.dtype))
        words = self.question(self.embed(question), train=train)

        x = cross_modal_map(words, image, spatial=self.spatial)
        update_0, inside_0 = self.block_0(x, train=train)
        second = update_0 + x * 2.0  # the block's own residual, and after this block once more
        update_1, inside_1 = self.block_1(second, train=train)
        last = update_1 + second

        (batch, height, width, _), count = image.shape, words.shape[1]
        pooled = last.mean(count)
        read = self.projection(pooled)
        joint = self.word_attention(words, read, train=train) if self.cross_attention else words + read
        fused = jnp.sum(joint, axis=1, dtype=wide(joint.dtype)).astype(self.dtype)
        logits = self.classifier(fused, train=train)

        out = {"organ_logits": organ_logits, "image_map": image, "question": words}
        spelt_out = {"map": x, "block_0": update_0 + x, "map_1": second, "block_1": last}
        dense = {name: mixture.dense() for name, mixture in spelt_out.items()}
        dense |= {f"{name}_0": inside_0[name] for name in ("theta", "phi", "value")}
        out |= {name: value.reshape(batch, count, height, width, -1) for name, value in dense.items()}
        for name, inside in {"attention_0": inside_0, "attention_1": inside_1}.items():
            pairs = inside["attention"].reshape(batch, count, height * width, count, height, width)
            out[name] = pairs.mean(axis=2).sum(axis=2)
        read_from = pairs.mean(axis=(1, 2))  # of the last block
        out |= {"question_attention": read_from.sum(axis=(2, 3)), "region_attention": read_from.sum(axis=1)}
        return logits, out | {"pooled": pooled, "read": read, "joint": joint, "fused": fused}
