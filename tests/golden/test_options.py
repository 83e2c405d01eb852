"""The options of the originals' classes become the `model` part of a config."""

import json
from pathlib import Path

import pytest

from jaxvqa.errors import CheckpointError
from jaxvqa.golden import options
from jaxvqa.models.mevf import INPUTS

GOLDEN = Path(__file__).parent / "cmsa"


def test_rwsans_options_that_are_not_known_are_named():
    with pytest.raises(CheckpointError, match=r"HIDEN_SIZE.* Did you mean 'HIDDEN_SIZE'"):
        options.rwsan({"HIDEN_SIZE": 3})
    with pytest.raises(CheckpointError, match="four times"):
        options.rwsan({"HIDDEN_SIZE": 8, "FF_SIZE": 31})


def test_cmsas_options():
    given = {"model": "CMSA", "emb_init": "glove", "op": "c", "rnn": "GRU", "num_hid": 1024, "v_dim": 512}
    given |= {"use_spatial": True, "self_att": False, "use_cma": True, "n_words": 1177, "n_answers": 458}
    assert options.cmsa(given | {"question_len": 12, "distmodal": True, "image_size": 224}) == {
        "name": "cmsa",
        "embed_width": 300,
        "tables": 2,
        "rnn": "gru",
        "width": 1024,
        "branch_sizes": {"width": 64},
        "spatial": True,
        "self_attention": False,
        "cross_attention": True,
        "vocab_size": 1177,
        "num_answers": 458,
    }
    assert options.cmsa({"op": ""})["tables"] == 1
    with pytest.raises(CheckpointError, match=r"num_hidden.* Did you mean 'num_hid'"):
        options.cmsa({"num_hidden": 3})
    with pytest.raises(CheckpointError, match="not CMSA"):
        options.cmsa({"model": "BAN"})


def test_the_options_of_ban_and_san():
    given = json.loads((GOLDEN / "san_mevf_full.manifest.json").read_text())["options"]
    assert options.mevf(given) == {
        "name": "san",
        "image_branches": "mevf",
        "vocab_size": 1177,
        "num_answers": 458,
        "embed_width": 300,
        "tables": 2,
        "width": 1024,
        "rnn": "lstm",
        "maml_width": 64,
        "code_width": 64,
        "stacks": 2,
    }
    given = {"model": "BAN", "multitask": True, "v_dim": 128, "op": "", "gamma": 4, "emb_init": "biowordvec"}
    assert options.mevf(given) == {
        "name": "ban",
        "image_branches": "resnet50",
        "image_width": 128,
        "tables": 1,
        "glimpses": 4,
        "embed_width": 200,
    }
    with pytest.raises(CheckpointError) as error:
        options.mevf({"model": "CMSA", "gama": 2, "maml": True, "distmodal": True})
    for part in ("model is CMSA", "Did you mean 'gamma'", "maml and distmodal"):
        assert part in str(error.value)


def test_every_image_branch_has_options():
    chosen = (
        {"maml": True, "autoencoder": True},
        {"maml": True},
        {"autoencoder": True},
        {"distmodal": True},
        {"multitask": True},
    )
    assert [options.mevf({"model": "BAN"} | flags)["image_branches"] for flags in chosen] == list(INPUTS)


def test_options_of_the_pre_training_that_are_not_known_are_named():
    with pytest.raises(CheckpointError) as error:
        options.mtpt({"tsk": "segment", "backbone": "vgg"})
    for part in ("Did you mean 'task'", "backbone is vgg"):
        assert part in str(error.value)


def test_sysu_hcps_options_that_are_not_offered_are_refused():
    given = {"layers": [1, 1, 1, 1], "radix": 2, "groups": 1, "num_classes": 10, "avd_first": False}
    assert options.sysu_hcp("resnest", given)["sizes"] == {"blocks": [1, 1, 1, 1], "radix": 2}
    with pytest.raises(CheckpointError, match="not offered with avd_first = True"):
        options.sysu_hcp("resnest", given | {"avd_first": True})
