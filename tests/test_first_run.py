"""`make run`: what it offers at its end; and as a whole on a fresh clone, which needs a package index and minutes."""

import os
import re
import shlex
import subprocess
import sys
import time

import pytest

from jaxvqa.ask import __main__ as command
from jaxvqa.ask.model import load
from launch import first_run
from tests import runs
from tests.runs import ROOT


def test_the_command_that_is_offered_asks_about_an_image_of_the_run(phantoms, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "a folder's/rwsan"
    runs.write(runs.tiny_config(phantoms), workdir, step=1)
    model = load(workdir)  # whose program is compiled once
    monkeypatch.setattr(command, "load", lambda folder, predict: model if folder == workdir else None)
    monkeypatch.setattr(command, "use_compilation_cache", lambda folder: None)
    offered, answers = first_run.offer(workdir)
    python, *module, of, image, question, regions = shlex.split(offered)
    assert [python, *module] == [sys.executable, "-m", "jaxvqa.ask"]
    assert command.main([of, image, question, regions]) == 0
    said = capsys.readouterr().out.splitlines()
    (example,) = model.run.data.split("val").read([0])
    assert question == example["question"]
    assert sorted(answers.split(" or ")) == sorted({f'"{answer}"' for answer in example["answers"]})
    assert said[0].endswith(model.answer(image, question, regions.removeprefix("--regions=")).answer)


@pytest.mark.slow
def test_make_run_in_a_fresh_clone(tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = os.environ | {"HOME": str(tmp_path), "XLA_FLAGS": ""}
    start = time.perf_counter()
    done = subprocess.run(
        ["make", "run"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = re.search(r"RWSAN (\S+) %, the question alone (\S+) %", done.stdout)
    assert found is not None, done.stdout
    print(f"make run: {seconds:.0f} s, RWSAN {found[1]} %, the question alone {found[2]} %")
    assert float(found[1]) > 90
    assert float(found[2]) < 50
    assert seconds < 360
    (offered,) = re.findall(r"^  (\S+ -m jaxvqa\.ask .*--regions=.*)$", done.stdout, re.MULTILINE)
    answer = subprocess.run(
        offered, shell=True, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-4000:]
    assert " %  " in answer.stdout
    assert len(list((tmp_path / "clone/runs").glob("*/rwsan/report.html"))) == 1
