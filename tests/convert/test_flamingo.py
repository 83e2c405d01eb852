"""Conversion of MLMI's checkpoints: the Lightning file, what older ones lack, names of one tensor, faults."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxvqa.convert import files, flamingo
from jaxvqa.convert.original import Checkpoint
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights
from tests.checkpoint_files import load

OPTIONS = {
    "num_tokens": 12,
    "dim": 8,
    "depth": 2,
    "num_heads": 2,
    "dim_head": 4,
    "media_token_id": 9,
    "cross_attn_every": 2,
    "perceiver_num_latents": 3,
    "perceiver_depth": 1,
    "language_model": "gpt2",
    "classification_mode": True,
    "classification_num_classes": 5,
    "use_image_embeddings": True,
    "learning_rate": 1e-4,
}
VIT = {"patch_size": 4, "width": 8, "layers": 1, "heads": 2, "output_dim": 6}
BERT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6}
BERT |= {"max_position_embeddings": 7}


def made(**options):
    """A checkpoint of the recipe's values, different ones for each name, and its config."""
    config = flamingo.model_config(OPTIONS | {"vit": VIT} | options, year="2022")
    inputs = flamingo.ORIGINAL.inputs({"img_encoder.positional_embedding": np.zeros((5, 8))}, config)
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), flamingo.ORIGINAL.shapes(config, inputs))
    empty = flamingo.ORIGINAL.to_original(Checkpoint(variables, config))
    fixed = (".beta", "position_ids")
    return {
        key: value if key.endswith(fixed) else weights.tensor(key, value.shape, "float32")
        for key, value in empty.items()
    }, config


@pytest.fixture(scope="module")
def gpt2():
    return made()


def saved(path, tensors, **extra):
    files.write(path, files.TorchFile(tensors, extra=extra or None))
    return path


def test_a_lightning_file_tells_its_own_options(gpt2, tmp_path):
    """But for the vision transformer's sizes, which are the published ones in every real file."""
    tensors, config = gpt2
    extra = {"epoch": 7, "global_step": 99, "hyper_parameters": OPTIONS | {"vit": VIT}, "callbacks": {}}
    found = flamingo.ORIGINAL.load(saved(tmp_path / "last.pt", tensors, **extra))
    assert found.config == config | {"head": "image_and_text"}
    assert (found.config["compat"], found.config["language_sizes"]["heads"]) == ("2022", 2)
    assert found.entries["epoch"] == 7
    again = tmp_path / "again.pt"
    flamingo.ORIGINAL.save(again, found)
    content = load(again)
    assert (content["epoch"], content["global_step"]) == (7, 99)
    state = content["state_dict"]
    assert list(state) == list(tensors)
    for key, value in tensors.items():
        if key != "flamingo_palm.token_emb.weight":  # its second name comes later, and wins
            np.testing.assert_array_equal(state[key], value, err_msg=key)
    np.testing.assert_array_equal(state["flamingo_palm.token_emb.weight"], tensors["flamingo_palm.to_logits.1.weight"])


def test_a_later_files_sizes_are_those_of_the_config(gpt2, tmp_path):
    """Its options are nested, and tell none of them."""
    tensors, config = gpt2
    found = flamingo.ORIGINAL.load(saved(tmp_path / "a.pt", tensors, hyper_parameters={"model": OPTIONS}), config)
    assert found.config == config | {"head": "image_and_text"}
    assert found.entries["hyper_parameters"] == {"model": OPTIONS}


def test_masks_that_were_not_kept_are_the_originals(gpt2, tmp_path):
    tensors, config = gpt2
    found = flamingo.ORIGINAL.load(saved(tmp_path / "a.pt", tensors), config)
    assert sum(key.endswith("attn.bias") for key in found.unused) == 2
    mask = flamingo.ORIGINAL.to_original(dataclasses.replace(found, unused=None))[
        "flamingo_palm.layers.1.0.fn.attn.bias"
    ]
    np.testing.assert_array_equal(mask, np.tril(np.ones((1024, 1024), np.float32))[None, None])


def test_older_files_lack_positions_or_a_class_head_and_have_fewer_words(gpt2, tmp_path):
    tensors, config = gpt2
    less = {key: value for key, value in tensors.items() if "wpe" not in key and not key.startswith("classifier")}
    less = {key: value[:11] if len(value) == 12 else value for key, value in less.items()}
    less = {key.replace("time_pos_emb", "media_pos_emb"): value for key, value in less.items()}
    found = flamingo.ORIGINAL.load(saved(tmp_path / "a.pt", less), config)
    assert (found.config["vocab_size"], found.config["num_answers"]) == (11, 0)
    assert found.config["language_sizes"]["positions"] == 0
    assert "position" not in found.params["language"]


def test_a_head_of_text_alone_is_reported_by_its_width(tmp_path):
    tensors, config = made(use_image_embeddings=False)
    found = flamingo.ORIGINAL.load(saved(tmp_path / "a.pt", tensors), config | {"head": "image_and_text"})
    assert found.config["head"] == "text"
    assert found.params["class_output"]["kernel"].shape == (8, 5)


def test_the_last_name_of_berts_tensors_decides(tmp_path):
    tensors, config = made(language_model="bert-clinical", bert=BERT)
    first = "flamingo_palm.bert_decoder.bert."
    words = f"{first}embeddings.word_embeddings.weight"
    found = flamingo.ORIGINAL.load(saved(tmp_path / "a.pt", tensors), config)
    embedding = tensors["flamingo_palm.bert_embedding.word_embeddings.weight"]
    np.testing.assert_array_equal(found.params["language"]["embed"]["embedding"], embedding)
    back = flamingo.ORIGINAL.to_original(found)
    assert list(back) == list(tensors)
    np.testing.assert_array_equal(back[words], embedding)
    query = "attention.self.query.weight"
    np.testing.assert_array_equal(
        back[f"{first}encoder.layer.1.{query}"], tensors[f"flamingo_palm.layers.1.0.fn.{query}"]
    )
    guesser = "flamingo_palm.bert_decoder.lm_head.decoder.weight"
    np.testing.assert_array_equal(back[guesser], tensors[guesser])


def test_faults_are_reported_together(gpt2, tmp_path):
    tensors, config = gpt2
    wrong = {key: value for key, value in tensors.items() if not key.endswith("attn_gate")}
    wrong["flamingo_palm.norm"] = np.zeros(3)
    with pytest.raises(
        CheckpointError, match=r"2 faults:\n  unexpected norm \[3\].*\n  missing layers\.0\.1\.attn_gate"
    ):
        flamingo.ORIGINAL.load(saved(tmp_path / "a.pt", wrong), config)
    with pytest.raises(CheckpointError, match="no flat hyper_parameters"):
        flamingo.ORIGINAL.load(saved(tmp_path / "b.pt", tensors))
    with pytest.raises(CheckpointError, match="Did you mean 'gpt2'"):
        flamingo.model_config(OPTIONS | {"language_model": "gpt"})
