"""Plain networks for images that train with branches: RepVGG.

X. Ding and others, "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021 (arXiv 2101.03697), without the classifier. A
block in training, and the one convolution that `fold` makes of its branches once training is over:

        ┌─ 3×3 ── norm ─┐
    x ──┼─ 1×1 ── norm ─┼─ + ── relu         x ── 3×3 + bias ── relu
        └───────  norm ─┘
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.models.layers.conv import FAN_IN_UNIFORM, Conv
from jaxvqa.models.layers.conv_norm import ConvNorm

EPSILON = 1e-5
"""Of the branches' normalisation."""


class Block(nn.Module):
    """Three branches, or the one convolution that they are worth.

    Attributes:
      width: number of output channels.
      stride: by how much the block shrinks the image.
      folded: whether it is one convolution.
    """

    width: int
    stride: int
    folded: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B P Q O"]:
        """Returns the ReLU of the branches' sum; the identity is one of them where the shapes allow it."""
        if self.folded:
            return nn.relu(Conv(self.width, 3, self.stride, 1, dtype=self.dtype, name="folded")(x))

        def branch(kernel: int, name: str) -> ConvNorm:
            init = FAN_IN_UNIFORM
            return ConvNorm(
                self.width, kernel, self.stride, kernel_init=init, epsilon=EPSILON, dtype=self.dtype, name=name
            )

        y = branch(3, "dense")(x, train) + branch(1, "point")(x, train)
        if x.shape[-1] == self.width and self.stride == 1:
            y += BatchNorm(EPSILON, dtype=self.dtype, name="identity")(x, train=train)
        return nn.relu(y)


class RepVGG(nn.Module):
    """The network up to its last stage.

    Attributes:
      blocks: number of blocks in each stage after the first, which has one.
      widths: number of channels of each stage, the first included.
      folded: whether each block is one convolution; `fold` makes the parameters.
    """

    blocks: tuple[int, ...] = (4, 6, 16, 1)
    widths: tuple[int, ...] = (64, 64, 128, 256, 1280)
    folded: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def stages(self, image: Float[Array, "B H W C"], *, train: bool) -> dict[str, Float[Array, "B P Q D"]]:
        """Returns the maps by name: `stage0` to `stage4`, each half as large as the one before."""
        out: dict[str, Array] = {}
        x = image
        for s, (count, width) in enumerate(zip((1, *self.blocks), self.widths, strict=True)):
            for i in range(count):
                name = f"stage_{s}_block_{i}" if s else "stem"
                x = Block(width, 2 if i == 0 else 1, self.folded, self.dtype, name=name)(x, train)
            out[f"stage{s}"] = x
        return out


def fold(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the variables of a RepVGG, or of a model with one in it, into those of the same with `folded` set.

    In evaluation a normalised convolution is a convolution with a bias, a 1×1 kernel is a 3×3 one with zeros around it, and
    the identity is one with a single 1 for each channel; kernels and biases of the branches then add up.

    Args:
      variables: `params` and `batch_stats`.
    """
    params, statistics = variables["params"], variables.get("batch_stats", {})
    if "dense" in params:
        return {"params": {"folded": _folded(params, statistics)}}
    folded = {
        name: fold({"params": part, "batch_stats": statistics.get(name, {})})["params"]
        if isinstance(part, Mapping)
        else part
        for name, part in params.items()
    }
    return {"params": folded}


def _folded(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Array]:
    """The kernel and bias of a block."""
    dense = params["dense"]["conv"]["kernel"]
    point = jnp.pad(params["point"]["conv"]["kernel"], ((1, 1), (1, 1), (0, 0), (0, 0)))
    branches = [
        (dense, params["dense"]["norm"], statistics["dense"]["norm"]),
        (point, params["point"]["norm"], statistics["point"]["norm"]),
    ]
    if "identity" in params:
        identity = jnp.zeros_like(dense).at[1, 1].set(jnp.eye(dense.shape[-1], dtype=dense.dtype))
        branches.append((identity, params["identity"], statistics["identity"]))
    kernel, bias = jnp.zeros_like(dense), jnp.zeros(dense.shape[-1], dense.dtype)
    for branch, norm, running in branches:
        factor = norm["scale"] / jnp.sqrt(running["var"] + EPSILON)
        kernel += branch * factor[None, None, None]
        bias += norm["bias"] - running["mean"] * factor
    return {"kernel": kernel, "bias": bias}
