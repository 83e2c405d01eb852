"""The wheel: it takes no name but `jaxvqa`, and does from any folder what the checkout does."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from jaxvqa.errors import install
from tests.runs import ROOT

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "jaxvqa", "configs", "tfds_builders")


def build(hook: str, folder: Path) -> Path:
    """What setuptools builds of a copy of the checkout by one of its hooks."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip(f"setuptools, which builds the wheel, is not installed here: {install('test')}")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    # As pip calls it, in a process of its own.
    code = f"from setuptools import build_meta; build_meta.{hook}('dist')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return zipfile.ZipFile(build("build_wheel", tmp_path_factory.mktemp("checkout")))


def test_a_wheel_takes_no_name_but_its_own(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxvqa"}
    (said,) = (name for name in wheel.namelist() if name.endswith("/top_level.txt"))
    assert wheel.read(said).decode().split() == ["jaxvqa"]


def test_a_wheel_has_every_file_of_the_package(wheel):
    places = {"jaxvqa": "jaxvqa", "configs": "jaxvqa/config_files", "tfds_builders": "jaxvqa/tfds_builders"}
    expected = {
        f"{place}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected == {name for name in wheel.namelist() if name.startswith("jaxvqa/")}


def test_code_in_a_wheel_calls_the_builders_as_they_are_called_there(wheel):
    code = {name: wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py")}
    for name, text in code.items():
        assert "jaxvqa.jaxvqa" not in text, name
        assert not re.search(r"^\s*(from|import) configs\b", text, re.MULTILINE), f"{name}: import it of jaxvqa.configs"
        for line in text.splitlines():
            words = line.replace("jaxvqa.tfds_builders", "")
            assert "tfds_builders." not in words, f"{name}: {line}"
            assert "tfds_builders import" not in words, f"{name}: {line}"
    assert '"data": ("jaxvqa.tfds_builders.build"' in code["jaxvqa/__main__.py"]
    assert "python -m jaxvqa.tfds_builders.build" in code["jaxvqa/tfds_builders/build.py"]


def test_an_editable_installation_has_the_checkout_as_it_is(tmp_path):
    built = zipfile.ZipFile(build("build_editable", tmp_path))
    (finder,) = (name for name in built.namelist() if name.endswith("_finder.py"))
    mapped = ast.parse(built.read(finder))
    (folders,) = (
        ast.literal_eval(line.value)
        for line in mapped.body
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "MAPPING"
    )
    assert folders == {name: str(tmp_path / name) for name in ("jaxvqa", "configs", "tfds_builders")}


@pytest.mark.slow
def test_an_installed_wheel_runs_beside_a_users_own_folders(wheel, tmp_path):
    site, user = tmp_path / "site", tmp_path / "user"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site]
    subprocess.run([*install, wheel.filename], check=True)
    for name in ("configs", "tfds_builders"):  # imported first, if anything of the wheel asked for that name
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise ImportError('the user\\'s own')")
    (user / "own.py").write_text(
        "from jaxvqa.configs import common, rwsan\n\n\ndef get_config(arg=None):\n"
        "    config = rwsan.get_config(arg)\n    config.name = 'own'\n"
        "    config.evals.val.update(common.evaluation('test', every='1 epoch', batch_size=16))\n    return config\n"
    )
    (user / "mine.py").write_text(
        "from jaxvqa.tasks.answer_classification import AnswerClassification\n\n\n"
        "class Task(AnswerClassification):\n    pass\n"
    )
    data = [
        f"--config.data.{field}=phantom_vqa/tiny_{part}"
        for field, part in (("examples", "questions"), ("images", "images"))
    ]
    short = [*data, "--config.data.dir=data", "--config.total=4 steps"]
    commands = [
        ["data", "phantom_vqa", "--config=tiny_questions,tiny_images", "--data_dir=data"],
        ["train", "--config=rwsan:small,proposed", "--workdir=run", *short],
        ["train", "--config=configs/rwsan.py:small", "--workdir=by_path", *short],
        ["train", "--config=own.py:small", "--config.task=mine:Task", "--workdir=own", *short],
        ["eval", "--workdir=run"],
        ["report", "--workdir=run"],
        ["explain", "--workdir=run", "--output=explained", "--count=1"],
        ["convert", "--system=rwsan", "--from=run", "--to=back.pkl"],
        ["ask", "--workdir=run", "scan.png", "is there a mass?"],
    ]
    Image.new("L", (64, 64), 90).save(user / "scan.png")
    environment = os.environ | {"PYTHONPATH": str(site)}
    for words in commands:
        done = subprocess.run([site / "bin/jaxvqa", *words], cwd=user, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}:\n{done.stdout}{done.stderr}"
    for run in ("run", "by_path", "own"):
        assert (user / run / "report.html").exists()
    code = "import jaxvqa; print(jaxvqa.load('run').answer('scan.png', 'is there a mass?').probability)"
    done = subprocess.run([sys.executable, "-c", code], cwd=user, env=environment, capture_output=True, text=True)
    assert 0 < float(done.stdout) < 1, done.stderr
    assert "WARNING" not in done.stderr
