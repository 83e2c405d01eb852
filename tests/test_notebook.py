"""The notebook: its cells name what exists, its commands are commands, and they run from top to bottom."""

import ast
import builtins
import importlib
import json
import re
import shlex

import pytest

from jaxvqa import configs
from jaxvqa.__main__ import COMMANDS
from tests.runs import ROOT
from tfds_builders import build

NOTEBOOK = json.loads((ROOT / "docs/first_steps.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
COMMAND_LINES = [
    "".join(ast.literal_eval(call.args[0]))
    for cell in CELLS
    for call in ast.walk(ast.parse(cell))
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "run"
]


def test_it_is_kept_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_every_cell_uses_names_that_are_there():
    known = set(dir(builtins))
    for cell in CELLS:
        nodes = list(ast.walk(ast.parse(cell)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
            if isinstance(node, ast.Import):
                assert all(importlib.import_module(name.name) for name in node.names)
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {name.asname or name.name for name in node.names}
            if isinstance(node, ast.FunctionDef):
                known |= {node.name, *(argument.arg for argument in node.args.args)}
        names = [node for node in nodes if isinstance(node, ast.Name)]
        known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        assert {node.id for node in names} <= known


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_is_one(line):
    command, *words = shlex.split(line)
    assert command in COMMANDS
    given = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    if command == "data":
        assert words[0] in build.builder_names()
        assert build.config_names(words[0], list(filter(None, given.get("config", "").split(","))))
    elif "config" in given:
        fields = [(name.removeprefix("config."), value) for name, value in given.items() if "." in name]
        configs.override(configs.load(given["config"]), fields)


def test_files_that_it_links_to_exist():
    text = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # back here when it has changed the folder
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {"__name__": "notebook"}
    for number, cell in enumerate(CELLS):
        exec(compile(cell, f"cell {number}", "exec"), names)
    (folder,) = (file.parent for file in tmp_path.glob("*/looked.png"))
    assert (folder / "runs/first/report.html").exists()
    assert (folder / "runs/mine/report.html").exists()
    assert names["answer"].answers
    assert capsys.readouterr().out.strip().splitlines()[-1] in {"red", "green", "blue", "yellow", "yes", "no"}
