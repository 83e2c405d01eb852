"""BLIP's checkpoints: positions on another grid, and what a model takes of another one's file."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.convert import blip, files
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights

GOLDEN = Path(__file__).parent.parent / "golden" / "blip"


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
