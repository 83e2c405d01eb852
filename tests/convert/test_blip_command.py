"""The command on BLIP's files: to a work directory and back, and what it says of a tokenizer that is another one's."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.convert import __main__ as command
from jaxvqa.convert import files
from jaxvqa.data.blip_text import CaptionTokenizer
from jaxvqa.golden import weights
from jaxvqa.runs import Run

GOLDEN = Path(__file__).parent.parent / "golden" / "blip"


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    manifest = json.loads((GOLDEN / "blip_pretrain_small.manifest.json").read_text())
    tensors = weights.checkpoint(manifest["tensors"])
    for group in manifest["tied"]:
        tensors |= dict.fromkeys(group, tensors[group[-1]])
    path = tmp_path_factory.mktemp("blip") / "model.pth"
    files.write(path, files.TorchFile(tensors, extra={"epoch": 19}, weights_entry="model"))
    return path, tensors


def convert(*arguments):
    return command.main([f"--{name}={value}" for name, value in arguments])


def test_there_and_back(pretraining, tmp_path):
    path, tensors = pretraining
    folder, back = tmp_path / "run", tmp_path / "back.pth"
    vocabulary = GOLDEN / "small_vocab.txt"
    assert convert(("system", "blip_pretrain"), ("from", path), ("to", folder), ("tokenizer", vocabulary)) == 0
    run = Run.open(folder)
    assert run.config.loss.queue == 16
    assert run.config.data.image_size == 32
    assert CaptionTokenizer(run.assets["tokenizer"]).decode_begin == 98
    assert convert(("system", "blip_pretrain"), ("from", folder), ("to", back)) == 0
    found = files.read(back, "model").tensors
    assert list(found) == list(tensors)
    assert all(np.array_equal(found[key], value) for key, value in tensors.items())


def test_a_tokenizer_of_another_size_says_so(pretraining, tmp_path, capsys):
    path, _ = pretraining
    few = tmp_path / "vocab.txt"
    few.write_text("\n".join((GOLDEN / "small_vocab.txt").read_text().split("\n")[:60]))
    assert convert(("system", "blip_pretrain"), ("from", path), ("to", tmp_path / "run"), ("tokenizer", few)) == 2
    error = capsys.readouterr().err
    assert "100 tokens" in error
    assert "62" in error
    assert not (tmp_path / "run").exists()
