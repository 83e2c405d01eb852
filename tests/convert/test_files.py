"""Which of a file's entries are the weights, and what wrappers put before their names."""

import json

import numpy as np
import pytest

from jaxvqa.convert import files
from jaxvqa.errors import CheckpointError
from tests.checkpoint_files import save

W = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}
OTHER = {"mean": np.ones(3, np.float32)}
EMA = {key: value + 1 for key, value in W.items()}


def under(prefix, tensors=W):
    return {prefix + key: value for key, value in tensors.items()}


def read(tmp_path, content, **options):
    save(content, tmp_path / "x.pth")
    return files.read(tmp_path / "x.pth", **options)


@pytest.mark.parametrize(
    "entry",
    [
        "state_dict",
        "model_state",
        "model_state_dict",
        "model",
        "net",
        "weights",
        "generator",
        "ema",
        "state.model",
        "a.b.c",
    ],
)
def test_the_weights_are_found_under_every_name(entry, tmp_path):
    content = W
    for name in reversed(entry.split(".")):
        content = {name: content, "epoch": 3}
    file = read(tmp_path, content | {"optimizer": {"state": {0: {"step": np.ones(())}}, "param_groups": [{"lr": 0.1}]}})
    assert (list(file.tensors), file.weights_entry, file.extra["epoch"]) == (list(W), entry, 3)
    assert (f"weights taken from {entry!r}" in file.notes) == (entry not in files.ENTRIES)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"state_dict": W, "state_dict_ema": EMA}, "state_dict, state_dict_ema"),
        ({"model": W, "model_ema": under("module.", EMA) | {"n_averaged": np.int64(3)}}, "model, model_ema"),
        ({"model": W, "ema": {"shadow": under("_orig_mod.", EMA)}}, r"model, ema\.shadow"),
        ({"student": W, "teacher": EMA}, "student, teacher"),
        ({"generator": W, "discriminator": OTHER}, "generator, discriminator"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_several_models_one_has_to_be_chosen(content, names, tmp_path):
    with pytest.raises(CheckpointError, match=rf"several models' weights: {names}\. Choose with --weights=NAME"):
        read(tmp_path, content)
    for name in names.replace("\\", "").split(", "):
        file = read(tmp_path, content, weights=name)
        expected = content
        for part in name.split("."):
            expected = expected[part]
        bias = next(value for key, value in expected.items() if key.endswith(("bias", "mean")))
        np.testing.assert_array_equal(next(v for k, v in file.tensors.items() if k.endswith(("bias", "mean"))), bias)
        assert any("left out, which holds tensors too" in note for note in file.notes)
    with pytest.raises(CheckpointError, match=r"no entry of tensors 'emma': choose"):
        read(tmp_path, content, weights="emma")


def test_what_is_no_other_model_is_reported_and_left(tmp_path):
    file = read(tmp_path, {"state_dict": W, "criterion": OTHER})
    assert list(file.tensors) == list(W)
    assert file.notes == ("entry 'criterion' left out, which holds tensors too",)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod."),
        *("module.model.", "model.module._orig_mod.net.", "_fsdp_wrapped_module."),
    ],
)
@pytest.mark.parametrize("averaged", ["", "n_averaged", "module.n_averaged"])
def test_wrappers_are_taken_off_together_and_alone(prefix, averaged, tmp_path):
    tensors = {averaged: np.asarray(5, np.int64)} if averaged else {}
    tensors |= under("module." * bool(averaged) + prefix)
    file = read(tmp_path, {"state_dict": tensors})
    assert list(file.tensors) == list(W)
    assert any("average of 5 states" in note for note in file.notes) == bool(averaged)


def test_wrappers_within_names_are_taken_off(tmp_path):
    inside = {"a._orig_mod.weight": W["a.weight"], "a._checkpoint_wrapped_module.bias": W["a.bias"]}
    assert list(read(tmp_path, inside).tensors) == list(W)
    # Not where two names would become one.
    both = inside | {"a.weight": W["a.weight"]}
    assert list(read(tmp_path, both).tensors) == list(both)


def test_a_given_prefix_is_taken_off_or_missed(tmp_path):
    assert list(read(tmp_path, under("encoder_q."), prefix="encoder_q.").tensors) == list(W)
    with pytest.raises(CheckpointError, match=r"not every key begins with --prefix=encoder_k\."):
        read(tmp_path, under("encoder_q."), prefix="encoder_k.")


def test_numbers_among_the_tensors_are_named(tmp_path):
    file = read(tmp_path, W | {"epoch": 3, "best": None})
    assert list(file.tensors) == list(W)
    assert file.notes == ("left out, being neither tensor, number nor text: epoch (int), best (NoneType)",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([np.ones(1)], "one list, not a dict of tensors"),
        ({}, "it is empty"),
        ({"epoch": 3, "model": {"lr": 0.1}}, r"it holds epoch \(int\), model \(dict\)"),
        (np.ones(3), "one ndarray"),
    ],
)
def test_what_holds_no_tensors_says_what_it_holds(content, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, content)


@pytest.mark.parametrize("ending", files.TORCH_SUFFIXES)
def test_every_ending_of_the_documents_is_written_and_read(ending, tmp_path):
    files.write(tmp_path / f"back{ending}", files.TorchFile(W, extra={"epoch": 1}))
    assert files.read(tmp_path / f"back{ending}").extra == {"epoch": 1}


def test_the_content_counts_and_not_the_ending(tmp_path):
    files.write(tmp_path / "x.safetensors", files.TorchFile(W))
    (tmp_path / "x.safetensors").rename(tmp_path / "x.pth")
    assert sorted(files.read(tmp_path / "x.pth").tensors) == sorted(W)


@pytest.mark.parametrize(
    ("name", "words"), [("x.npz", r"ends in .*\.ckpt, not '\.npz'"), ("folder.pth", "is a folder")]
)
def test_a_wrong_target_is_named(name, words, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(CheckpointError, match=words):
        files.write(tmp_path / name, files.TorchFile(W))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_parts_are_put_together_or_missed(ending, tmp_path):
    parts = {"a.weight": f"model-1.{ending}", "a.bias": f"model-2.{ending}"}
    for key, part in parts.items():
        files.write(tmp_path / part, files.TorchFile({key: W[key]}))
    index = tmp_path / f"model.{ending}.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    found = files.read(index).tensors
    assert sorted(found) == sorted(W)
    (tmp_path / parts["a.bias"]).unlink()
    with pytest.raises(CheckpointError, match=rf"not beside it: model-2\.{ending}"):
        files.read(index)
    index.write_text(json.dumps({"weight_map": {"a.bias": parts["a.weight"]}}))
    with pytest.raises(CheckpointError, match=r"parts do not hold: a\.bias"):
        files.read(index)
    index.write_text(json.dumps({"weight_map": {"a.bias": f"../model-1.{ending}"}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        files.read(index)
    index.write_text(json.dumps({"weights": {}}))
    with pytest.raises(CheckpointError, match="weight_map"):
        files.read(index)
