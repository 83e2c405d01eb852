"""Position embeddings on another grid."""

import numpy as np
import pytest

from jaxvqa.models.towers.vit import resized_positions
from tests.oracle import torch


@pytest.mark.parametrize(("old", "new"), [(4, 6), (14, 24), (6, 3), (1, 3), (5, 5)])
def test_positions_on_another_grid_by_hand(old, new):
    """A plane stays that plane away from the borders, the class row stays, and so does a constant."""
    x = np.arange(old)[:, None] + 10.0 * np.arange(old)[None]
    position = np.stack([x, np.full_like(x, 7.0)], axis=-1).reshape(-1, 2)
    position = np.concatenate([np.full((1, 2), -3.0), position]).astype(np.float32)
    found = np.asarray(resized_positions(position, 1 + new * new))
    assert found.shape == (1 + new * new, 2)
    np.testing.assert_array_equal(found[0], -3)
    np.testing.assert_allclose(found[1:, 1], 7, rtol=1e-5)
    where = (np.arange(new) + 0.5) * old / new - 0.5
    inside = (where >= 1) & (where <= old - 2)
    grid = found[1:, 0].reshape(new, new)[np.ix_(inside, inside)]
    np.testing.assert_allclose(grid, where[inside][:, None] + 10 * where[inside][None], atol=0.6)


@pytest.mark.oracle
@pytest.mark.parametrize(("old", "new"), [(4, 6), (14, 24), (6, 3), (2, 5)])
def test_positions_are_pytorchs(old, new):
    position = np.random.default_rng(0).standard_normal((1 + old * old, 3)).astype(np.float32)
    grid = torch.from_numpy(position[1:].reshape(1, old, old, 3)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    theirs = theirs.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(resized_positions(position, 1 + new * new)[1:], theirs, atol=1e-5)
