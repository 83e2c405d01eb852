"""Every command, given paths that cannot be read or written: one message that names the path, and an exit code."""

import pytest

from jaxvqa import main
from jaxvqa.convert import __main__ as convert
from jaxvqa.explain import __main__ as explain
from jaxvqa.report import __main__ as report
from tfds_builders import build
from tfds_builders.pubmed_figures import __main__ as pubmed_figures

# FILE is a file, below which there can be no folder; NONE is nothing.
COMMANDS = {
    "train into a file": (main.main, ["--config=configs/rwsan.py:small", "--workdir=FILE"]),
    "train below a file": (main.main, ["--config=configs/rwsan.py:small", "--workdir=FILE/run"]),
    "evaluate a file": (main.main, ["--mode=eval", "--workdir=FILE"]),
    "evaluate nothing": (main.main, ["--mode=eval", "--workdir=NONE"]),
    "predict from nothing": (main.main, ["--mode=predict", "--split=val", "--workdir=NONE"]),
    "keep programs in a file": (main.main, ["--config=configs/rwsan.py:small", "--config.compilation_cache=FILE"]),
    "explain a file": (explain.main, ["--workdir=FILE", "--output=NONE"]),
    "report of a file": (report.main, ["--workdir=FILE"]),
    "report of nothing": (report.main, ["--workdir=NONE"]),
    "convert a folder below a file": (convert.main, ["--system=rwsan", "--from=FILE/a.pth", "--to=NONE"]),
    "convert nothing": (convert.main, ["--system=rwsan", "--from=NONE", "--to=FILE/run"]),
    "build into a file": (build.main, ["phantom_vqa", "--config=tiny_questions", "--data_dir=FILE"]),
    "build from a file": (build.main, ["vqa_rad", "--manual_dir=FILE", "--data_dir=NONE"]),
    "gather figures into a file": (pubmed_figures.main, ["find", "--query=brain", "FILE"]),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_path_at_fault_is_one_message(what, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    command, arguments = COMMANDS[what]
    if "compilation_cache" in " ".join(arguments):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("kept")
    paths = {"FILE": str(tmp_path / "file"), "NONE": str(tmp_path / "none")}
    for name, path in paths.items():
        arguments = [word.replace(name, path) for word in arguments]
    assert command(arguments) in (2, 74)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert any(path in message for path in paths.values()), message
    assert (tmp_path / "file").read_text() == "kept"
