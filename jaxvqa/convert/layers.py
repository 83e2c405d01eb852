"""Rules for PyTorch's own layers, which the systems' tables put together.

Paths are written without their collection: `in_collections` adds it, `params` or `batch_stats`, to a finished table.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jaxvqa.convert.table import Rule, nested

LINEAR = [Rule("weight", "kernel", "o i -> i o"), Rule("bias", "bias")]
LINEAR_NO_BIAS = [Rule("weight", "kernel", "o i -> i o")]
CONV = [Rule("weight", "kernel", "o i h w -> h w i o"), Rule("bias", "bias")]
CONV_NO_BIAS = [Rule("weight", "kernel", "o i h w -> h w i o")]
CONV_TRANSPOSE = [Rule("weight", "kernel", "i o h w -> h w i o"), Rule("bias", "bias")]
POINTWISE_3D = [Rule("weight", "kernel", "o i 1 1 1 -> i o"), Rule("bias", "bias")]
"""A 1×1×1 convolution, which here is a linear map."""

LAYER_NORM = [Rule("weight", "scale"), Rule("bias", "bias")]
BATCH_NORM = [
    Rule("weight", "scale"),
    Rule("bias", "bias"),
    Rule("running_mean", "mean"),
    Rule("running_var", "var"),
]
WEIGHT_NORM_LINEAR = [Rule("bias", "bias"), Rule("weight_g", "g"), Rule("weight_v", "v", "o i -> i o")]
"""A linear map under `weight_norm` with `dim=None`; PyTorch writes the two parts after the bias."""

RNN = [
    Rule("weight_ih_l0", "input_kernel", "o i -> i o"),
    Rule("weight_hh_l0", "hidden_kernel", "o i -> i o"),
    Rule("bias_ih_l0", "input_bias"),
    Rule("bias_hh_l0", "hidden_bias"),
]
"""A one-layer LSTM or GRU."""


def conv_norm(conv: str, norm: str, path: str) -> list[Rule]:
    """A convolution without bias and its batch norm, which here are one module."""
    return [*nested(conv, f"{path}/conv", CONV_NO_BIAS), *nested(norm, f"{path}/norm", BATCH_NORM)]


def under(path: str, rules: Iterable[Rule]) -> list[Rule]:
    """Puts `path` before every rule's path, and leaves the keys."""
    return [Rule(r.key, f"{path}/{r.path}", r.change) for r in rules]


COUNTER = r"(.*\.)?num_batches_tracked"
"""Pattern of batch normalisation's counters, which a table excuses: nothing is computed from them."""


def in_collections(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Puts each path into its collection: running statistics into `batch_stats`, everything else into `params`."""
    return tuple(
        Rule(
            r.key,
            f"{'batch_stats' if r.key.rpartition('.')[2].startswith('running_') else 'params'}/{r.path}",
            r.change,
        )
        for r in rules
    )


def with_counters(tensors: Mapping[str, np.ndarray], batches: int) -> dict[str, np.ndarray]:
    """Adds the counters of batch normalisation where PyTorch writes them, after each running variance.

    Args:
      tensors: original key -> array.
      batches: number of batches that the statistics have seen.
    """
    result: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        result[key] = value
        if key.endswith("running_var"):
            result[key.removesuffix("running_var") + "num_batches_tracked"] = np.asarray(batches, np.int64)
    return result


def counted_batches(tensors: Mapping[str, np.ndarray]) -> int:
    """Reads off the counters how many batches the statistics have seen; the most where they differ, 0 without any."""
    return max((int(value) for key, value in tensors.items() if key.endswith("num_batches_tracked")), default=0)


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A map of the original that holds several of ours side by side, as queries, keys and values often are.

    Attributes:
      key: the end of the original's key, with `{}` for `weight` or `bias`.
      parts: what stands in its place for each part.
      axis: the weight's axis along which they are stacked; a bias has one only.
    """

    key: str
    parts: tuple[str, ...]
    axis: int = 0

    def split(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Puts the parts in the place of each such map."""
        result: dict[str, np.ndarray] = {}
        for key, value in tensors.items():
            prefix, kind = self._take_apart(key, self.key)
            if kind and value.ndim and value.shape[min(self.axis, value.ndim - 1)] % len(self.parts) == 0:
                parts = np.split(value, len(self.parts), min(self.axis, value.ndim - 1))
                result |= {prefix + p.format(kind): part for p, part in zip(self.parts, parts, strict=True)}
            else:
                result[key] = value
        return result

    def join(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse; a map stands where the first of its parts stood."""
        result: dict[str, np.ndarray] = {}
        for key, value in tensors.items():
            found = [self._take_apart(key, part) for part in self.parts]
            prefix, kind = next((f for f in found if f[1]), ("", ""))
            if kind and prefix + self.key.format(kind) not in result:
                parts = [tensors[prefix + part.format(kind)] for part in self.parts]
                result[prefix + self.key.format(kind)] = np.concatenate(parts, min(self.axis, value.ndim - 1))
            elif not kind:
                result[key] = value
        return result

    def first(self, key: str) -> str:
        """The name of the first part of such a map; empty for another key."""
        prefix, kind = self._take_apart(key, self.key)
        return prefix + self.parts[0].format(kind) if kind else ""

    @staticmethod
    def _take_apart(key: str, end: str) -> tuple[str, str]:
        """Returns what stands before `end`, and `weight` or `bias`; two empty texts where the key ends otherwise."""
        for kind in ("weight", "bias"):
            last = end.format(kind)
            if key == last or key.endswith(f".{last}"):
                return key.removesuffix(last), kind
        return "", ""
