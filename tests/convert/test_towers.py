"""Folders and files of GPT-2, BERT and CLIP: every spelling, parts, faults."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.convert import files, towers
from jaxvqa.convert.original import TOKEN, image
from jaxvqa.convert.towers.bert import BERT_LAYOUT
from jaxvqa.convert.towers.clip import ACTIVATIONS, CLIP_VISION_LAYOUTS
from jaxvqa.convert.towers.gpt2 import GPT2_LAYOUT
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights

GPT2 = {"vocab_size": 7, "n_positions": 5, "n_embd": 8, "n_layer": 2, "n_head": 2}
CLIP = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CLIP |= {"projection_dim": 6, "patch_size": 4, "image_size": 8}


def made(kind, fields, layout):
    """A checkpoint of the recipe's values in a layout, and the parameters that it holds."""
    inputs = {"image": image(8, 8)} if kind == "clip_vision" else {"text": TOKEN}
    shapes = towers.TOWERS[kind].original.shapes(fields, inputs)
    empty = layout.write(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
    return {key: weights.tensor(key, value.shape, "float32") for key, value in empty.items()}


@pytest.fixture(scope="module")
def gpt2_tensors():
    """Each name with values of its own, but for the table, which has two."""
    tensors = made("gpt2", towers.TOWERS["gpt2"].from_json(GPT2), GPT2_LAYOUT)
    return tensors | {"transformer.wte.weight": tensors["lm_head.weight"]}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_prefix_masks_and_the_second_name_of_the_table(gpt2_tensors, tmp_path):
    files.write(tmp_path / "whole.pt", files.TorchFile(gpt2_tensors))
    fields = towers.TOWERS["gpt2"].from_json(GPT2)
    whole = towers.TOWERS["gpt2"].load(tmp_path / "whole.pt", lm_head="output", **fields)
    assert whole.report.shadowed == (("transformer.wte.weight", "lm_head.weight"),)
    bare = {k.removeprefix("transformer."): v for k, v in gpt2_tensors.items() if k != "lm_head.weight"}
    bare |= {"wte.weight": gpt2_tensors["lm_head.weight"], "h.0.attn.bias": np.ones((1, 1, 5, 5), np.float32)}
    files.write(tmp_path / "bare.pt", files.TorchFile(bare))
    found = towers.TOWERS["gpt2"].load(tmp_path / "bare.pt", **fields)
    same(found.params, whole.params)
    back = towers.TOWERS["gpt2"].original.to_original(found)
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
    found = towers.TOWERS["gpt2"].load(tmp_path)
    assert found.config["positions"] == 5
    np.testing.assert_array_equal(found.params["position"]["embedding"], gpt2_tensors["transformer.wpe.weight"])
    outside = index | {names[0]: "../model-0.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        towers.TOWERS["gpt2"].load(tmp_path)


@pytest.mark.parametrize("kind", ["clip_vision", "clip_text"])
def test_openais_spelling_gives_hugging_faces_parameters(kind):
    """From OpenAI's keys to ours, from there to Hugging Face's, and back: also in a file with both towers."""
    config = CLIP | ({"vocab_size": 9, "max_position_embeddings": 5} if kind == "clip_text" else {})
    fields = towers.TOWERS[kind].from_json(config)
    openai, hugging_face = towers.TOWERS[kind].layouts({})
    tensors = made(kind, fields, openai)
    first = "transformer.resblocks.0.attn.in_proj_weight"
    assert tensors["visual." * (kind == "clip_vision") + first].shape == (24, 8)
    other = {"logit_scale": np.ones((), np.float32)}
    other |= {"visual.proj": np.ones((8, 6))} if kind == "clip_text" else {"ln_final.weight": np.ones(8)}

    def load(tensors):
        return towers.TOWERS[kind].load(files.TorchFile(tensors), **{"activation": "gelu"} | fields)

    ours = load(tensors | other)
    assert set(ours.report.excused) == set(other)
    theirs = hugging_face.write(ours.variables)
    again = load(theirs)
    same(again.params, ours.params)
    bare = {key.removeprefix(hugging_face.prefix): v for key, v in theirs.items() if "projection" not in key}
    alone = load(bare)
    assert alone.config["features"] == 0
    same(alone.params, {name: value for name, value in ours.params.items() if name != "projection"})
    for key, value in openai.write(again.variables).items():
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
        towers.TOWERS["gpt2"].load(tmp_path)


def test_missing_files_and_other_towers_are_named(gpt2_tensors, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        towers.TOWERS["gpt2"].load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        towers.TOWERS["gpt2"].load(tmp_path)
    files.write(tmp_path / "pytorch_model.bin", files.TorchFile(gpt2_tensors))
    with pytest.raises(CheckpointError, match="holds no bert"):
        towers.TOWERS["bert"].load(tmp_path)


# --- what a checkpoint does not tell -----------------------------------------------------------------------------------


def folder(path, config, tensors, name="model.safetensors"):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    files.write(path / name, files.TorchFile(tensors))
    return path


def test_two_tables_of_words_are_an_error_until_one_is_chosen(gpt2_tensors, tmp_path):
    words, output = "transformer.wte.weight", "lm_head.weight"
    tensors = gpt2_tensors | {output: gpt2_tensors[words] + 1}
    source = folder(tmp_path / "gpt2", GPT2, tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from transformer\.wte\.weight.*--lm_head=own"):
        towers.TOWERS["gpt2"].load(source)
    for choice in ("embedding", "output"):
        found = towers.TOWERS["gpt2"].load(source, lm_head=choice)
        expected = tensors[words if choice == "embedding" else output]
        np.testing.assert_array_equal(found.params["embed"]["embedding"], expected)
        assert (found.config["tied"], "table" in found.params["readout"]) == (True, False)
    for own in (
        towers.TOWERS["gpt2"].load(source, lm_head="own"),
        towers.TOWERS["gpt2"].load(folder(source, UNTIED, tensors)),
    ):
        np.testing.assert_array_equal(own.params["embed"]["embedding"], tensors[words])
        np.testing.assert_array_equal(own.params["readout"]["table"], tensors[output])
        assert "language_sizes.tied=false" in own.notes[0]
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        towers.TOWERS["gpt2"].load(folder(tmp_path / "none", UNTIED, {k: v for k, v in tensors.items() if k != output}))


UNTIED = GPT2 | {"tie_word_embeddings": False}


@pytest.mark.parametrize("options", [{"n_inner": 32}, {"n_inner": None}, {"activation_function": "gelu_pytorch_tanh"}])
def test_options_that_say_what_is_so_anyway_are_no_fault(options, gpt2_tensors, tmp_path):
    assert towers.TOWERS["gpt2"].load(folder(tmp_path, GPT2 | options, gpt2_tensors)).config["width"] == 8


def test_a_padded_vocabulary_is_cut_and_reported(gpt2_tensors, tmp_path):
    def padded(rows):
        more = {key: np.zeros((rows, 8), np.float32) for key in ("transformer.wte.weight", "lm_head.weight")}
        for key, value in more.items():
            value[:7] = gpt2_tensors[key]
        return gpt2_tensors | more

    found = towers.TOWERS["gpt2"].load(folder(tmp_path / "64", GPT2, padded(64)))
    np.testing.assert_array_equal(found.params["embed"]["embedding"], gpt2_tensors["lm_head.weight"])
    assert "padded to 64 rows, of which the first 7" in found.notes[0]
    with pytest.raises(CheckpointError, match="wrong shape"):
        towers.TOWERS["gpt2"].load(folder(tmp_path / "9", GPT2, padded(9)))


BERT = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT |= {"max_position_embeddings": 5, "type_vocab_size": 2}


@pytest.mark.parametrize("prefixed", [True, False])
def test_berts_older_names_are_read(prefixed, tmp_path):
    tensors = made("bert", towers.TOWERS["bert"].from_json(BERT), BERT_LAYOUT)
    now = towers.TOWERS["bert"].load(folder(tmp_path / "now", BERT, tensors))
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in tensors.items()
    }
    assert sum("gamma" in key for key in old) == 3
    old = {key if prefixed else key.removeprefix("bert."): value for key, value in old.items()}
    same(towers.TOWERS["bert"].load(folder(tmp_path / "old", BERT, old)).params, now.params)


@pytest.mark.parametrize(
    ("layout", "name"), [(0, "clip.pt"), (1, "clip.pt"), (1, "model.safetensors"), (1, "pytorch_model.bin")]
)
def test_clip_as_one_file_asks_for_its_activation(layout, name, tmp_path):
    layout = CLIP_VISION_LAYOUTS[layout]
    wide = CLIP | {"hidden_size": 128, "intermediate_size": 512}
    fields = towers.TOWERS["clip_vision"].from_json(wide)
    tensors = made("clip_vision", fields, layout)
    path = tmp_path / name
    files.write(path, files.TorchFile(tensors))
    with pytest.raises(CheckpointError, match=r"does not tell which activation.*--activation=gelu"):
        towers.TOWERS["clip_vision"].load(path)
    scripted = files.TorchFile(tensors, scripted=True)
    assert towers.TOWERS["clip_vision"].load(scripted).config["activation"] == "quick_gelu"  # OpenAI's own archive
    found = towers.TOWERS["clip_vision"].load(path, activation="gelu")
    # The shapes tell the sizes; heads are 64 wide, as in every published network.
    assert found.config == fields | {"activation": "gelu", "heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(wide | {"hidden_act": "gelu"}))
    if name != "clip.pt":  # the file is the one that the config.json beside it belongs to
        assert towers.TOWERS["clip_vision"].load(path).config["activation"] == "gelu"
    else:
        with pytest.raises(CheckpointError, match="activation"):
            towers.TOWERS["clip_vision"].load(path)


def test_activations_of_a_config_are_taken_or_refused(tmp_path):
    fields = towers.TOWERS["clip_vision"].from_json(CLIP)
    tensors = made("clip_vision", fields, CLIP_VISION_LAYOUTS[1])
    for options, expected in (({}, "quick_gelu"), *(({"hidden_act": name}, name) for name in ACTIVATIONS)):
        found = towers.TOWERS["clip_vision"].load(
            folder(tmp_path / expected, {"vision_config": CLIP | options}, tensors)
        )
        assert found.config["activation"] == expected
    outputs, params = [], jax.tree.map(jnp.asarray, found.params)
    for activation in ACTIVATIONS:
        module = towers.TOWERS["clip_vision"].module(**found.config | {"activation": activation})
        outputs.append(np.asarray(module.apply({"params": params}, jnp.ones((1, 8, 8, 3)))[0]))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4
    with pytest.raises(CheckpointError, match="hidden_act = 'relu', not 'quick_gelu' or 'gelu'"):
        towers.TOWERS["clip_vision"].load(folder(tmp_path / "relu", CLIP | {"hidden_act": "relu"}, tensors))
