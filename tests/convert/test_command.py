"""The command with CMSA's checkpoints: a run's folder to the original's file and back, and parts for `config.init_from`."""

import json
import shlex

import numpy as np
import pytest

from jaxvqa import checkpoints, configs, main, paths
from jaxvqa.convert import __main__ as convert
from jaxvqa.runs import Run
from tests import listening, runs


def arrays(folder):
    saved = checkpoints.Checkpoints(folder, read_only=True)
    model = saved.restore_model(saved.model_shapes())
    saved.close()
    return paths.flatten({"params": model["params"], **model["collections"]})


STEPS = 2


@pytest.fixture(scope="module")
def settings(phantoms):
    return [
        ("data.dir", str(phantoms)),
        ("data.examples", "phantom_vqa/tiny_questions"),
        ("data.images", "phantom_vqa/tiny_images"),
        ("data.answers.min_count", "1"),
        ("data.limit", "64"),
    ]


@pytest.fixture(scope="module")
def converted(settings, tmp_path_factory):
    """Writes a run of a system as the original's file: the run, the file, and options with its lists."""
    done = {}

    def convert_once(system):
        if system not in done:
            folder = tmp_path_factory.mktemp(system)
            run, file = folder / "run", folder / "model.pth"
            name = "configs/cmsa.py:" + ("small" if system == "cmsa" else f"small,{system}")
            config = configs.load(name)
            configs.override(config, settings)
            task, _ = runs.write(config, run, STEPS)
            with listening.heard() as noted:
                assert convert.main([f"--system={system}", f"--from={run}", f"--to={file}"]) == 0
            listening.assert_lines_before(noted, {"restore": "converting: 0 of 3, reading …"})
            options = [f"--config={name}"]
            for name in ("vocabulary", "answers"):
                (folder / f"{name}.json").write_text(json.dumps(task.assets[name]))
                options.append(f"--{name}={folder / name}.json")
            done[system] = run, file, options
        return done[system]

    return convert_once


@pytest.mark.slow  # the commands of other systems, and CMSA's table, are in files of their own
@pytest.mark.parametrize("system", ["cmsa", "ban"])
def test_a_run_becomes_the_originals_file_and_a_run_again(converted, settings, tmp_path, system):
    run, file, options = converted(system)
    again = tmp_path / "again"
    assert convert.main([f"--system={system}", f"--from={file}", f"--to={again}", *options]) == 0
    command = ["python", "-m", "jaxvqa.convert", f"--system={system}", f"--from={file}", *options]
    assert Run.open(again).command == shlex.join(command)
    ours, theirs = arrays(run), arrays(again)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path], err_msg=path)
    if system == "cmsa":
        # The optimiser came along: the file names two steps, and so does the folder.
        assert checkpoints.Checkpoints(again, read_only=True).latest_step() == STEPS
    data = [f"--config.{name}={value}" for name, value in settings[:3]]
    assert main.main([f"--workdir={again}", "--mode=predict", "--split=val", *data]) == 0
    assert next((again / "predictions").glob("val_*.jsonl")).read_text()


def test_lists_of_another_length_are_refused(converted, tmp_path, capsys):
    _, file, options = converted("cmsa")
    (tmp_path / "words.json").write_text('["yes", "no"]')
    words = tmp_path / "words.json"
    command = ["--system=cmsa", f"--from={file}", f"--to={tmp_path / 'again'}", f"--vocabulary={words}"]
    assert convert.main([*command, f"--answers={words}", options[0]]) == 2
    message = capsys.readouterr().err
    assert "vocabulary" in message
    assert "gives 2" in message
    assert not (tmp_path / "again").exists()


def test_masks_are_not_for_every_system(converted, tmp_path, capsys):
    _, file, options = converted("cmsa")
    command = ["--system=cmsa", f"--from={file}", f"--to={tmp_path / 'again'}", *options, "--masks=modelmask.json"]
    assert convert.main(command) == 2
    assert "--masks is not for 'cmsa'" in capsys.readouterr().err


def test_a_part_is_only_read(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert convert.main(["--system=maml", f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'maml.weights'}"]) == 2
    assert "only read" in capsys.readouterr().err
