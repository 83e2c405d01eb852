"""The recipe by which golden cases name their weights and inputs instead of shipping them. NumPy only.

A checkpoint tensor is a pure function of its key, shape and dtype; an input one of its seed and shape. Anyone who follows
the same rules gets the same numbers, bit for bit.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GAINS = frozenset({"weight", "gamma", "a_2", "weight_g", "g"})
"""Last key parts of vectors that scale something: these lie around 1, other vectors around 0."""


def checkpoint(tensors: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Makes a whole checkpoint.

    Args:
      tensors: a manifest's list of {"key", "shape", "dtype", "constant"?}.

    Returns:
      key -> array, in the manifest's order.
    """
    return {t["key"]: tensor(t["key"], tuple(t["shape"]), t["dtype"], t.get("constant")) for t in tensors}


def tensor(key: str, shape: tuple[int, ...], dtype: str, constant: Sequence[Any] | None = None) -> np.ndarray:
    """Makes one checkpoint tensor.

    Matrices and larger are normal with variance 1 / fan-in, gains 1 + normal/10, other vectors normal/10; running
    variances are uniform in [0.5, 1.5); integers are ones. `constant` gives the flat value of a tensor that is not a
    parameter.
    """
    if constant is not None:
        return np.asarray(constant, dtype).reshape(shape)
    if not np.issubdtype(np.dtype(dtype), np.floating):
        return np.ones(shape, dtype)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    name = key.rpartition(".")[2]
    if name == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    else:
        values = 0.1 * rng.standard_normal(shape) + (1.0 if name in GAINS else 0.0)
    return np.asarray(values, dtype)


def make_input(spec: Mapping[str, Any]) -> np.ndarray:
    """Makes one input of a case from a manifest's {"seed", "shape", "kind", "low"?, "high"?, "block"?, "scale"?, "edits"?}.

    Kind `normal` gives float32, `uniform` float32 in [0, 1), `int` int64 in [low, high). With `block` three times a coarse
    input of its own is added, drawn from the next seed and as many times smaller along the last two axes. The scale multiplies
    it, in float32; edits change it in their order.
    """
    rng = np.random.Generator(np.random.PCG64(spec["seed"]))
    kind = spec.get("kind", "normal")
    values: np.ndarray
    if kind == "int":
        values = rng.integers(spec.get("low", 0), spec.get("high", 2), size=tuple(spec["shape"]), dtype=np.int64)
    elif kind == "normal":
        values = rng.standard_normal(tuple(spec["shape"])).astype(np.float32)
    elif kind == "uniform":
        values = rng.random(tuple(spec["shape"])).astype(np.float32)
    else:
        raise ValueError(f"unknown kind of input {kind!r} ({spec.get('name')})")
    if "block" in spec:
        block, (*rest, height, width) = spec["block"], spec["shape"]
        coarse = {"seed": spec["seed"] + 1, "shape": (*rest, height // block, width // block), "kind": kind}
        values = values + 3 * make_input(coarse).repeat(block, -2).repeat(block, -1)
    if "scale" in spec:
        values = values * np.float32(spec["scale"])
    for step in spec.get("edits", ()):
        values = edit(values, step)
    return values


def edit(values: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """Applies one edit of a manifest and returns the changed copy.

    `zero_after`: sample b keeps its first lengths[b] positions. `zero_row`: that position of that sample is 0.
    `alternate_row`: that row is +1, −1, +1, … . `scale_rows`: row i times factors[i]. `levels`: integer j becomes
    table[j], float32.
    """
    values = values.copy()
    op = step["op"]
    if op == "zero_after":
        for sample, length in zip(values, step["lengths"], strict=True):
            sample[length:] = 0
    elif op == "zero_row":
        values[step["batch"], step["row"]] = 0
    elif op == "alternate_row":
        row = values[step["batch"], step["row"]]
        row[0::2], row[1::2] = 1, -1
    elif op == "scale_rows":
        factors = np.asarray(step["factors"], np.float32)
        values *= factors.reshape(-1, *[1] * (values.ndim - 1))
    elif op == "levels":
        values = np.asarray(step["table"], np.float32)[values]
    else:
        raise ValueError(f"unknown edit {op!r}")
    return values
