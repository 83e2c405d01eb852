"""MTPT: the multi-task pre-training of CMSA's image branches.

H. Gong, G. Chen, S. Liu, Y. Yu, G. Li, "Cross-Modal Self-Attention with Multi-Task Pre-Training for Medical Visual
Question Answering", ICMR 2021, arXiv 2105.00136. For each organ, one residual network learns two things at once: a task of
its images, which is to segment or to classify them, and whether a question fits the organ:

    image ── backbone ──┬── decoder ─────────────────────────── classes of pixels or of the image
                        └──┐
    question ── LSTM ──────┴── non-local block ── classifier ── fits or not

Afterwards only the backbone is kept: it becomes one of CMSA's three branches (`jaxvqa/models/cmsa.py`), whose parameters
have the same paths below the branch's name. Where the paper and its public code differ, this follows the code.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import Conv, ConvTranspose
from jaxvqa.models.layers.dropout import Dropout
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.non_local import NonLocal, cross_modal_map
from jaxvqa.models.layers.pooling import global_average
from jaxvqa.models.layers.weight_norm import Classifier
from jaxvqa.models.question import QuestionEncoder, RadiologyModel, WordEmbedding
from jaxvqa.models.towers.resnet import HALVINGS
from jaxvqa.precision import wide, widened


class UpBlock(nn.Module):
    """Doubles height and width between two 1×1 convolutions, in a quarter of the channels (docs/originals/cmsa.md, section 10).

    Attributes:
      features: number of output channels.
      dtype: type of the multiplications and of the result.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], *, train: bool) -> Float[Array, "B P Q O"]:
        """Maps float[B, H, W, I] to float[B, 2·H, 2·W, features]."""
        inside = x.shape[-1] // 4

        def norm(x: Array, name: str) -> Array:
            return nn.relu(BatchNorm(dtype=self.dtype, name=name)(x, train=train))

        x = norm(Conv(inside, 1, dtype=self.dtype, name="reduce")(x), "reduce_norm")
        x = norm(ConvTranspose(inside, 3, 2, 1, 1, dtype=self.dtype, name="double")(x), "double_norm")
        return norm(Conv(self.features, 1, dtype=self.dtype, name="expand")(x), "expand_norm")


class SegmentationDecoder(nn.Module):
    """Scores the class of each pixel from the backbone's last four maps; the first one is not used.

    docs/originals/cmsa.md, section 10.

    Attributes:
      classes: number of classes.
      dtype: type of the multiplications; the logits are float32.
    """

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "B _ _ _"], ...], *, train: bool) -> Float[Array, "B H W C"]:
        """Returns the logits at the image's size, 32 times the last map's height and width."""
        first, second, third, last = maps[1:]
        x = UpBlock(third.shape[-1], self.dtype, name="up_4")(last, train=train) + third
        x = UpBlock(second.shape[-1], self.dtype, name="up_3")(x, train=train) + second
        x = UpBlock(first.shape[-1], self.dtype, name="up_2")(x, train=train) + first
        x = UpBlock(first.shape[-1], self.dtype, name="up_1")(x, train=train)
        width = first.shape[-1] // 2
        x = nn.relu(ConvTranspose(width, 4, 2, 1, 0, dtype=self.dtype, name="final_up")(x))
        x = nn.relu(Conv(width, 3, 1, 1, dtype=self.dtype, name="final_conv")(x))
        return widened(Conv(self.classes, 3, 1, 1, dtype=self.dtype, name="pixel_logits")(x))


class ClassificationDecoder(nn.Module):
    """Scores the class of the image from the mean of the backbone's last map (docs/originals/cmsa.md, section 10).

    Attributes:
      classes: number of classes.
      dropout: rate of dropout after both hidden layers.
      dtype: type of the multiplications; the logits are float32.
    """

    classes: int
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "B _ _ _"], ...], *, train: bool) -> Float[Array, "B C"]:
        """Returns the logits."""
        x = global_average(maps[-1]).astype(self.dtype)
        width = x.shape[-1]
        for i, features in enumerate((2 * width, width)):
            x = Linear(features, self.dtype, name=f"hidden_{i}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"norm_{i}")(x, train=train))
            x = Dropout(self.dropout)(x, train=train)
        return widened(Linear(self.classes, self.dtype, name="logits")(x))


class Compatibility(nn.Module):
    """Scores whether a question fits an image's organ (docs/originals/cmsa.md, section 10).

    CMSA's fusion with one non-local block instead of two: the words and the places of the image read from each other; each
    word's mean over the places is added to its state; the sum over the words, padding included, is classified.

    Attributes:
      embed: looks the tokens up.
      question: encodes them.
      spatial: whether 8 more channels tell the block where a place lies.
      dropout: rate of dropout in the classifier.
      dtype: type of the multiplications; the logits are float32.
    """

    embed: WordEmbedding
    question: QuestionEncoder
    spatial: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W V"], question: Int[Array, "B T"], *, train: bool
    ) -> tuple[Float[Array, "B 2"], dict[str, Array]]:
        """Returns the logits of (does not fit, fits), and the named intermediates; see `MTPT`."""
        states = self.question(self.embed(question), train=train)
        x = cross_modal_map(states, image, spatial=self.spatial)
        update, _ = NonLocal(self.dtype, name="block")(x, train=train)
        last = update + x  # unlike after CMSA's first block, no further residual

        (batch, height, width, _), count = image.shape, question.shape[1]
        pooled = last.mean(count)
        joint = states + Linear(states.shape[-1], self.dtype, name="projection")(pooled)
        fused = jnp.sum(joint, axis=1, dtype=wide(joint.dtype)).astype(self.dtype)
        logits = Classifier(2 * fused.shape[-1], 2, self.dropout, self.dtype, name="classifier")(fused, train=train)

        block = last.dense().reshape(batch, count, height, width, -1)
        return logits, {"question": states, "block": block, "pooled": pooled, "fused": fused}


class MTPT(RadiologyModel, kw_only=True):
    """The three networks of a pre-training; the defaults are the published sizes.

    Attributes:
      classes: number of classes of the image task.
      task: `segment` or `classify`.
      spatial: whether 8 more channels tell the block where a place lies; the original's scripts leave them out.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image", "question")

    classes: int
    task: str
    spatial: bool = True

    @nn.compact
    def __call__(
        self, *, image: Float[Array, "B _ _ 3"], question: Int[Array, "B T"], train: bool = False
    ) -> tuple[tuple[Float[Array, "B *map C"], Float[Array, "B 2"]], dict[str, Array]]:
        """Does both tasks.

        Args:
          image: float[B, H, W, 3], normalised; for `segment`, 32 divides H and W.
          question: int[B, T], numbers of the words; V is padding, which is not masked.
          train: applies dropout, which needs the random stream "dropout", and normalises by the batch's statistics, which
            needs the collection `batch_stats` to be mutable.

        Returns:
          The image task's logits, float32[B, H, W, C] of each pixel or float32[B, C] of the image; float32[B, 2] logits of
          (question does not fit, fits); and the named intermediates: `map_0` to `map_4`, the backbone's maps; `question`
          [B, T, D], the words' states; `block` [B, T, H', W', C'], what comes out of the block; `pooled` [B, T, C'], its mean
          over the places; `fused` [B, D].
        """
        if self.task not in ("segment", "classify"):
            raise ConfigError(f"model.task is {self.task!r}{choose(self.task, ('segment', 'classify'))}")
        maps = self._maps(image, train=train)
        if self.task == "segment":
            decoder: Any = SegmentationDecoder(self.classes, self.dtype, name="decoder")
        else:
            decoder = ClassificationDecoder(self.classes, self.dropout, self.dtype, name="decoder")
        image_logits = decoder(maps, train=train)
        compatibility = Compatibility(
            *self.question_parts(), self.spatial, self.dropout, self.dtype, name="compatibility"
        )
        fit_logits, out = compatibility(maps[-1], question, train=train)
        return (image_logits, fit_logits), out | {f"map_{i}": x for i, x in enumerate(maps)}

    def _maps(self, image: Float[Array, "B _ _ 3"], *, train: bool) -> tuple[Float[Array, "B _ _ _"], ...]:
        """The backbone's map at each halving of the image, which residual networks name alike; all maps of other networks."""
        stages = self.image_branch()(name="backbone").stages(image, train=train)
        if stages.keys() >= set(HALVINGS):
            return tuple(stages[name] for name in HALVINGS)
        if self.task == "segment":
            raise ConfigError(
                f"model.branch is {self.branch!r}, whose maps are {', '.join(stages)}, but pixels are classified from "
                f"{', '.join(HALVINGS)}. Choose a residual network, such as resnet34."
            )
        return tuple(stages.values())
