"""The LSTM is PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.models.layers.lstm import LSTM
from tests.oracle import torch


@pytest.mark.oracle
def test_lstm_is_pytorchs():
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(5, 7, batch_first=True)
    x = torch.randn(3, 4, 5)
    expected, _ = theirs(x)
    params = {
        "input_kernel": theirs.weight_ih_l0.T,
        "hidden_kernel": theirs.weight_hh_l0.T,
        "input_bias": theirs.bias_ih_l0,
        "hidden_bias": theirs.bias_hh_l0,
    }
    params = jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), params)
    ours = jax.jit(LSTM(7).apply)({"params": params}, jnp.asarray(x.numpy()))
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-6)
