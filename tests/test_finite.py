"""A state that is not finite is never saved or evaluated, and a checkpoint that holds one is refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import checkpoints, main, monitor, train
from jaxvqa import runs as opened
from jaxvqa.errors import DivergedError
from jaxvqa.explain.__main__ import main as explain
from tests import runs

PARTS = ("params", "opt_state", "ema")


def spoilt(tree, value=jnp.nan):
    """The tree with one number of its last leaf of floats replaced."""
    leaves, structure = jax.tree.flatten(tree)
    last = max(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim)
    leaves[last] = leaves[last].at[(0,) * leaves[last].ndim].set(value)
    return jax.tree.unflatten(structure, leaves)


@pytest.fixture(scope="module")
def program():
    """The compiled program of all runs of this file but those that change the recipe."""
    return runs.one_program()


def config_of(phantoms, **changes):
    return runs.tiny_config(
        phantoms, **{"optim__ema": 0.5, "log_every": "50 steps", "checkpoint__every": "50 steps"} | changes
    )


WHEN = {
    "at the end": {"total": "3 steps", "evals__val__every": "50 steps"},
    "at an evaluation": {"total": "40 steps", "evals__val__every": "3 steps"},
    "for the best": {"total": "40 steps", "evals__val__every": "3 steps", "best__metric": "val/accuracy"},
    "at a checkpoint": {"total": "40 steps", "checkpoint__every": "3 steps", "evals__val__every": "50 steps"},
    "on a signal": {"total": "40 steps", "evals__val__every": "50 steps"},
}
BAD = [*((part, jnp.nan) for part in PARTS), (PARTS[0], -jnp.inf)]


@pytest.mark.parametrize(
    ("when", "part", "value"),
    [*(("at the end", *bad) for bad in BAD), *((when, *BAD[i % len(BAD)]) for i, when in enumerate([*WHEN][1:]))],
)
def test_a_bad_state_behind_a_good_loss_is_not_kept(phantoms, tmp_path, monkeypatch, program, when, part, value):
    def with_spoilt_step(*args, **sizes):
        good = program(*args, **sizes)

        def step(state, batch):
            state, metrics = good.step(state, batch)
            if int(state.step) == 3:
                state = dataclasses.replace(state, **{part: spoilt(getattr(state, part), value)})
            return state, metrics

        return dataclasses.replace(good, step=step)

    monkeypatch.setattr(train, "make_program", with_spoilt_step)
    if when == "on a signal":
        monkeypatch.setattr(monitor.StopSignal, "requested", lambda self, step: step == 3)
    with pytest.raises(DivergedError, match=rf"state of step 3 is not finite, in {part}/.*no checkpoint") as error:
        train.train(config_of(phantoms, **WHEN[when]), tmp_path)
    assert error.value.exit_code == 3
    assert not (tmp_path / "best").exists()
    assert checkpoints.Checkpoints(tmp_path, read_only=True).latest_step() is None


@pytest.mark.slow  # the state above is made up; this one diverges
def test_the_last_steps_are_looked_at(phantoms, tmp_path, capsys):
    changes = runs.tiny_changes(phantoms) | {
        "total": "3 steps",
        "log_every": "50 steps",
        "checkpoint.every": "50 steps",
    }
    changes |= {"optim.lr": "1e30", "optim.schedule.name": "cosine", "optim.schedule.warmup": "1 steps"}
    words = [f"--config.{name}={value}" for name, value in changes.items()]
    assert main.main(["--config=configs/rwsan.py:small", f"--workdir={tmp_path}", *words]) == 3
    assert "no checkpoint was written yet" in capsys.readouterr().err
    assert checkpoints.Checkpoints(tmp_path, read_only=True).latest_step() is None
    assert not (tmp_path / "predictions").exists()


@pytest.fixture(scope="module")
def bad_folder(phantoms, tmp_path_factory):
    """A run's folder whose checkpoint was written by a program that did not look."""
    workdir = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        made_up = runs.made_up
        patch.setattr(runs, "made_up", lambda shapes: spoilt_params(made_up(shapes)))
        patch.setattr(checkpoints, "check_finite", lambda *_: None)
        runs.write(runs.tiny_config(phantoms), workdir, step=2)
    return workdir


def spoilt_params(state):
    return dataclasses.replace(state, params=jax.tree.map(jnp.asarray, state.params) | {"embed": spoilt_embed(state)})


def spoilt_embed(state):
    return spoilt(jax.tree.map(jnp.asarray, state.params["embed"]))


@pytest.mark.parametrize(
    "command",
    [
        lambda folder, _: main.main(["--mode=eval", f"--workdir={folder}"]),
        lambda folder, _: main.main(["--mode=predict", "--split=test", f"--workdir={folder}"]),
        lambda folder, _: explain([f"--workdir={folder}", f"--output={folder / 'explained'}"]),
        lambda folder, phantoms: main.main(
            [*runs.command(phantoms, folder)[3:]],
        ),
    ],
    ids=["eval", "predict", "explain", "going on"],
)
def test_a_bad_checkpoint_is_refused(bad_folder, phantoms, command, capsys):
    assert command(bad_folder, phantoms) == 2
    text = capsys.readouterr().err
    assert "holds numbers that are not finite, in params/embed/embedding" in text
    assert str(bad_folder / "checkpoints" / "2") in text


class Overflow:
    """Features so large that the network's numbers overflow, though all of its parameters are finite."""

    def __call__(self, example):
        return example | {"regions": np.full_like(example["regions"], np.inf)}


def test_an_output_that_is_no_number_is_named(phantoms, tmp_path, monkeypatch, capsys):
    runs.write(runs.tiny_config(phantoms), tmp_path, step=2)
    task = opened.task_with_assets

    def overflowing(config, assets):
        made = task(config, assets)
        transforms = made.transforms
        made.transforms = lambda *, train: (*transforms(train=train), Overflow())
        return made

    monkeypatch.setattr(opened, "task_with_assets", overflowing)
    assert main.main(["--mode=eval", f"--workdir={tmp_path}"]) == 3
    message = capsys.readouterr().err
    assert "The evaluation 'val' at step 2: " in message
    assert "gives no number (NaN) as 'probability' for 64 of 64 examples" in message
