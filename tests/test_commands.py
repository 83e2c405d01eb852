"""Every command, given paths that cannot be read or written: one message that names the path, and an exit code."""

import os
import sys
from pathlib import Path

import pytest

import jaxvqa
from jaxvqa import __main__ as jaxvqa_command
from jaxvqa import main
from jaxvqa.ask import __main__ as ask
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
    "ask a file": (ask.main, ["--workdir=FILE", "FILE"]),
    "ask about nothing": (ask.main, ["--workdir=FILE", "NONE/scan.png", "is there a mass?"]),
    "ask below a file": (ask.main, ["--workdir=NONE", "FILE", "why?", "--output=FILE/answers.csv"]),
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


@pytest.mark.parametrize("name", jaxvqa_command.COMMANDS)
def test_one_command_runs_every_program(name, capsys, monkeypatch):
    module, options, _ = jaxvqa_command.COMMANDS[name]
    seen = []
    monkeypatch.setattr(f"{module}.main", lambda argv: seen.append(list(argv)) or 3)
    assert jaxvqa_command.main([name, "--one=1", "two"]) == 3
    assert seen == [[*options, "--one=1", "two"]]


def test_one_command_says_what_there_is(capsys, monkeypatch):
    assert jaxvqa_command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxvqa {jaxvqa.__version__}\n"
    for words in ([], ["--help"], ["help"]):
        assert jaxvqa_command.main(words) == 0
        page = capsys.readouterr().out
        assert all(f"    {name} " in page for name in jaxvqa_command.COMMANDS)
    assert jaxvqa_command.main(["trian"]) == 2
    assert "There is no command 'trian': choose train, " in (message := capsys.readouterr().err)
    assert "Did you mean 'train'" in message
    seen = []
    monkeypatch.setattr(main, "main", lambda argv: seen.append(argv) or 0)
    assert jaxvqa_command.main(["--config=configs/rwsan.py", "--mode=eval"]) == 0
    assert seen == [["--config=configs/rwsan.py", "--mode=eval"]]


def test_how_much_is_said_is_chosen_for_every_command(capsys, monkeypatch):
    monkeypatch.setenv("JAXVQA_LOG", "")
    seen = []
    monkeypatch.setattr(main, "main", lambda argv: seen.append((argv, os.environ["JAXVQA_LOG"])) or 0)
    assert jaxvqa_command.main(["eval", "--quiet", "--workdir=a"]) == 0
    assert jaxvqa_command.main(["--verbose", "eval", "--workdir=a"]) == 0
    argv = ["--mode=eval", "--workdir=a"]
    assert seen == [(argv, "quiet"), (argv, "verbose")]
    assert jaxvqa_command.main(["eval", "--quiet", "--verbose"]) == 2
    assert "--quiet and --verbose" in capsys.readouterr().err
    assert jaxvqa_command.main(["--quiet"]) == 0
    assert "jaxvqa COMMAND" in capsys.readouterr().out


def test_a_real_program_is_run(capsys):
    assert jaxvqa_command.main(["eval", "--workdir=~/there/is/no/run"]) == 2
    assert str(Path.home() / "there/is/no/run") in capsys.readouterr().err
    assert jaxvqa_command.main(["train", "--mode=eval"]) == 2
    assert "--mode: given 2 times" in capsys.readouterr().err


def test_the_console_script_finds_modules_of_the_current_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "builders_of_mine.py").write_text("number = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["jaxvqa", "data", "builders_of_mine:number"])
    with pytest.raises(SystemExit, match="2"):
        jaxvqa_command.cli()
    assert "it is of the type int" in capsys.readouterr().err
    assert sys.path[0] == str(tmp_path)
