"""Folders and files of GPT-2, BERT and CLIP: every spelling, parts, faults."""

import json

import jax
import numpy as np
import pytest

from jaxvqa.convert import files, towers
from jaxvqa.errors import CheckpointError
from jaxvqa.testing import weights

GPT2 = {"vocab_size": 7, "n_positions": 5, "n_embd": 8, "n_layer": 2, "n_head": 2}
CLIP = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CLIP |= {"projection_dim": 6, "patch_size": 4, "image_size": 8}


def made(kind, fields, layout, *inputs):
    """A checkpoint of the recipe's values in a layout, and the parameters that it holds."""
    module = towers.TOWERS[kind].module(**fields)
    inputs = [jax.ShapeDtypeStruct(*i) for i in inputs] or towers.TOWERS[kind].inputs
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    empty = layout.write(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
    return {key: weights.tensor(key, value.shape, "float32") for key, value in empty.items()}


@pytest.fixture(scope="module")
def gpt2_tensors():
    """Each name with values of its own, but for the table, which has two."""
    tensors = made("gpt2", towers.module_fields("gpt2", GPT2), towers.GPT2_LAYOUT)
    return tensors | {"transformer.wte.weight": tensors["lm_head.weight"]}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_prefix_masks_and_the_second_name_of_the_table(gpt2_tensors, tmp_path):
    files.write(tmp_path / "whole.pt", files.TorchFile(gpt2_tensors))
    fields = towers.module_fields("gpt2", GPT2)
    whole = towers.load("gpt2", tmp_path / "whole.pt", lm_head="output", **fields)
    assert whole.report.shadowed == (("transformer.wte.weight", "lm_head.weight"),)
    bare = {k.removeprefix("transformer."): v for k, v in gpt2_tensors.items() if k != "lm_head.weight"}
    bare |= {"wte.weight": gpt2_tensors["lm_head.weight"], "h.0.attn.bias": np.ones((1, 1, 5, 5), np.float32)}
    files.write(tmp_path / "bare.pt", files.TorchFile(bare))
    found = towers.load("gpt2", tmp_path / "bare.pt", **fields)
    same(found.params, whole.params)
    assert not found.prefixed
    back = found.layout.write(found.params, prefixed=False)
    assert back["h.1.attn.c_attn.weight"].shape == (8, 24)
    np.testing.assert_array_equal(back["h.1.attn.c_attn.weight"], bare["h.1.attn.c_attn.weight"])


def test_parts_of_a_checkpoint_are_put_together(gpt2_tensors, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    names = sorted(gpt2_tensors)
    index = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(index.values()):
        content = {name: gpt2_tensors[name] for name in names if index[name] == part}
        files.write(tmp_path / part, files.TorchFile(content))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = towers.load("gpt2", tmp_path)
    assert found.fields["positions"] == 5
    np.testing.assert_array_equal(found.params["position"]["embedding"], gpt2_tensors["transformer.wpe.weight"])
    outside = index | {names[0]: "../model-0.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(CheckpointError, match="no file beside it"):
        towers.load("gpt2", tmp_path)


@pytest.mark.parametrize("kind", ["clip_vision", "clip_text"])
def test_openais_spelling_gives_hugging_faces_parameters(kind):
    """From OpenAI's keys to ours, from there to Hugging Face's, and back: also in a file with both towers."""
    config = CLIP | ({"vocab_size": 9, "max_position_embeddings": 5} if kind == "clip_text" else {})
    fields = towers.module_fields(kind, config)
    openai, hugging_face = towers.TOWERS[kind].layouts
    image = [((1, 8, 8, 3), np.float32)] if kind == "clip_vision" else []
    tensors = made(kind, fields, openai, *image)
    first = "transformer.resblocks.0.attn.in_proj_weight"
    assert tensors["visual." * (kind == "clip_vision") + first].shape == (24, 8)
    other = {"logit_scale": np.float32(1)}
    other |= {"visual.proj": np.ones((8, 6))} if kind == "clip_text" else {"ln_final.weight": np.ones(8)}
    ours = towers.from_tensors(kind, tensors | other, fields)
    assert set(ours.report.excused) == set(other)
    theirs = hugging_face.write(ours.params)
    again = towers.from_tensors(kind, theirs, fields)
    same(again.params, ours.params)
    bare = {key.removeprefix(hugging_face.prefix): v for key, v in theirs.items() if "projection" not in key}
    alone = towers.from_tensors(kind, bare, fields)
    assert alone.fields["features"] == 0
    same(alone.params, {name: value for name, value in ours.params.items() if name != "projection"})
    for key, value in openai.write(again.params).items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"activation_function": "relu", "n_inner": 3},
            "activation_function = 'relu', not 'gelu_new'.*; n_inner = 3",
        ),
        ({"n_embd": 4}, "faults:(.|\n)*wrong shape"),
        ({"n_layer": 1}, "unexpected transformer.h.1"),
    ],
)
def test_what_does_not_fit_is_refused(gpt2_tensors, change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2 | change))
    files.write(tmp_path / "model.safetensors", files.TorchFile(gpt2_tensors))
    with pytest.raises(CheckpointError, match=message):
        towers.load("gpt2", tmp_path)


def test_missing_files_and_other_towers_are_named(gpt2_tensors, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        towers.load("gpt2", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        towers.load("gpt2", tmp_path)
    files.write(tmp_path / "pytorch_model.bin", files.TorchFile(gpt2_tensors))
    with pytest.raises(CheckpointError, match="holds no bert"):
        towers.load("bert", tmp_path)
    with pytest.raises(CheckpointError, match="Did you mean 'clip_text'"):
        towers.load("cliptext", tmp_path)
