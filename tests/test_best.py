"""The best state of a run and early stopping: what is kept, when a run ends, and that a stop in between changes neither."""

import json
import math
import shutil
from typing import ClassVar

import ml_collections
import numpy as np
import pytest

from jaxvqa import checkpoints, evaluators, logs, main, train
from jaxvqa.best import Best, chosen_by_test
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.metrics.score import Score
from tests import runs

LOSSES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5, 12: 0.25}
"""What the evaluation of each step gives: the best of the first four is at step 4, and two worse ones follow."""


class Killed(BaseException):
    """The end of a process, as far as one process can have it."""


class Scripted:
    """An evaluator whose values are known before."""

    killed_at: ClassVar[int] = 0
    last: ClassVar[int] = 0

    def __init__(self, context):
        self.name = context.name

    def run(self, state):
        Scripted.last = int(state.step)
        if self.last == self.killed_at:
            raise Killed
        yield f"{self.name}/loss", Score(LOSSES[self.last])


@pytest.fixture(scope="module", autouse=True)
def scripted():
    """Replaces the evaluator, and compiles the training step once for all runs of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(evaluators.EVALUATORS, "scripted", f"{__name__}:Scripted")
        patch.setattr(train, "make_program", runs.one_program())
        yield


@pytest.fixture(scope="module")
def config(phantoms):
    return runs.tiny_config(
        phantoms,
        total="12 steps",
        log_every="2 steps",
        checkpoint__every="4 steps",
        checkpoint__keep=9,
        evals__val__type="scripted",
        evals__val__every="2 steps",
        best__metric="val/loss",
        best__patience=2,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    train.train(config, workdir)
    return workdir


def steps_of(workdir):
    with_folder = checkpoints.Checkpoints(workdir, read_only=True)
    return sorted(int(path.name) for path in with_folder.folder.iterdir() if path.name.isdigit())


def assert_same(one, other):
    ours, theirs = runs.final_arrays(one), runs.final_arrays(other)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def rows_of(workdir):
    """The evaluations that were written down."""
    return [(row["step"], row["val/loss"]) for row in logs.read_metrics(workdir) if "val/loss" in row]


def test_patience_ends_a_run_and_the_best_state_is_kept_apart(whole):
    assert rows_of(whole) == [(step, LOSSES[step]) for step in (2, 4, 6, 8)]
    assert steps_of(whole)[-1] == 8
    assert steps_of(whole / "best") == [4]
    best, then = (checkpoints.Checkpoints(w, read_only=True) for w in (whole / "best", whole))
    ours, theirs = best.restore_model(best.model_shapes()), then.restore_model(then.model_shapes(4), 4)
    assert ours["params"].keys() == theirs["params"].keys()
    kept, last = (c.restore_model(c.model_shapes())["params"]["classifier"]["kernel"] for c in (best, then))
    np.testing.assert_array_equal(ours["params"]["classifier"]["kernel"], theirs["params"]["classifier"]["kernel"])
    assert not np.array_equal(kept, last)


def test_the_best_state_is_a_work_directory_to_evaluate(whole, capsys):
    assert main.main(["--mode=eval", f"--workdir={whole / 'best'}"]) == 0
    assert "1.0" in capsys.readouterr().out


def test_a_run_that_ended_does_not_train_on(whole, config):
    log = (whole / "metrics.jsonl").read_text()
    assert train.train(config, whole) == {"val/loss": LOSSES[8]}
    assert (whole / "metrics.jsonl").read_text() == log
    assert steps_of(whole)[-1] == 8
    assert steps_of(whole / "best") == [4]


@pytest.mark.parametrize(
    ("where", "step"),
    [
        pytest.param("evaluation", 4, marks=pytest.mark.slow),  # the state is saved, but not evaluated
        ("best", 2),  # evaluated, but not kept apart, at a step that is none of checkpoint.every
        ("log", 4),  # kept apart, but not written down
        ("evaluation", 8),  # that which ends the patience
    ],
)
def test_a_run_that_was_killed_ends_as_one_that_was_not(whole, config, tmp_path, monkeypatch, where, step):
    def folder(workdir):
        if Scripted.last == step:
            raise Killed
        return workdir / "best"

    def write(writer, now, values):
        if now == step and "val/loss" in values:
            raise Killed
        write_down(writer, now, values)

    write_down = logs.MetricWriter.write
    with monkeypatch.context() as patch:
        if where == "evaluation":
            patch.setattr(Scripted, "killed_at", step)
        elif where == "best":
            patch.setattr(Best, "folder", staticmethod(folder))
        else:
            patch.setattr(logs.MetricWriter, "write", write)
        with pytest.raises(Killed):
            train.train(config, tmp_path)
    train.train(config, tmp_path)
    assert rows_of(tmp_path) == rows_of(whole)
    assert_same(tmp_path, whole)
    assert_same(tmp_path / "best", whole / "best")


def test_a_state_without_a_log_goes_on(whole, config, tmp_path):
    """As a converted checkpoint has none: nothing was evaluated, and nothing is made up for."""
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    train.train(config, tmp_path)
    assert rows_of(tmp_path) == [(10, LOSSES[10]), (12, LOSSES[12])]
    assert steps_of(tmp_path / "best") == [12]


@pytest.mark.parametrize("error", [KeyError("bug"), DataError("an image is damaged")])
def test_an_evaluation_that_fails_is_named_with_its_step(config, tmp_path, monkeypatch, error):
    def fail(self, state):
        raise error

    monkeypatch.setattr(Scripted, "run", fail)
    with pytest.raises(type(error)) as caught:
        train.train(config, tmp_path)
    words = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    assert any("The evaluation 'val' at step 2" in text for text in words)
    assert any(str(error) in text for text in words)


def settings(**best):
    values = {"metric": "val/loss", "mode": "min", "patience": 0} | best
    return ml_collections.ConfigDict({"best": values, "evals": {"val": {}, "likelihood": {}}})


def test_what_is_better():
    least = Best.of(settings(), [{"step": 1, "train/loss": 0.1}, {"step": 1, "val/loss": 2.0}])
    assert (least.value, least.step) == (2.0, 1)
    assert [least.add(step, {"val/loss": v}) for step, v in ((2, 2.0), (3, math.nan), (4, 1.0))] == [False, False, True]
    assert not least.add(5, {"likelihood/loss": 0.0})  # another evaluation, which does not count
    assert (least.step, least.since) == (4, 0)
    most = Best.of(settings(mode="max", patience=1), [])
    assert [most.add(step, {"val/loss": v}) for step, v in ((1, -2.0), (2, -1.0))] == [True, True]
    assert not most.is_enough
    assert not most.add(3, {"val/loss": -1.5})
    assert most.is_enough
    nothing = Best.of(settings(metric=""), [{"step": 1, "val/loss": 2.0}])
    assert nothing.value is None


def test_mistakes_are_reported_together(config, tmp_path):
    with pytest.raises(ConfigError) as error:
        Best.of(settings(metric="likelyhood/loss", mode="least"), [])
    assert all(word in str(error.value) for word in ("'likelyhood/loss'", "Did you mean 'likelihood'", "min or max"))
    with pytest.raises(ConfigError, match=r"patience is 3; it needs"):
        Best.of(settings(metric="", patience=3), [])
    wrong = json.loads(config.to_json()) | {"best": {"metric": "val/los", "mode": "min", "patience": 0}}
    best = Best.of(ml_collections.ConfigDict(wrong), [])
    best.check("likelihood", {"likelihood/perplexity": 2.0})
    with pytest.raises(ConfigError, match=r"'val/los', which .* does not give: choose val/loss.*Did you mean"):
        best.check("val", {"val/loss": 2.0})


@pytest.mark.parametrize(
    ("split", "metric", "warned"),
    [
        ("test", "val/loss", True),
        ("val+test", "val/loss", True),
        ("test_2021", "val/loss", True),
        ("val", "val/loss", False),
        ("test", "", False),
    ],
)
def test_a_best_state_by_the_test_split_is_reported(split, metric, warned):
    config = {"best": {"metric": metric}, "evals": {"val": {"split": split}, "other": {"split": "test"}}}
    assert bool(chosen_by_test(config)) == warned


def test_the_log_tells_it_too(config, tmp_path, caplog):
    config = config.copy_and_resolve_references()
    config.evals.val.split, config.total = "test", "2 steps"
    train.train(config, tmp_path)
    assert "chosen by the questions that it is tested on" in caplog.text
