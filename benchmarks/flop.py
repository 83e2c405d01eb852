"""Counts the multiplications and additions of a traced function.

XLA's own count of a compiled program takes the body of a loop once, whatever its length; this one does not. Only
matrix products and convolutions count, without what a convolution would multiply with padding or with zeros between
its inputs, and without results that nobody uses.
"""

import math
from typing import Any

import numpy as np
from jax.interpreters import partial_eval


def flop(traced: Any) -> int:
    """Returns the floating-point operations of `jax.jit(f).trace(…)`: two for each multiplication and its addition."""
    jaxpr = traced.jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr: Any) -> int:
    return sum(_count_one(equation) for equation in jaxpr.eqns)


def _count_one(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        lhs, (contracted, _) = equation.invars[0].aval.shape, params["dimension_numbers"][0]
        return 2 * equation.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "while":
        raise NotImplementedError("A loop of unknown length cannot be counted; scan has a length.")
    inside = [_count(inner) for inner in _inner(params)]
    # Of a choice one branch is run.
    return max(inside) if name == "cond" else sum(inside) * params.get("length", 1)


def _inner(params: dict[str, Any]) -> list[Any]:
    values = [value for entry in params.values() for value in (entry if isinstance(entry, tuple | list) else [entry])]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]


def _convolution(equation: Any) -> int:
    params, (lhs, rhs) = equation.params, (variable.aval.shape for variable in equation.invars)
    out, where = equation.outvars[0].aval.shape, params["dimension_numbers"]
    pairs = 1  # of a place in the output and an element of the window that falls on an input
    for axis, (low, _) in enumerate(params["padding"]):
        outputs = np.arange(out[where.out_spec[2 + axis]]) * params["window_strides"][axis]
        window = np.arange(rhs[where.rhs_spec[2 + axis]]) * params["rhs_dilation"][axis]
        place = outputs[:, None] + window[None] - low
        between = params["lhs_dilation"][axis]
        last = (lhs[where.lhs_spec[2 + axis]] - 1) * between
        pairs *= int(np.sum((place >= 0) & (place <= last) & (place % between == 0)))
    return 2 * out[where.out_spec[0]] * out[where.out_spec[1]] * rhs[where.rhs_spec[1]] * pairs
