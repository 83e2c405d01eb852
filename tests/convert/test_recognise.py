"""A checkpoint of another system is reported in one line, and long lists of faults are cut."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.convert import Rule, Table, files, recognise, to_jax
from jaxvqa.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"


def file_of(manifest, part=None):
    """A file with a golden case's keys, and nothing in them."""
    tensors = json.loads((GOLDEN / f"{manifest}.manifest.json").read_text())["tensors"]
    keys = [row["key"] for row in tensors if part is None or row["file"] == part]
    return files.TorchFile({key: np.empty(0) for key in keys}, path=Path("x.pth"))


CASES = {
    "rwsan": ("rwsan/small", None, {}),
    "cmsa": ("cmsa/cmsa_small", None, {}),
    "ban": ("cmsa/ban_mevf_full", None, {}),
    "san": ("cmsa/san_mevf_full", None, {}),
    "mtpt": ("cmsa/mtpt_segment", "decoder", {}),
    "flamingo": ("flamingo/flamingo_small", None, {}),
    "gpt2": ("flamingo/gpt2_small", None, {}),
    "bert": ("flamingo/bert_small", None, {}),
    "clip_vision": ("flamingo/clip_openai_small", None, {}),
}


@pytest.mark.parametrize("system", CASES)
def test_every_system_knows_its_own_and_names_it_to_the_others(system):
    manifest, part, model = CASES[system]
    file = file_of(manifest, part)
    recognise.check(file, system, model)
    for other in CASES:
        if other != system:
            with pytest.raises(
                CheckpointError, match=rf"looks like a checkpoint of .*{system}.*use .*--system={system}"
            ):
                recognise.check(file, other, {})


BLIP = (
    ("blip_pretrain", "pretrain"),
    ("blip_retrieval", "retrieval"),
    ("blip_caption", "caption"),
    ("blip_caption", "itm"),
    ("blip_caption", "feature"),
    ("blip_vqa", "vqa"),
    ("blip_nlvr", "nlvr"),
)


@pytest.mark.parametrize(("system", "case"), BLIP)
def test_blips_systems_know_their_own_files(system, case):
    file = file_of(f"blip/blip_{case}_small")
    recognise.check(file, system, {})
    with pytest.raises(CheckpointError, match=rf"looks like a checkpoint of .*{system}.*use .*--system={system}"):
        recognise.check(file, "rwsan", {})


def test_another_backbone_of_sysu_is_named_with_its_config():
    keys = [
        f"features.{n}.{kind}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) for kind in ("weight", "bias")
    ]
    keys += [f"classifier.{n}.{kind}" for n in (0, 3, 6) for kind in ("weight", "bias")]
    file = files.TorchFile({key: np.empty(0) for key in keys}, path=Path("x.pth"))
    recognise.check(file, "sysu_hcp", {"backbone": "vgg16"})
    for system in ("sysu_hcp", "sysu_hcp_tower"):
        with pytest.raises(
            CheckpointError, match=r"use --system=sysu_hcp --config=configs/sysu_hcp\.py:vqa_med_2021,vgg16"
        ):
            recognise.check(file, system, {"backbone": "resnet50"})


def test_what_is_of_no_system_is_left_to_the_tables():
    file = files.TorchFile({"some.other": np.empty(0)}, path=Path("x.pth"))
    for system in (*CASES, "maml", "sysu_hcp"):
        recognise.check(file, system, {"backbone": "vgg16"})


TABLE = Table((Rule("layer.{i}.weight", "layer_{i}"), Rule("out.weight", "out")))
TARGET = {f"layer_{i}": np.zeros(2, np.float32) for i in range(50)} | {"out": np.zeros(2, np.float32)}
TENSORS = {f"layer.{i}.weight": np.zeros(2, np.float32) for i in range(50)} | {"out.weight": np.zeros(2, np.float32)}


def test_what_stands_before_every_key_is_one_line():
    with pytest.raises(CheckpointError) as error:
        to_jax({f"encoder_q.{key}": value for key, value in TENSORS.items()}, TABLE, TARGET)
    assert "all keys begin with 'encoder_q.', and fit without it: give --prefix=encoder_q." in str(error.value)
    assert "\n" not in str(error.value)
    most = {f"base.net.{key}" if "layer" in key else key: value for key, value in TENSORS.items()}
    with pytest.raises(CheckpointError, match=r"50 of 51 keys begin with 'base\.net\.'"):
        to_jax(most, TABLE, TARGET)


def test_keys_of_which_none_is_known_are_one_line():
    with pytest.raises(
        CheckpointError,
        match=r"\d+ faults: none of its 30 keys is one of this system's; the first are x\.0, x\.1, x\.2\.$",
    ):
        to_jax({f"x.{i}": np.zeros(2) for i in range(30)}, TABLE, TARGET)


def test_of_many_faults_the_first_of_each_kind_are_listed():
    tensors = {key: np.zeros(3, np.float32) for key in list(TENSORS)[:25]} | {f"y.{i}": np.zeros(2) for i in range(12)}
    with pytest.raises(CheckpointError) as error:
        to_jax(tensors, TABLE, TARGET)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("63 faults:")
    for kind, more in (("wrong shape", 15), ("unexpected", 2), ("missing", 16)):
        assert sum(line.startswith(f"  {kind}") for line in lines) == 11
        assert f"  {kind}: {more} more" in lines
