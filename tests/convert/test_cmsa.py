"""Conversion of CMSA's checkpoints: both ways bit for bit, sizes read off, the optimiser, faults."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxvqa import models
from jaxvqa.convert import cmsa
from jaxvqa.convert.original import TOKEN, Checkpoint, image
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights
from tests.checkpoint_files import load, save
from tests.oracle import torch

SMALL = {"name": "cmsa", "vocab_size": 9, "num_answers": 4, "embed_width": 3, "width": 8, "branch": "resnet18"}
SMALL |= {"branch_sizes": {"width": 2}, "organ_width": 4, "organ_hidden": 6}
IMAGE = (64, 64)
VARIANTS = [
    {},
    {"rnn": "gru", "tables": 1, "spatial": False},
    {"self_attention": True, "cross_attention": True},
    {"branch": "resnet50"},
]


def made(**fields):
    """The tensors of an original checkpoint, with values of the recipe."""
    shapes = cmsa.ORIGINAL.shapes(SMALL | fields, {"image": image(*IMAGE), "question": TOKEN})
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    empty = cmsa.ORIGINAL.to_original(Checkpoint(variables, SMALL | fields, {"batches": 7}))
    result = {key: weights.tensor(key, value.shape, "float32") for key, value in empty.items()}
    constants = {key: value for key, value in empty.items() if key == cmsa.POSITIONS or "num_batches" in key}
    return result | constants


@pytest.fixture(scope="module")
def original():
    return made()


def saved(path, tensors, optimizer=None, epoch=12):
    save({"epoch": epoch, "model_state": tensors, "optimizer_state": optimizer or {}}, path)
    return path


@pytest.mark.parametrize("fields", VARIANTS, ids=["published", "gru", "self-attention", "bottlenecks"])
def test_both_ways_bit_for_bit_with_sizes_from_the_file(fields, tmp_path):
    tensors = made(**fields)
    loaded = cmsa.ORIGINAL.load(saved(tmp_path / "model_epoch12.pth", tensors), {"name": "cmsa"})
    expected = {f.name: f.default for f in models.MODELS["cmsa"].__dataclass_fields__.values()} | SMALL | fields
    assert {name: expected[name] for name in loaded.config} == loaded.config
    assert loaded.inputs["image"].shape == (1, *IMAGE, 3)
    assert (loaded.entries, loaded.adam) == ({"epoch": 12, "batches": 7}, None)
    cmsa.ORIGINAL.save(tmp_path / "again.pth", loaded)
    again = load(tmp_path / "again.pth")
    assert sorted(again) == ["epoch", "model_state", "optimizer_state"]
    assert again["epoch"] == 12
    assert list(again["model_state"]) == list(tensors)
    for key, value in tensors.items():
        theirs = again["model_state"][key]
        assert theirs.dtype == value.dtype
        np.testing.assert_array_equal(theirs, value, err_msg=key)


def test_keys_are_those_of_the_original_in_its_order(original):
    keys = list(original)
    prefixes = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    assert prefixes == [
        *("w_emb", "q_emb", "cmsa0", "cmsa1", "fc", "classifier"),
        *("modal_classifier", "abd_v_emb", "brain_v_emb", "chest_v_emb"),
    ]
    start = keys.index("abd_v_emb.layer2.0.conv1.weight")
    assert [key.removeprefix("abd_v_emb.layer2.0.") for key in keys[start : start + 18]] == [
        *("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"),
        *("conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked"),
        *("downsample.0.weight", "downsample.1.weight", "downsample.1.bias", "downsample.1.running_mean"),
        *("downsample.1.running_var", "downsample.1.num_batches_tracked"),
    ]
    assert original["cmsa0.theta.weight"].shape == (16, 32, 1, 1, 1)
    assert original["classifier.main.0.weight_g"].shape == ()
    assert original["cmsa0.W.1.num_batches_tracked"].dtype == np.int64


@pytest.mark.oracle
@pytest.mark.parametrize("groups", [1, 2])
def test_optimiser_goes_both_ways(original, tmp_path, groups):
    original = original if groups == 1 else made(self_attention=True)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "pos_table")
    names = [key for key in original if not key.endswith(buffers)]
    # With self-attention the original trains words and question in a second group, at a fifth of the rate.
    slower = [key for key in names if key.startswith(("w_emb.", "q_emb."))] if groups == 2 else []
    names = [key for key in names if key not in slower] + slower
    values = [torch.nn.Parameter(torch.from_numpy(np.array(original[key]))) for key in names]
    given = [
        {"params": values[: len(names) - len(slower)]},
        {"params": values[len(names) - len(slower) :], "lr": 0.0015},
    ]
    optimizer = torch.optim.Adamax(given[:groups], lr=0.0075)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()
    state = optimizer.state_dict()
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in original.items()}
    torch.save({"epoch": 12, "model_state": tensors, "optimizer_state": state}, tmp_path / "a.pth")
    loaded = cmsa.ORIGINAL.load(tmp_path / "a.pth", {"name": "cmsa"})
    assert loaded.adam.step == 3
    assert loaded.adam.settings["lr"] == 0.0075
    largest = state["state"][names.index("fc.weight")]["exp_inf"]
    np.testing.assert_array_equal(loaded.adam.nu["projection"]["kernel"], largest.numpy().T)
    cmsa.ORIGINAL.save(tmp_path / "b.pth", loaded)
    again = torch.load(tmp_path / "b.pth", weights_only=True)["optimizer_state"]
    assert again["param_groups"] == state["param_groups"]
    for i, entry in state["state"].items():
        assert list(again["state"][i]) == list(entry)
        for name, value in entry.items():
            torch.testing.assert_close(again["state"][i][name], value, rtol=0, atol=0)
    # One that has not made a step loads too.
    cmsa.ORIGINAL.save(tmp_path / "c.pth", dataclasses.replace(loaded, adam=None))
    optimizer.load_state_dict(torch.load(tmp_path / "c.pth", weights_only=True)["optimizer_state"])
    assert cmsa.ORIGINAL.load(tmp_path / "c.pth", {"name": "cmsa"}).adam is None


def test_plain_files_and_safetensors(original, tmp_path):
    save(original, tmp_path / "plain.pth")
    plain = cmsa.ORIGINAL.load(tmp_path / "plain.pth", SMALL)
    assert (plain.entries["epoch"], plain.adam) == (None, None)
    cmsa.ORIGINAL.save(tmp_path / "x.safetensors", dataclasses.replace(plain, entries={}))
    again = cmsa.ORIGINAL.load(tmp_path / "x.safetensors", SMALL)
    assert again.entries["batches"] == 0
    for a, b in zip(jax.tree.leaves(plain.variables), jax.tree.leaves(again.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_faults_come_all_at_once(original, tmp_path):
    tensors = dict(original)
    tensors["fc.wieght"] = tensors.pop("fc.weight")
    del tensors["brain_v_emb.bn1.running_var"]
    tensors["cmsa0.theta.bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as error:
        cmsa.ORIGINAL.load(saved(tmp_path / "x.pth", tensors), SMALL)
    for part in (
        "missing fc.weight for params/projection/kernel [32, 8]. Did you mean 'fc.wieght'",
        "missing brain_v_emb.bn1.running_var for batch_stats/head/stem/norm/var [2]",
        "wrong shape: cmsa0.theta.bias [3]",
    ):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match=r"wrong shape: w_emb\.emb\.weight"):
        cmsa.ORIGINAL.load(saved(tmp_path / "y.pth", original), SMALL | {"vocab_size": 8})
    other = made(self_attention=True)
    other[cmsa.POSITIONS] = other[cmsa.POSITIONS] + 1
    with pytest.raises(CheckpointError, match="pos_table"):
        cmsa.ORIGINAL.load(saved(tmp_path / "z.pth", other), SMALL | {"self_attention": True})
