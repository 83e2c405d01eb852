"""BLIP's checkpoints: positions on another grid, and what a model takes of another one's file."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.convert import blip, files
from jaxvqa.convert.towers.vit import resized_positions
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights
from tests.oracle import torch

GOLDEN = Path(__file__).parent.parent / "golden" / "blip"


@pytest.mark.parametrize(("old", "new"), [(4, 6), (14, 24), (6, 3), (1, 3), (5, 5)])
def test_positions_on_another_grid_by_hand(old, new):
    """A plane stays that plane away from the borders, the class row stays, and so does a constant."""
    x = np.arange(old)[:, None] + 10.0 * np.arange(old)[None]
    position = np.stack([x, np.full_like(x, 7.0)], axis=-1).reshape(1, -1, 2)
    position = np.concatenate([np.full((1, 1, 2), -3.0), position], axis=1)
    found = resized_positions(position, 1 + new * new)
    assert found.shape == (1, 1 + new * new, 2)
    np.testing.assert_array_equal(found[0, 0], -3)
    np.testing.assert_allclose(found[0, 1:, 1], 7)
    where = (np.arange(new) + 0.5) * old / new - 0.5
    inside = (where >= 1) & (where <= old - 2)
    grid = found[0, 1:, 0].reshape(new, new)[np.ix_(inside, inside)]
    np.testing.assert_allclose(grid, where[inside][:, None] + 10 * where[inside][None], atol=0.6)


@pytest.mark.oracle
@pytest.mark.parametrize(("old", "new"), [(4, 6), (14, 24), (6, 3), (2, 5)])
def test_positions_are_pytorchs(old, new):
    position = np.random.default_rng(0).standard_normal((1, 1 + old * old, 3)).astype(np.float32)
    grid = torch.from_numpy(position[:, 1:].reshape(1, old, old, 3)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    theirs = theirs.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(resized_positions(position, 1 + new * new)[0, 1:], theirs, atol=1e-5)


def pretraining():
    return weights.checkpoint(json.loads((GOLDEN / "blip_pretrain_small.manifest.json").read_text())["tensors"])


def test_a_model_takes_what_fits_of_another_ones_file():
    tensors = pretraining()
    target = {
        "visual_encoder.pos_embed": (1, 1 + 36, 64),
        "vision_proj.weight": (16, 64),
        "itm_head.bias": (2,),
        "cls_head.0.bias": (3,),
    }
    found = blip.adapted(tensors, target)
    assert found.missing == ("vision_proj.weight", "cls_head.0.bias")
    assert found.dropped == ("vision_proj.weight",)
    assert found.interpolated == ("visual_encoder.pos_embed",)
    assert {key: value.shape for key, value in found.tensors.items()} == {
        "visual_encoder.pos_embed": (1, 37, 64),
        "itm_head.bias": (2,),
    }
    assert set(found.unexpected) == set(tensors) - set(target)


def test_what_does_not_fit_is_listed():
    tensors = {key: value for key, value in pretraining().items() if key not in ("queue_ptr", "itm_head.bias")}
    file = files.TorchFile(tensors | {"itm_head.scale": np.ones(2)}, extra={}, weights_entry="model")
    with pytest.raises(CheckpointError, match="does not fit") as error:
        blip.ORIGINALS["pair"].load(file, {"positives": "pair"})
    assert all(name in str(error.value) for name in ("itm_head.scale", "queue_ptr", "itm_head.bias"))
