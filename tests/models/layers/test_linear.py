"""Linear layers alone."""

import jax
import numpy as np
import pytest

from jaxvqa.kernels import FEW_ROWS
from jaxvqa.models.layers.linear import Linear


@pytest.mark.parametrize("rows", [1, FEW_ROWS[-1]])
def test_a_map_is_the_same_by_its_transposed_kernel(rows):
    x = jax.random.normal(jax.random.key(0), (rows, 1, 5))
    variables = Linear(7).init(jax.random.key(1), x)
    expected = Linear(7).apply(variables, x)
    kernel = variables["params"].pop("kernel")
    given = {"params": variables["params"] | {"kernel": 0 * kernel}, "transposed": {"kernel": kernel.T}}
    np.testing.assert_allclose(Linear(7).apply(given, x), expected, atol=1e-6)
