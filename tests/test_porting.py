"""The guides of systems and data sets are true: files are written as they show them, and commands run."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxvqa import configs, logs, main, models
from jaxvqa.convert import __main__ as convert
from jaxvqa.convert import systems
from jaxvqa.data.data_set import DataSet
from jaxvqa.golden import runner, weights
from tests.checkpoint_files import load
from tests.oracle import torch
from tfds_builders import build

DOCS = Path(__file__).parents[1] / "docs"
PAGE, BUILDERS = ((DOCS / f"adding_a_{what}.md").read_text() for what in ("system", "data_set"))
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE + BUILDERS, re.DOTALL))


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


@pytest.fixture
def own_package(ported, monkeypatch):
    """The guides' package where Python finds it."""
    monkeypatch.syspath_prepend(ported)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]


def command(module):
    """The arguments of the guide's commands for a module."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [line.split()[3:] for line in lines if line.startswith(f"python -m {module} ")]


def tiny(phantoms):
    """Changes that make a command a run of seconds."""
    data = ["limit=32", "examples=phantom_vqa/tiny_questions", "images=phantom_vqa/tiny_images", f"dir={phantoms}"]
    return [*(f"--config.data.{field}" for field in data), "--config.total=2 steps"]


def test_a_package_of_ones_own_trains_is_evaluated_and_reported(ported, phantoms, own_package):
    _, arguments = command("jaxvqa.main")
    assert main.main([*arguments, *tiny(phantoms)]) == 0
    values = {name: value for row in logs.read_metrics(ported / "runs/mypackage") for name, value in row.items()}
    assert 0 < values["val_sure/sure"] <= 100
    assert "val/accuracy" in values
    assert "val_sure" in (ported / "runs/mypackage/report.html").read_text()


def test_a_builder_of_ones_own_is_built_and_read(ported, own_package, capsys):
    (name,) = re.findall(r"^    python -m tfds_builders.build (mypackage\S+)$", BUILDERS, re.MULTILINE)
    for count in ("built", "verified"):
        assert build.main([f"{name}:Builder" if count == "built" else name, f"--data_dir={ported / 'data'}"]) == 0
        assert f"{count}\n" in capsys.readouterr().out
    config = configs.load("configs/sysu_hcp.py:table")
    parts = {"dir": str(ported / "data"), "examples": "sketches/questions", "images": "sketches/images"}
    configs.override(config, [(f"data.{field}", value) for field, value in parts.items()])
    first, last = DataSet(config.data).split("val").read([0, 3])
    assert (first["image_id"], last["image_id"], last["answers"], last["image_w"]) == (8, 11, ["yes"], 32)


def test_the_guides_system_trains_and_is_converted_both_ways(ported, phantoms):
    arguments, _ = command("jaxvqa.main")
    assert main.main([*arguments, *tiny(phantoms), "--config.report=False"]) == 0
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
