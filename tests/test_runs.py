"""A work directory as one object: started, gone on with, opened from any of its parts, and predicted from."""

import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from jaxvqa import checkpoints, configs, init_from, main
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import CheckpointError, ConfigError
from jaxvqa.runs import Run, said_of
from tests import runs

COMMAND = "python -m jaxvqa.main --config=configs/rwsan.py:small '--config.data.dir=/a b'"


@pytest.fixture(scope="module")
def written(phantoms, tmp_path_factory):
    """A run's folder with a checkpoint, started by a command."""
    folder = tmp_path_factory.mktemp("written")
    config = runs.tiny_config(phantoms)
    Run.start(folder, config, COMMAND)
    task, state = runs.write(config, folder, step=4, fresh=[""])
    return folder, config, task, state


def test_a_folder_and_its_checkpoint_alone_say_the_same(written, tmp_path):
    folder, config, task, state = written
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    for run in (Run.open(folder), Run.open(tmp_path)):
        assert json.loads(run.config.to_json()) == json.loads(config.to_json())
        assert run.command == COMMAND
        assert run.assets == task.assets
        assert run.step == run.meta["data"]["step"] == 4
        assert run.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
        assert run.mesh.size == 1
        jax.tree.map(np.testing.assert_array_equal, run.state.params, state.params)
    assert (run.metrics, run.predictions("val"), run.members, run.blind) == ([], (0, []), [], False)


def test_predictions_are_those_of_the_task(written):
    folder, config, task, state = written
    examples = DataSet(config.data).split("val").read([3, 1, 2])
    run = Run.open(folder)
    transforms, asked = run.task.transforms, []
    run.task.transforms = lambda *, train: asked.append(train) or transforms(train=train)
    found = run.predict("answers", examples, batch_size=2)
    assert set(asked) == {False}  # nothing of an example is drawn
    ready = []
    for example in examples:
        for transform in task.transforms(train=False):
            example = transform(example)
        ready.append(example)
    predict = run.task.predictions["answers"]
    for places in ([0, 1], [2, 2]):  # batches of 2, as it predicts
        batch = {key: np.stack([ready[i][key] for i in places]) for key in predict.keys}
        expected = predict.jitted(state.params, {}, batch)
        for i, answer, probability in zip(places, expected["answer"], expected["probability"], strict=True):
            assert found[i].answer == predict.choices[answer[0]]
            np.testing.assert_allclose(found[i].probability, probability[0], rtol=1e-5)
    assert run.predict("answers", []) == []
    with pytest.raises(ConfigError, match="no predict function 'answer': choose answers"):
        run.predict("answer", examples)


def test_a_run_goes_on_with_the_same_config_alone(written, phantoms):
    folder, config, *_ = written
    other = runs.tiny_config(phantoms, optim__lr=0.5, total="9 steps", model__width=24)
    before = (folder / "config.json").read_text()
    with pytest.raises(ConfigError) as caught:
        Run.start(folder, other, "another command")
    message = str(caught.value)
    assert f"optim.lr: was {config.optim.lr}, now 0.5" in message
    assert "model.width: was " in message
    assert "total" not in message
    assert (folder / "config.json").read_text() == before
    assert Run.open(folder).command == COMMAND
    longer = runs.tiny_config(phantoms, total="9 steps")
    assert Run.start(folder, longer).command == COMMAND  # a program that goes on has no command of its own
    assert Run.open(folder).config.total == "9 steps"
    Run.start(folder, runs.tiny_config(phantoms))


def test_a_run_goes_on_with_the_same_data_alone(written):
    run = Run.open(written[0])
    data = {key: run.meta["data"][key] for key in ("examples", "split", "size")}
    run.check_same_data(data)
    with pytest.raises(CheckpointError, match="size: was 64, now 63"):
        run.check_same_data(data | {"size": 63})


def test_the_best_state_is_a_run_of_its_own(written, tmp_path):
    folder, *_ = written
    shutil.copytree(folder, tmp_path / "best")
    assert Run(tmp_path, written[1]).best.step == 4
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        Run.open(folder).best.step  # noqa: B018


def test_what_was_neither_read_nor_trained_is_known(written, tmp_path, caplog):
    folder, config, task, state = written
    assert Run.open(folder).untrained == []  # all began random, and all was trained

    def started(workdir, table):
        rows = {"model": {"workdir": str(workdir), "table": table, "without": ""}}
        return init_from.started(ml_collections.ConfigDict(rows), state, Run.open(folder).mesh, task.kinds)[1]

    assert started("", ((".*", True),)) == [""]
    assert started(folder, ((".*", True),)) == []
    head = ((r"classifier/kernel", False), (r"question_pooling/.*", False), (r".*", True))
    fresh = started(folder, head)
    assert fresh == ["classifier/kernel", "question_pooling"]
    runs.write(config, tmp_path / "later", **{"fresh": fresh})
    assert Run.open(tmp_path / "later").untrained == fresh
    # What comes from a run that has not learned it is as random here.
    renamed = ((r"region_pooling/(.*)", r"question_pooling/\1"), (r".*", True))
    assert started(tmp_path / "later", renamed) == ["classifier/kernel", "question_pooling", "region_pooling"]
    with caplog.at_level("WARNING"):
        Run.open(tmp_path / "later").restore()
    assert "RANDOM NUMBERS: classifier/kernel, question_pooling" in caplog.text
    assert "RANDOM NUMBERS: all parameters" in said_of([""])


def test_a_folder_that_is_not_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} holds no checkpoints and no config.json"):
        Run.open(tmp_path)


def test_the_command_is_kept_as_it_was_typed(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(main.train, "train", lambda config, workdir, command: Run.start(workdir, config, command))
    changes = ["--config.name=a 'b' $c", "--config.report=false", f"--config.data.dir={phantoms}"]
    assert main.main(["--workdir", str(tmp_path), "--config=configs/rwsan.py:small", *changes]) == 0
    words = Run.open(tmp_path).command
    assert str(tmp_path) not in words.replace(str(phantoms), "")
    assert words.startswith("python -m jaxvqa.main --config=configs/rwsan.py:small ")
    assert main.shlex.split(words)[4:] == changes
    config = configs.load("configs/rwsan.py:small")
    assert Run.open(tmp_path).config.name == "a 'b' $c" != config.name
    assert not (tmp_path / checkpoints.FOLDER).exists()
