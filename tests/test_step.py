"""The training step against its definition in NumPy: on a toy whose loss uses all that a step hands to a task."""

import dataclasses
import zlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxvqa import checkpoints, configs, init_from, optim, paths, sharding, tasks
from jaxvqa import state as states
from jaxvqa.errors import ConfigError
from jaxvqa.state import TrainState
from jaxvqa.step import make_program, make_train_step
from jaxvqa.tasks import Task

BATCH, STEPS, SEED, EPOCH = 4, 5, 7, 2  # examples, steps, seed, steps an epoch
RATES = (0.1, 0.3, 0.05, 0.2, 0.15)
KEPT = 0.75  # of what moves slowly: averages, the mirror, the statistics


class Regression(Task):
    """x·w + b with noise of its own each example, drawn towards y, and towards what the mirror of w says; epochs weigh it."""

    batch_keys, assets = ("x", "y", "mask"), {}
    streams = ("dropout", "noise")  # a key by place would be another one
    kinds: ClassVar = {"batch_stats": "statistics", "momentum": "mirror"}

    def init_batch(self, batch_size):
        return {"x": np.zeros((batch_size, 2), np.float32)} | dict.fromkeys(
            ("y", "mask"), np.zeros(batch_size, np.float32)
        )

    def init(self, key):
        params = {"w": {"kernel": jax.random.normal(key, (2,))}, "b": jnp.asarray(0.2)}
        mirror = {"w": {"kernel": jnp.full(2, 9.0)}}  # which is not what a mirror starts with
        return {
            "params": params,
            "batch_stats": {"mean": jnp.zeros(2), "parts": jnp.zeros((), int)},
            "momentum": mirror,
        }

    def before(self, state):
        slow, fast = state.collections["momentum"]["w"]["kernel"], state.params["w"]["kernel"]
        moved = {"w": {"kernel": KEPT * slow + (1 - KEPT) * fast}}
        return dataclasses.replace(state, collections={**state.collections, "momentum": moved})

    def loss(self, params, collections, batch, rngs, *, train, epoch=0.0):
        x, mask = batch["x"], batch["mask"]
        noise = jax.random.normal(rngs["noise"], mask.shape)
        found = x @ params["w"]["kernel"] + params["b"] + noise
        slow = x @ collections["momentum"]["w"]["kernel"]
        each = (jnp.square(found - batch["y"]) + 0.1 * jnp.square(found - slow)) / 2
        total = (1 + epoch) * jnp.sum(each * mask)
        old = collections["batch_stats"]
        stats = {"mean": KEPT * old["mean"] + (1 - KEPT) * jnp.mean(x, axis=0), "parts": old["parts"] + 1}
        return total, ({"loss": (total, jnp.sum(mask))}, {**collections, "batch_stats": stats})


class WithQueue(Regression):
    """And with the means of the last batches, which the loss reads before it writes."""

    kinds: ClassVar = {**Regression.kinds, "queue": "memory"}

    def init(self, key):
        return {**super().init(key), "queue": {"rows": jnp.zeros((8, 2)), "next": jnp.zeros((), jnp.int32)}}

    def loss(self, params, collections, batch, rngs, **options):
        total, (metrics, after) = super().loss(params, collections, batch, rngs, **options)
        rows, at = collections["queue"]["rows"], collections["queue"]["next"]
        total += jnp.sum(rows @ params["w"]["kernel"]) * metrics["loss"][1]
        queue = {"rows": rows.at[at].set(jnp.mean(batch["x"], axis=0)), "next": at + 1}
        return total, ({"loss": (total, metrics["loss"][1])}, {**after, "queue": queue})


def config_of(microbatches=1, **changes):
    config = ml_collections.ConfigDict(configs.load("configs/rwsan.py:small").to_dict())
    config.update({"seed": SEED, "batch_size": BATCH, "microbatches": microbatches})
    config.sharding.update({"params": (), "memory": ()})
    config.optim.update({"ema": KEPT, "clip_norm": 0.0, "b1": 0.9, "b2": 0.99, "eps": 1e-3, "momentum": 0.8} | changes)
    return config


def batches():
    random = np.random.default_rng(0)
    for step in range(STEPS):
        mask = np.ones(BATCH, np.float32)
        mask[1] = step != 3  # one batch has an example that does not count
        x = random.normal(size=(BATCH, 2)).astype(np.float32)
        yield {"x": x, "y": random.normal(size=BATCH).astype(np.float32), "mask": mask}


def steps_of(config, task):
    """The states from the start on, and the metrics, of the step itself, without a mesh."""
    variables = jax.eval_shape(task.init, jax.random.key(0))
    optimizer = optim.make_optimizer(config.optim, variables["params"], steps_per_epoch=EPOCH)
    state = jax.jit(states.create(task.init, optimizer, task.kinds, seed=SEED, with_ema=config.optim.ema > 0))()
    schedule = lambda step: jnp.asarray(RATES)[step]  # noqa: E731
    step = jax.jit(make_train_step(config, task, optimizer, schedule, EPOCH))
    found, metrics = [state], []
    for batch in batches():
        state, of_step = step(found[-1], batch)
        found.append(state)
        metrics.append({name: float(total / count) for name, (total, count) in of_step.items()})
    return jax.tree.map(np.asarray, found), metrics


# --- the definition ------------------------------------------------------------------------------------------------------


def fold(key, name):
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


class Reference:
    """The same in float64, written down once more: vectors are (w_0, w_1, b)."""

    def __init__(self, config, start):
        self.config, self.optim, self.n = config, config.optim, config.microbatches
        self.p = np.append(start.params["w"]["kernel"], start.params["b"]).astype(np.float64)
        self.slow, self.mean, self.parts = self.p[:2], np.zeros(2), 0
        self.rows, self.queue = np.zeros((8, 2)), "queue" in start.collections
        self.trace, self.mu, self.nu = np.zeros(3), np.zeros(3), np.zeros(3)
        self.averages = np.concatenate([self.p, self.mean])

    def step(self, t, batch):
        if self.optim.bounds:
            self.p = np.append(self.p[:2], np.clip(self.p[2], -0.1, 0.1))
        self.slow = KEPT * self.slow + (1 - KEPT) * self.p[:2]
        gradient, total, count = np.zeros(3), 0.0, 0.0
        key = jax.random.fold_in(fold(jax.random.key(SEED), "step"), t)
        for i in range(self.n):
            part = {name: array[i :: self.n].astype(np.float64) for name, array in batch.items()}
            of_part = key if self.n == 1 else jax.random.fold_in(key, i)
            noise = np.asarray(jax.random.normal(fold(of_part, "noise"), part["mask"].shape), np.float64)
            found = part["x"] @ self.p[:2] + self.p[2] + noise
            weight = (1 + t / EPOCH) * part["mask"]
            off, from_slow = found - part["y"], found - part["x"] @ self.slow
            total += np.sum(weight * (off**2 + 0.1 * from_slow**2) / 2)
            count += part["mask"].sum()
            gradient += np.append(part["x"], np.ones((len(off), 1)), axis=1).T @ (weight * (off + 0.1 * from_slow))
            self.mean, self.parts = KEPT * self.mean + (1 - KEPT) * part["x"].mean(axis=0), self.parts + 1
        if self.queue:
            total += np.sum(self.rows @ self.p[:2]) * count
            gradient[:2] += self.rows.sum(axis=0) * count
            self.rows[t] = batch["x"].mean(axis=0)
        if self.optim.loss == "mean":
            gradient = gradient / count
        norm = np.linalg.norm(gradient)
        self.p = self.p - RATES[t] * self.direction(t, gradient * self._clipping(norm))
        self.averages = KEPT * self.averages + (1 - KEPT) * np.concatenate([self.p, self.mean])
        return {"loss": total / count, "gradient_norm": norm, "learning_rate": RATES[t]}

    def _clipping(self, norm):
        return min(1.0, self.optim.clip_norm / norm) if self.optim.clip_norm else 1.0

    def direction(self, t, g):
        if self.optim.name == "adam":
            self.mu, self.nu = 0.9 * self.mu + 0.1 * g, 0.99 * self.nu + 0.01 * g**2
            rule = self.mu / (1 - 0.9 ** (t + 1)) / (np.sqrt(self.nu / (1 - 0.99 ** (t + 1))) + 1e-3)
            return rule + (0.3 * self.p if self.optim.decay else 0)
        restarts = [epoch * EPOCH for epoch in self.optim.restart_epochs]
        self.trace = g + (0 if t in restarts else 0.8) * self.trace
        return g + 0.8 * self.trace if self.optim.nesterov and t < min(restarts, default=STEPS) else self.trace


CASES = {  # name: (parts of a batch, `config.optim`)
    "sgd, sum, nesterov": (1, {"name": "sgd", "loss": "sum", "nesterov": True}),
    "sgd, mean, two parts": (2, {"name": "sgd", "loss": "mean", "clip_norm": 0.5}),
    "sgd, sum, two parts, restarts": (2, {"name": "sgd", "loss": "sum", "nesterov": True, "restart_epochs": (1, 2)}),
    "adam, mean, bounds": (1, {"name": "adam", "loss": "mean", "bounds": (("b", (-0.1, 0.1)), (".*", None))}),
    "adam, sum, clipping, decay": (1, {"name": "adam", "loss": "sum", "clip_norm": 0.5, "decay": ((".*", 0.3),)}),
    "adam, mean, two parts, clipping": (2, {"name": "adam", "loss": "mean", "clip_norm": 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_definition(case):
    parts, changes = CASES[case]
    task = Regression() if parts > 1 else WithQueue()
    config = config_of(parts, **changes)
    found, metrics = steps_of(config, task)
    reference = Reference(config, found[0])
    np.testing.assert_array_equal(found[0].collections["momentum"]["w"]["kernel"], found[0].params["w"]["kernel"])
    for t, (state, of_step, batch) in enumerate(zip(found[1:], metrics, batches(), strict=True)):
        expected = reference.step(t, batch)
        assert of_step.keys() == expected.keys()
        for name, value in expected.items():
            assert of_step[name] == pytest.approx(value, rel=2e-5), (t, name)
        close = lambda ours, theirs, name, t=t: np.testing.assert_allclose(  # noqa: E731
            ours, theirs, rtol=2e-5, atol=2e-6, err_msg=f"{name} after step {t}"
        )
        assert state.step == t + 1
        close(np.append(state.params["w"]["kernel"], state.params["b"]), reference.p, "parameters")
        close(state.collections["momentum"]["w"]["kernel"], reference.slow, "mirror")
        close(state.collections["batch_stats"]["mean"], reference.mean, "statistics")
        assert state.collections["batch_stats"]["parts"] == reference.parts
        assert state.ema["collections"].keys() == {"batch_stats"}
        params, collections = state.eval_variables
        averages = [*params["w"]["kernel"], params["b"], *collections["batch_stats"]["mean"]]
        close(averages, reference.averages, "averages")
        assert collections["batch_stats"]["parts"] == reference.parts  # a whole number has no average
        assert collections["momentum"] is state.collections["momentum"]
        if reference.queue:
            close(collections["queue"]["rows"], reference.rows, "queue")


# --- what cannot be ------------------------------------------------------------------------------------------------------


def program_of(config, task, mesh=None):
    mesh = mesh or sharding.make_mesh(config.mesh, jax.devices()[:1])
    return make_program(config, task, mesh, data_size=BATCH * EPOCH, total_steps=STEPS)


def test_batches_that_cannot_be_cut_are_refused_by_name():
    class Compared(Regression):
        additive = False

    program_of(config_of(2), Regression())
    program_of(config_of(1), Compared())
    with pytest.raises(ConfigError, match=r"microbatches is 2.*not the sum.*Use --config\.microbatches=1"):
        program_of(config_of(2), Compared())
    with pytest.raises(ConfigError, match=r"microbatches is 2.*writes queue.*Use --config\.microbatches=1"):
        program_of(config_of(2), WithQueue())


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"batch_stats": "statistics"}, r"one of statistics, mirror, memory, but that of momentum is None"),
        ({"batch_stats": "mirror", "momentum": "mirror"}, r"batch_stats: mean is not the path of a parameter"),
    ],
)
def test_kinds_that_do_not_fit(kinds, message):
    task = Regression()
    task.kinds = kinds
    with pytest.raises(ConfigError, match=message):
        program_of(config_of(), task)


def test_a_mirror_of_another_shape():
    class Wider(Regression):
        def init(self, key):
            return {**super().init(key), "momentum": {"w": {"kernel": jnp.zeros(3)}}}

    with pytest.raises(ConfigError, match=r"momentum: w/kernel is \(3,\), the parameter \(2,\)"):
        program_of(config_of(), Wider())


@pytest.mark.parametrize(
    ("name", "changes", "additive"),
    [
        ("cmsa", {}, True),
        ("cmsa:ban", {}, False),  # the mean error of its auto-encoder is added to a sum
        ("flamingo:small", {"data.examples_per_image": "1"}, True),
        ("flamingo:small", {"data.examples_per_image": "2"}, False),
        ("flamingo:small", {"data.examples_per_image": "1", "data.classify": "True"}, False),
        ("rwsan", {}, True),
        ("sysu_hcp", {}, True),
    ],
)
def test_which_losses_are_sums_over_examples(name, changes, additive):
    config = configs.load(f"configs/{name.partition(':')[0]}.py:{name.partition(':')[2]}")
    configs.override(config, list(changes.items()))
    assert tasks.task_without_data(config).additive is additive


# --- where it lies, and what it starts from --------------------------------------------------------------------------------


def test_mirror_and_memory_lie_as_their_parameters_and_rows_say():
    config = config_of(name="adam")
    config.sharding.params = (("w/kernel", ("fsdp",)), ("b", ()))
    config.sharding.memory = (("queue/rows", ("data", "tensor")), ("queue/next", ()))
    mesh = jax.sharding.AbstractMesh((4, 2, 1), sharding.AXES)
    task = WithQueue()
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    optimizer = optim.make_optimizer(config.optim, params)
    shapes = jax.eval_shape(states.create(task.init, optimizer, task.kinds, seed=0, with_ema=True))
    placed = sharding.placed(config.sharding, shapes, mesh, task.kinds)
    of_path = {path: leaf.sharding.spec for path, leaf in paths.flatten(placed).items()}
    cut = {path for path, spec in of_path.items() if any(spec)}
    assert {path for path in cut if of_path[path] == P("fsdp")} == {
        *("params/w/kernel", "ema/params/w/kernel", "collections/momentum/w/kernel"),
        *(path for path in of_path if path.startswith("opt_state") and path.endswith("w/kernel")),
    }
    assert of_path["collections/queue/rows"] == P("data", "tensor")
    assert len(cut) == 6
    assert not any(path.startswith("ema/collections/momentum") for path in of_path)


def test_the_plan_says_what_is_cut_and_what_stays_whole():
    config = config_of()
    config.sharding.params = (("w/.*", ("fsdp",)), (".*", ()))
    config.sharding.memory = (("queue/rows", ("data", "tensor")), (".*", ()))
    mesh = jax.sharding.AbstractMesh((3, 2, 1), sharding.AXES)
    shapes = jax.eval_shape(states.create(WithQueue().init, optax.identity(), WithQueue.kinds, seed=0, with_ema=False))
    placed = sharding.placed(config.sharding, shapes, mesh, WithQueue.kinds)
    lines = sharding.plan(config.sharding, placed, WithQueue.kinds).splitlines()
    for row in (
        "params w/.* (fsdp): 1 of 2 arrays, 2 of 3 numbers, 4 B a device",
        "params .* (whole): 1 of 2 arrays, 1 of 3 numbers, 4 B a device",
        "memory queue/rows (data, tensor): 1 of 2 arrays, 16 of 17 numbers, 64 B a device",
        "whole: queue/rows, dimension 0 of 8: data=3 does not divide it",
    ):
        assert sum(row in line for line in lines) == 1, (row, lines)
    assert sum("does not divide" in line for line in lines) == 1


class Bare(Regression):
    """The same model without the mirror: where a run with one may start from."""

    kinds: ClassVar = {"batch_stats": "statistics"}

    def init(self, key):
        return {name: tree for name, tree in super().init(key).items() if name != "momentum"}

    before = Task.before


@pytest.mark.parametrize("source", [Bare(), Regression()], ids=["without", "with"])
def test_a_mirror_starts_from_the_other_runs_mirror_or_else_from_its_parameters(source):
    theirs = source.init(jax.random.key(1))
    program = program_of(config_of(), Regression())
    with jax.set_mesh(program.mesh):
        fresh = program.init()
        taken, kept = (
            init_from.take("model", "there", theirs, fresh, ((".*", what),), Regression.kinds) for what in (True, False)
        )
    jax.tree.map(np.testing.assert_array_equal, taken.params, theirs["params"])
    expected = theirs.get("momentum", theirs["params"])["w"]["kernel"]
    np.testing.assert_array_equal(taken.collections["momentum"]["w"]["kernel"], expected)
    np.testing.assert_array_equal(kept.collections["momentum"]["w"]["kernel"], fresh.params["w"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, taken.ema["params"], taken.params)
    assert taken.ema["collections"].keys() == {"batch_stats"}


def test_a_state_with_all_kinds_comes_back_as_it_was(tmp_path):
    config = config_of()
    program = program_of(config, WithQueue())
    with jax.set_mesh(program.mesh):
        state: TrainState = program.init()
        saved = checkpoints.Checkpoints(tmp_path)
        saved.save(state, {}, {})
        saved.wait()
        back = saved.restore(program.shapes)
        saved.close()
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
