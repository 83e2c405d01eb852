"""A checkpoint that was damaged: one message that names it, what of it, and the way back."""

import os
import shutil

import pytest

from jaxvqa import checkpoints
from jaxvqa.convert import __main__ as convert
from jaxvqa.errors import CheckpointError
from jaxvqa.runs import Run
from tests import runs

# Threads of TensorStore that had more to read find the event loop gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    """What a run leaves that saved at steps 4 and 6."""
    folder = tmp_path_factory.mktemp("run")
    config = runs.tiny_config(phantoms)
    runs.write(config, folder, 4)
    runs.write(config, folder, 6)
    return folder


def predict_from(workdir):
    return Run.open(workdir).state


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(path):
    os.truncate(path, 10)


def garble(path):
    path.write_bytes(b"\x93" * path.stat().st_size)


DAMAGE = {
    "tensors cut": lambda step: cut(largest(step / "model" / "ocdbt.process_0" / "d")),
    "tensors gone": lambda step: largest(step / "model" / "ocdbt.process_0" / "d").unlink(),
    "tensors garbled": lambda step: garble(largest(step / "model" / "ocdbt.process_0" / "d")),
    "manifest gone": lambda step: (step / "model" / "manifest.ocdbt").unlink(),
    "tree gone": lambda step: (step / "model" / "_METADATA").unlink(),
    "tree cut": lambda step: cut(step / "model" / "_METADATA"),
    "model gone": lambda step: shutil.rmtree(step / "model"),
    "assets gone": lambda step: shutil.rmtree(step / "assets"),
    "meta gone": lambda step: shutil.rmtree(step / "meta"),
    "assets cut": lambda step: cut(step / "assets" / "metadata"),
    "meta cut": lambda step: cut(step / "meta" / "metadata"),
    "assets a list": lambda step: (step / "assets" / "metadata").write_text("[1]"),
    "meta a list": lambda step: (step / "meta" / "metadata").write_text("[1]"),
    "meta without a config": lambda step: (step / "meta" / "metadata").write_text('{"config": [1]}'),
    "meta garbled": lambda step: garble(step / "meta" / "metadata"),
    "everything gone": lambda step: [shutil.rmtree(part) for part in step.iterdir() if part.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_the_checkpoint_before(damage, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    step = workdir / "checkpoints" / "6"
    DAMAGE[damage](step)
    with pytest.raises(CheckpointError) as error:
        predict_from(workdir)
    message = str(error.value)
    assert message.startswith(f"The checkpoint of step 6 in {step} cannot be read: ")
    assert f"of step 4, remove it: rm -r {step}" in message
    assert "TensorStore details" not in message
    shutil.rmtree(step)  # what the message says
    assert int(predict_from(workdir).step) == 4


def test_the_optimiser_is_read_to_go_on_and_to_convert(run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    cut(largest(workdir / "checkpoints" / "6" / "optimizer" / "ocdbt.process_0" / "d"))
    assert int(predict_from(workdir).step) == 6  # which needs no optimiser
    assert convert.main(["--system=rwsan", f"--from={workdir}", f"--to={tmp_path / 'x.pkl'}"]) == 2
    assert "The checkpoint of step 6" in capsys.readouterr().err


def test_without_one_before_it(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    (tmp_path / "run" / "best" / "checkpoints").mkdir(parents=True)
    cut(tmp_path / "run" / "checkpoints" / "6" / "meta" / "metadata")
    with pytest.raises(CheckpointError, match="There is none before it") as error:
        predict_from(tmp_path / "run")
    assert f"--workdir={tmp_path / 'run' / 'best'}" in str(error.value)


def test_a_bug_stays_one(run, monkeypatch):
    def out_of_memory(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

    saved = checkpoints.Checkpoints(run, read_only=True)
    monkeypatch.setattr(saved._manager, "restore", out_of_memory)
    with pytest.raises(RuntimeError, match="Out of memory"):
        saved.read_json()
    saved.close()
