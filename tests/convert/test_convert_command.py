"""The command with CMSA's checkpoints: a run's folder to the original's file and back, and parts for `config.init_from`."""

import json

import numpy as np
import pytest

from jaxvqa import checkpoints, main, paths
from jaxvqa.convert import __main__ as convert


def arrays(folder):
    saved = checkpoints.Checkpoints(folder, read_only=True)
    model = saved.restore_model(saved.model_shapes())
    saved.close()
    return paths.flatten({"params": model["params"], **model["extra"]})


@pytest.fixture(scope="module")
def settings(phantoms):
    changes = {
        "data.dir": phantoms,
        "data.questions": "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.answers.min_count": 1,
        "data.limit": 32,
        "batch_size": 8,
        "compilation_cache": phantoms / "xla",
        "report": False,
        "total": "2 steps",
    }
    return [f"--config.{name}={value}" for name, value in changes.items()]


@pytest.mark.parametrize("system", ["cmsa", "ban"])
def test_a_run_becomes_the_originals_file_and_a_run_again(settings, tmp_path, capsys, system):
    pytest.importorskip("torch")
    variant = "small" if system == "cmsa" else f"small,{system}"
    config = f"--config=configs/cmsa.py:{variant}"
    run, file, again = tmp_path / "run", tmp_path / "model.pth", tmp_path / "again"
    assert main.main([config, f"--workdir={run}", *settings]) == 0
    assert convert.main([f"--system={system}", f"--from={run}", f"--to={file}"]) == 0
    saved = checkpoints.Checkpoints(run, read_only=True)
    assets, _ = saved.read_json()
    saved.close()
    lists = []
    for name in ("vocabulary", "answers"):
        (tmp_path / f"{name}.json").write_text(json.dumps(assets[name]))
        lists.append(f"--{name}={tmp_path / name}.json")
    assert convert.main([f"--system={system}", f"--from={file}", f"--to={again}", config, *lists]) == 0
    capsys.readouterr()
    ours, theirs = arrays(run), arrays(again)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path], err_msg=path)
    if system == "cmsa":
        # The optimiser came along: the file names two steps, and so does the folder.
        assert checkpoints.Checkpoints(again, read_only=True).latest_step() == 2
    data = [word for word in settings if ".data.dir=" in word or "questions=" in word or "images=" in word]
    assert main.main([f"--workdir={again}", "--mode=predict", "--split=val", *data]) == 0
    assert next((again / "predictions").glob("val_*.jsonl")).read_text()


def test_lists_of_another_length_are_refused(settings, tmp_path, capsys):
    pytest.importorskip("torch")
    run, file = tmp_path / "run", tmp_path / "model.pth"
    assert main.main(["--config=configs/cmsa.py:small", f"--workdir={run}", *settings]) == 0
    assert convert.main(["--system=cmsa", f"--from={run}", f"--to={file}"]) == 0
    (tmp_path / "words.json").write_text('["yes", "no"]')
    words = f"{tmp_path / 'words.json'}"
    command = ["--system=cmsa", f"--from={file}", f"--to={tmp_path / 'again'}", f"--vocabulary={words}"]
    assert convert.main([*command, f"--answers={words}", "--config=configs/cmsa.py:small"]) == 2
    message = capsys.readouterr().err
    assert "vocabulary" in message
    assert "gives 2" in message
    assert not (tmp_path / "again").exists()


def test_a_part_is_only_read(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert convert.main(["--system=maml", f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'maml.weights'}"]) == 2
    assert "only read" in capsys.readouterr().err
