"""Moving averages cover what a prediction needs: parameters and batch statistics."""

import dataclasses
import json
import shutil
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxvqa import checkpoints, configs, init_from, sharding
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.order import TrainOrder
from jaxvqa.errors import CheckpointError
from jaxvqa.evaluators.context import predict_all
from jaxvqa.models.layers.batch_norm import BatchNorm
from jaxvqa.runs import Run
from jaxvqa.step import make_program
from jaxvqa.tasks import Task
from jaxvqa.tasks.predictions import Predict

DECAY, BATCH, STEPS = 0.75, 8, 4


class Normalised(nn.Module):
    """The smallest model whose predictions need batch statistics."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(2)(BatchNorm()(nn.Dense(3)(x), train=train))


class Regression(Task):
    """A task over it, with a collection that is not averaged."""

    kinds: ClassVar = {**Task.kinds, "losses": "memory"}
    assets, batch_keys, model = {}, ("x", "y", "mask"), Normalised()

    def __init__(self):
        self.predictions = {"values": Predict(self._predict, ("x",))}

    def transforms(self, *, train):
        return ()

    def init_batch(self, batch_size):
        return {"x": np.zeros((batch_size, 4), np.float32), "y": np.zeros((batch_size, 2), np.float32)}

    def init(self, key):
        return {**self.model.init(key, jnp.zeros((1, 4))), "losses": {"steps": jnp.zeros((), jnp.int32)}}

    def loss(self, params, collections, batch, rngs, *, train, epoch):
        variables = {"params": params, "batch_stats": collections["batch_stats"]}
        found, updates = self.model.apply(variables, batch["x"], train=train, mutable=["batch_stats"])
        loss = jnp.sum(jnp.square(found - batch["y"]))
        count = jnp.sum(batch["mask"])
        return loss, ({"loss": (loss, count)}, {**updates, "losses": {"steps": collections["losses"]["steps"] + 1}})

    def _predict(self, params, collections, batch):
        variables = {"params": params, "batch_stats": collections["batch_stats"]}
        return {"values": self.model.apply(variables, batch["x"])}


class Numbers:
    """Made-up examples."""

    def __len__(self):
        return BATCH * STEPS

    def read(self, indices):
        random = [np.random.default_rng(int(i)) for i in indices]
        return [{"x": 3 + r.standard_normal(4).astype(np.float32), "y": r.random(2, np.float32)} for r in random]


def small_config(ema):
    config = configs.load("configs/rwsan.py:small")
    changes = {"optim.ema": ema, "batch_size": BATCH, "optim.lr": 0.1, "optim.schedule.name": "constant"}
    configs.override(config, [(name, str(value)) for name, value in changes.items()])
    config.sharding.params = ()
    return config


TASK, MESH = Regression(), sharding.make_mesh(small_config(0.0).mesh)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """With and without averages: a run's program, its folder with a checkpoint of the second step, and all its states."""
    return {ema: _run(small_config(ema), tmp_path_factory.mktemp("run")) for ema in (DECAY, 0.0)}


@pytest.fixture(params=[DECAY, 0.0], ids=["averages", "none"])
def run(request, both):
    return both[request.param]


def _run(config, workdir):
    saved = checkpoints.Checkpoints(workdir)
    with jax.set_mesh(MESH):
        program = make_program(config, TASK, MESH, data_size=BATCH * STEPS, total_steps=STEPS)
        state = program.init()
        states = [jax.tree.map(np.asarray, state)]
        for step in range(STEPS):
            state, _ = program.step(state, batch_of(step))
            states.append(jax.tree.map(np.asarray, state))
            if step == 1:
                saved.save(state, {}, {"config": json.loads(config.to_json())})
                saved.wait()
    saved.close()
    return config, program, workdir, states


def batch_of(step):
    order = TrainOrder(BATCH * STEPS, BATCH, 0)
    batch = LoadBatch(Numbers(), order, (), 0, 1)(step)
    return {key: jax.device_put(batch[key], sharding.batch_sharding(MESH)) for key in TASK.batch_keys}


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def predictions(state):
    with jax.set_mesh(MESH):
        return predict_all(TASK.predictions["values"], state, Numbers(), (), batch_size=BATCH, mesh=MESH)["values"]


def test_averages_follow_parameters_and_statistics_and_start_from_them(run):
    config, _, _, states = run
    for before, state in zip([None, *states], states, strict=False):
        if not config.optim.ema:
            assert state.ema is None
            assert state.eval_variables == (state.params, state.collections)
            continue
        new = {"params": state.params, "collections": {"batch_stats": state.collections["batch_stats"]}}
        old = new if before is None else before.ema
        expected = jax.tree.map(lambda e, x: DECAY * e + (1 - DECAY) * x, old, new)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.ema, expected)
        kept = {"losses": state.collections["losses"]}
        assert state.eval_variables == (state.ema["params"], state.ema["collections"] | kept)


def test_predictions_use_both_averages(run):
    config, _, workdir, states = run
    opened = Run(workdir, config, MESH)
    opened.final, opened.task = config, TASK
    state = opened.state
    assert_same(state.eval_variables, states[2].eval_variables)
    found = predictions(state)
    if not config.optim.ema:
        return
    params, collections = state.eval_variables
    np.testing.assert_array_equal(
        found, predictions(dataclasses.replace(state, params=params, collections=collections, ema=None))
    )
    for mixed in ({"params": params}, {"collections": collections}, {}):
        assert not np.allclose(found, predictions(dataclasses.replace(state, ema=None, **mixed)))


def test_a_run_that_goes_on_ends_like_one_that_was_not_stopped(run):
    _, program, workdir, states = run
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    with jax.set_mesh(MESH):
        state = saved.restore(program.shapes)
        assert_same(jax.tree.map(np.asarray, state), states[2])
        for step in range(2, STEPS):
            state, _ = program.step(state, batch_of(step))
    saved.close()
    assert_same(jax.tree.map(np.asarray, state), states[-1])


def test_training_is_the_same_with_and_without_averages(both):
    with_averages, without = (states for _, _, _, states in both.values())
    assert_same([dataclasses.replace(state, ema=None) for state in with_averages], without)


def taken(workdir, program):
    """A fresh state with all of another run's."""
    theirs = Run(workdir, ml_collections.ConfigDict()).variables(MESH)
    return init_from.take("model", str(workdir), theirs, program.init(), ((".*", True),), TASK.kinds)


def test_another_run_gives_its_averages_where_it_keeps_them(run):
    _, program, workdir, states = run
    with jax.set_mesh(MESH):
        state = taken(workdir, program)
    assert_same((state.params, state.collections), states[2].eval_variables)
    assert_same(state.eval_variables, states[2].eval_variables)


def test_a_run_without_a_model_is_reported(run, tmp_path):
    _, program, workdir, _ = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(next((tmp_path / "run").rglob("model")))
    with jax.set_mesh(MESH), pytest.raises(CheckpointError, match=r"checkpoints/2 cannot be read: .*model"):
        taken(tmp_path / "run", program)
