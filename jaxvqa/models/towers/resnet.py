"""Residual networks for images.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, as torchvision builds them
(in a bottleneck, the 3×3 convolution has the stride), without the classifier:

    image ── 7×7/2 ── pool ── stage_1 ── stage_2 /2 ── stage_3 /2 ── stage_4 /2
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.errors import ConfigError, choose
from jaxvqa.models.layers.conv_norm import ConvNorm, Residual, Stage
from jaxvqa.models.layers.linear import Linear
from jaxvqa.models.layers.pooling import max_pool
from jaxvqa.precision import widened

STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Depth -> blocks in each stage."""


HALVINGS = ("stem_relu", "layer1", "layer2", "layer3", "layer4")
"""The maps at a half to a 32nd of the image's size."""


def basic(width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """The convolutions of a block of the shallow networks."""
    return (width, 3, stride), (width, 3, 1)


def bottleneck(width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """The convolutions of a block of the deep networks."""
    return (width, 1, 1), (width, 3, stride), (4 * width, 1, 1)


class ResNet(nn.Module):
    """The network up to the last stage.

    Attributes:
      depth: 10, 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
      width: channels of the stem and of the first stage's blocks; each further stage doubles them.
      remat: keep only each block's input, and compute the rest again in the backward pass.
    """

    depth: int = 34
    width: int = 64
    dtype: Any = jnp.float32
    remat: bool = False

    def __call__(self, image: Float[Array, "B H W C"], *, train: bool) -> tuple[Float[Array, "B P Q D"], ...]:
        """Returns five maps: the stem's after its ReLU (half the image's size), then each stage's (a 4th, 8th, 16th, 32nd)."""
        out = self.stages(image, train=train)
        return tuple(out[name] for name in HALVINGS)

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `stem` before its normalisation, `stem_relu` after it, `pool`, `layer1` to `layer4`."""
        if self.depth not in STAGES:
            raise ConfigError(f"A residual network's depth is {self.depth}{choose(self.depth, STAGES)}")
        out: dict[str, Array] = {}
        out["stem_relu"], out["stem"] = ConvNorm(self.width, 7, 2, relu=True, dtype=self.dtype, name="stem").both(
            image, train
        )
        x = out["pool"] = max_pool(out["stem_relu"])
        convs = basic if self.depth < 50 else bottleneck
        residual: Any = nn.remat(Residual, static_argnums=(2,)) if self.remat else Residual
        for i, count in enumerate(STAGES[self.depth]):
            width = self.width * 2**i

            def block(stride: int, name: str, width: int = width) -> nn.Module:
                return residual(convs(width, stride), dtype=self.dtype, name=name)

            x = out[f"layer{i + 1}"] = Stage(block, count, 1 if i == 0 else 2, name=f"stage_{i + 1}")(x, train)
        return out


class PatchResNet(nn.Module):
    """A residual network instead of a vision transformer: the places of its last map are its patches.

    Attributes:
      depth: as for `ResNet`.
      width: as for `ResNet`.
      features: size E of the projected vector; 0 for none.
    """

    depth: int = 18
    width: int = 64
    features: int = 512
    dtype: Any = jnp.float32

    patch: ClassVar[int] = 32

    @nn.compact
    def __call__(
        self, image: Float[Array, "B H W 3"], *, train: bool = False
    ) -> tuple[Float[Array, "B E"], dict[str, Array]]:
        """Encodes images.

        Args:
          image: float[B, H, W, 3], normalised; only images of the size that it began with fit its positions.
          train: normalises by the batch's statistics and updates the running ones (collection `batch_stats`).

        Returns:
          [B, E] the projected mean over the last map, without a projection the mean; and the named intermediate `tokens`
          [B, 1 + N, D], the mean and the places of the map, row by row, each with a vector for where it is.
        """
        *_, last = ResNet(self.depth, self.width, self.dtype, name="network")(image, train=train)
        places = last.reshape(len(last), -1, last.shape[-1])
        position = self.param("position", nn.initializers.normal(0.02), places.shape[1:]).astype(self.dtype)
        mean = jnp.mean(widened(places), axis=1).astype(self.dtype)
        tokens = jnp.concatenate([mean[:, None], places + position[None]], axis=1)
        vector = Linear(self.features, self.dtype, name="projection")(mean) if self.features else mean
        return vector, {"tokens": tokens}
