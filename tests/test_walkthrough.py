"""Every command in README and docs is run: here, in the order a reader would take, with small sizes in place of large ones."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import input_pipeline
from jaxvqa import checkpoints
from tests.test_docs import COMMANDS, ROOT

# What the pages say -> what is run. The order matters: later commands read what earlier ones wrote.
WALK = {
    "python -m tfds_builders.build": "--help",
    "python -m tfds_builders.build phantom_vqa": "phantom_vqa",
    "python -m jaxvqa.main --config=configs/rwsan.py --help": "--config=configs/rwsan.py --help",
    "python -m jaxvqa.main --config=configs/rwsan.py --workdir=runs/rwsan": (
        "--config=configs/rwsan.py:small --workdir=runs/rwsan"
    ),
    "python -m jaxvqa.main --mode=eval --workdir=runs/rwsan": "--mode=eval --workdir=runs/rwsan",
    "python -m jaxvqa.main --mode=predict --split=test --workdir=runs/rwsan": (
        "--mode=predict --split=test --workdir=runs/rwsan"
    ),
    "python -m jaxvqa.explain --workdir=runs/rwsan --output=runs/rwsan/explained": (
        "--workdir=runs/rwsan --output=runs/rwsan/explained"
    ),
    "python -m jaxvqa.report --workdir=runs/rwsan": "--workdir=runs/rwsan",
    (
        "python -m jaxvqa.report --workdir=runs/DATE_first_run/rwsan --baseline=runs/DATE_first_run/blind "
        "--curve=docs/phantom_curve.svg"
    ): "--workdir=runs/rwsan --baseline=runs/rwsan --curve=curve.svg",
    "python -m launch.local --processes=2 -- --config=…": "--processes=2 -- --config=configs/rwsan.py:small",
    "python -m tfds_builders.build vqa_v2 --manual_dir=DIR": "vqa_v2 --manual_dir=files",
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2": "--config=configs/rwsan.py:vqa_v2,small",
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --workdir=runs/vqa_v2": (
        "--config=configs/rwsan.py:vqa_v2,small --workdir=runs/vqa_v2"
    ),
    "python -m jaxvqa.convert --system=rwsan --from=WORKDIR --to=epoch16.pkl": (
        "--system=rwsan --from=runs/vqa_v2 --to=epoch16.pkl"
    ),
    (
        "python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=runs/original --answers=answer_dict.json "
        "--questions Q1.json Q2.json …"
    ): "--system=rwsan --from=epoch16.pkl --to=runs/original --answers=answer_dict.json --questions {questions}",
    "python -m jaxvqa.main --mode=eval --workdir=runs/original": "--mode=eval --workdir=runs/original",
    "python -m jaxvqa.convert --system=rwsan --from=runs/original --to=back.pkl": (
        "--system=rwsan --from=runs/original --to=back.pkl"
    ),
    (
        "python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=WORKDIR --answers=answer_dict.json "
        "--questions FILE …"
    ): "--system=rwsan --from=back.pkl --to=runs/again --answers=answer_dict.json --questions {questions}",
    "python -m jaxvqa.main --mode=eval --workdir=WORKDIR": "--mode=eval --workdir=runs/again",
    "python -m jaxvqa.main --mode=predict --split=test --workdir=WORKDIR": (
        "--mode=predict --split=test --workdir=runs/again"
    ),
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --mode=compile --config.compile.target=v5e:2x4": (
        "--config=configs/rwsan.py:vqa_v2,small --mode=compile --config.compile.target=v5e:2x4"
    ),
    "python -m jaxvqa.main --config=configs/rwsan.py:vqa_v2 --mode=compile --config.compile.target=…": (
        "--config=configs/rwsan.py:vqa_v2,small --mode=compile --config.compile.target=local"
    ),
    "python -m jaxvqa.testing.golden tests/golden/rwsan": "tests/golden/rwsan",
    "python -m pytest tests/test_configs.py": "tests/test_configs.py",
    "python -m benchmarks.train_step --peer": "--peer --config=configs/rwsan.py:small --steps=1 --json=step.json",
    "python -m benchmarks.input_pipeline": "--images=200 --batches=1 --threads 1",
    "python -m benchmarks.input_pipeline --step_json=FILE": "--images=200 --batches=1 --threads 1 --step_json=step.json",
    "python -m benchmarks.start": "--steps=2",
    "python -m benchmarks.start --published": "--published --steps=1",
}

ELSEWHERE = {
    "make lint": ".ci/run",
    "make test": ".ci/run",
    "make format": "make lint checks what it does",
    "make test-slow": "runs this test",
    "make bench": "its commands are above",
    "make run": "tests/test_first_run.py",
    "python -m jaxvqa.main --config=configs/rwsan.py:easy_vqa": "tests/test_real_data.py",
}


def test_every_command_is_run_somewhere():
    assert {command for _, command in COMMANDS} == WALK.keys() | ELSEWHERE.keys()


def write_vqa_v2(folder: Path) -> None:
    """Question, annotation and feature files of all splits, with the same few images and questions in each."""
    input_pipeline.make_files(folder, images=160)  # each answer often enough for the list of answers
    questions = (folder / "vqa/v2_OpenEnded_mscoco_train2014_questions.json").read_text()
    annotations = (folder / "vqa/v2_mscoco_train2014_annotations.json").read_text()
    for name in (
        "v2_OpenEnded_mscoco_val2014",
        "v2_OpenEnded_mscoco_test2015",
        "v2_OpenEnded_mscoco_test-dev2015",
        "VG",
    ):
        (folder / f"vqa/{name}_questions.json").write_text(questions)
    for name in ("v2_mscoco_val2014", "VG"):
        (folder / f"vqa/{name}_annotations.json").write_text(annotations)


@pytest.mark.slow
def test_commands_run(tmp_path):
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_vqa_v2(tmp_path / "files")
    environment = os.environ | {
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),  # of the compilation cache
        "XLA_FLAGS": "",
    }
    for said, arguments in WALK.items():
        if "{questions}" in arguments:
            # The answers of the run that stands in for the original's.
            saved = checkpoints.Checkpoints(tmp_path / "runs/vqa_v2", read_only=True)
            (tmp_path / "answer_dict.json").write_text(json.dumps(saved.read_json()[0]["answers"]))
            saved.close()
            arguments = arguments.format(questions="files/vqa/v2_OpenEnded_mscoco_train2014_questions.json")
        command = [sys.executable, "-m", shlex.split(said)[2], *shlex.split(arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        print(f"{said}\n  {shlex.join(command[1:])}: {done.returncode}")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for written in ("runs/rwsan/report.html", "runs/rwsan/explained", "curve.svg", "back.pkl"):
        assert (tmp_path / written).exists(), written
