"""The porting guide is true: its files are written as it shows them, and its commands run."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxvqa import main, models
from jaxvqa.convert import __main__ as convert
from jaxvqa.convert import systems
from jaxvqa.golden import runner, weights
from tests.checkpoint_files import load
from tests.oracle import torch

PAGE = (Path(__file__).parents[1] / "docs/adding_a_system.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def ported(tmp_path, monkeypatch):
    """The guide's files as modules of this process, and its rows in the tables."""
    monkeypatch.chdir(tmp_path)
    made = {}
    for path, text in FILES.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if path.startswith("jaxvqa/"):
            name = path.removesuffix(".py").replace("/", ".")
            spec = importlib.util.spec_from_file_location(name, file)
            made[name] = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, made[name])
            package, _, last = name.rpartition(".")
            monkeypatch.setattr(sys.modules[package], last, made[name], raising=False)
            spec.loader.exec_module(made[name])
            if package == "jaxvqa.models":
                monkeypatch.setitem(models.MODELS, "ibowimg", made[name].IBOWIMG)
    monkeypatch.setitem(systems.SYSTEMS, "ibowimg", made["jaxvqa.convert.ibowimg"].SYSTEMS["ibowimg"])
    monkeypatch.setitem(runner.MODELS, "ibowimg", "jaxvqa.golden.ibowimg")
    return tmp_path


def command(module):
    """The arguments of the guide's commands for a module."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [line.split()[3:] for line in lines if line.startswith(f"python -m {module} ")]


def test_the_guides_system_trains_and_is_converted_both_ways(ported, phantoms):
    (arguments,) = command("jaxvqa.main")
    tiny = ["limit=32", "examples=phantom_vqa/tiny_questions", "images=phantom_vqa/tiny_images", f"dir={phantoms}"]
    assert (
        main.main(
            [
                *arguments,
                *(f"--config.data.{field}" for field in tiny),
                "--config.total=2 steps",
                "--config.report=False",
            ]
        )
        == 0
    )
    there, again = command("jaxvqa.convert")
    assert convert.main(there) == 0
    content = load(ported / "weights.pth")
    assert list(content) == ["weights", "epoch"]
    assert list(content["weights"]) == ["embed.weight", "fc.weight", "fc.bias"]
    for name, first, key in (("words", ["PAD", "UNK"], "embed.weight"), ("answers", [], "fc.bias")):
        rest = [f"{name}{i}" for i in range(len(content["weights"][key]) - len(first))]
        (ported / f"{name}.json").write_text(json.dumps(first + rest))
    assert convert.main(again) == 0
    assert convert.main(["--system=ibowimg", "--from=runs/again", "--to=twice.pth"]) == 0
    for key, value in load(ported / "twice.pth")["weights"].items():
        np.testing.assert_array_equal(value, content["weights"][key])


def test_the_guides_golden_case_passes_and_can_fail(ported):
    """With outputs worked out in NumPy where PyTorch, which the guide takes, is not at hand."""
    folder = ported / "tests/golden/ibowimg"
    folder.mkdir(parents=True)
    shapes = {"embed.weight": [9, 5], "fc.weight": [4, 11], "fc.bias": [4]}
    tensors = [{"key": key, "shape": shape, "dtype": "float32"} for key, shape in shapes.items()]
    values = weights.checkpoint(tensors)
    values["embed.weight"][0] = 0
    regions = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    regions[1, 1:] = 0
    question = np.array([[1, 2], [8, 0]])
    image = np.stack([regions[0].mean(0), regions[1, 0]])
    joint = np.concatenate([values["embed.weight"][question].sum(1), image], -1)
    logits = joint @ values["fc.weight"].T + values["fc.bias"]
    (folder / "small.manifest.json").write_text(json.dumps({"model": "ibowimg", "padding_row": 0, "tensors": tensors}))
    for change, result in ((0, 0), (1, 1)):
        np.savez(folder / "small.npz", in_regions=regions, in_question=question, out_logits=logits + change)
        (arguments,) = command("jaxvqa.golden")
        assert runner.main(arguments) == result


@pytest.mark.oracle
def test_the_guides_recording_is_of_the_original(ported, monkeypatch):
    text = re.search(r"(    class IBOWIMG\(nn\.Module\):\n.*?)\n\n[^ ]", PAGE, re.DOTALL)[1]
    (ported / "original.py").write_text(
        "import torch\nfrom torch import nn\n\n" + re.sub("^    ", "", text, flags=re.M)
    )
    monkeypatch.syspath_prepend(ported)
    exec(compile(FILES["record.py"], "record.py", "exec"), {})
    assert torch is not None
    (arguments,) = command("jaxvqa.golden")
    assert runner.main(arguments) == 0
