"""Durations, schedules and optimisers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, optim
from jaxvqa.errors import ConfigError
from jaxvqa.state import TrainState
from jaxvqa.step import make_train_step
from jaxvqa.tasks import Task
from tests.oracle import torch

GOLDEN = Path(__file__).parent / "golden" / "rwsan" / "text_cases.json"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("1 step", 1),
        ("2 epochs", 30),
        ("1e3 examples", 16),
        ("50%", 50),
        ("10 %", 10),
        ("0.5 epochs", 8),
    ],
)
def test_durations(text, steps):
    assert optim.in_steps(text, data_size=1000, batch_size=64, total_steps=100) == steps


@pytest.mark.parametrize("text", ["", "3", "three epochs", "3 days", "-1 steps", "10 %"])
def test_what_is_no_duration(text):
    with pytest.raises(ConfigError, match="duration"):
        optim.in_steps(text, data_size=1000, batch_size=64)


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["schedule"])
def test_staircase_is_the_originals(case):
    boundaries, rates = optim.staircase(
        case["lr_base"],
        data_size=case["data_size"],
        batch_size=case["batch_size"],
        warmup_epochs=3,
        decay_epochs=(),
        decay_rate=1.0,
    )
    for step, rate in case["step_to_rate"]:
        assert rates[np.searchsorted(boundaries, step - 1, side="right")] == pytest.approx(rate, rel=1e-12)


def test_staircase_drops_at_epochs_also_under_jit():
    config = configs.load("configs/rwsan.py:vqa_v2").optim
    schedule = optim.make_schedule(config, data_size=10, batch_size=4, total_steps=32)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(32)))
    # 10/4 = 2.5: stairs end after steps 2, 5 and 7; an epoch has 2 steps, so the drops are at 24 and 28.
    expected = [0.25] * 2 + [0.5] * 3 + [0.75] * 2 + [1.0] * 17 + [0.2] * 4 + [0.04] * 4
    np.testing.assert_allclose(rates, 1e-4 * np.asarray(expected), rtol=1e-6)


def test_cosine_climbs_and_falls():
    config = configs.load("configs/rwsan.py").optim
    config.schedule.warmup = "5 %"
    schedule = optim.make_schedule(config, data_size=1000, batch_size=10, total_steps=100)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(config.lr)
    assert rates[100] == pytest.approx(config.lr * config.schedule.end)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_a_table_of_epochs():
    config = configs.load("configs/rwsan.py").optim
    table = ((0, 0.5), (1, 1.0), (3, 0.75))
    with config.unlocked():
        config.schedule = {"name": "epochs", "table": table}
    schedule = optim.make_schedule(config, data_size=10, batch_size=4, total_steps=8)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(8)))
    np.testing.assert_allclose(rates, config.lr * np.asarray([0.5, 0.5, 1, 1, 1, 1, 0.75, 0.75]), rtol=1e-6)
    with config.unlocked():
        config.schedule.table = ((1, 1.0),)
    with pytest.raises(ConfigError, match="grow from 0"):
        optim.make_schedule(config, data_size=10, batch_size=4, total_steps=8)


def _blip_schedule(name, *, total_steps=40, data_size=21, **fields):
    config = configs.load("configs/rwsan.py").optim
    with config.unlocked():
        config.lr = 3e-4
        config.schedule = {"name": name, "floor": 1e-6, "warmup": "0 steps", "warmup_from": 0.0} | fields
    schedule = optim.make_schedule(config, data_size=data_size, batch_size=2, total_steps=total_steps)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total_steps)))


def test_rates_that_fall_by_the_epoch():
    rates = _blip_schedule("cosine_per_epoch")  # 4 epochs of 10 steps
    expected = [1e-6 + (3e-4 - 1e-6) * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)]
    np.testing.assert_allclose(rates, np.repeat(expected, 10), rtol=1e-6)
    rates = _blip_schedule("decay_per_epoch", decay_rate=0.1, total_steps=45)
    np.testing.assert_allclose(rates, np.repeat([3e-4, 3e-5, 3e-6, 1e-6, 1e-6], [10, 10, 10, 10, 5]), rtol=1e-6)


@pytest.mark.parametrize("warmup", [4, 10, 25])
def test_the_warm_up_ends_with_the_first_epoch(warmup):
    rates = _blip_schedule("decay_per_epoch", decay_rate=0.9, warmup=f"{warmup} steps", warmup_from=1e-6)
    expected = [min(3e-4, 1e-6 + (3e-4 - 1e-6) * i / warmup) for i in range(10)]
    np.testing.assert_allclose(rates[:10], expected, rtol=1e-6)
    np.testing.assert_allclose(rates[10:], np.repeat([3e-4 * 0.9**i for i in (1, 2, 3)], 10), rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize(("name", "decay"), [("adamax", 0.0), ("adam", 0.0), ("adam", 0.1)])
def test_adam_and_adamax_are_pytorchs_with_and_without_clipping(name, decay, clip_norm):
    start = np.asarray([1.0, -2.0, 0.5], np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    rule = {"adamax": torch.optim.Adamax, "adam": torch.optim.AdamW if decay else torch.optim.Adam}[name]
    rule = rule([theirs], lr=0.05, betas=(0.9, 0.99), eps=1e-3, weight_decay=decay)
    config = configs.load("configs/rwsan.py").optim
    with config.unlocked():
        config.update({"name": name, "clip_norm": clip_norm, "b1": 0.9, "b2": 0.99, "eps": 1e-3})
        config.decay = ((".*", decay),)
    ours = {"w": jnp.asarray(start)}
    optimizer = optim.make_optimizer(config, ours)
    state = optimizer.init(ours)
    for gradient in ([0.1, -3.0, 0.0], [0.2, 1.0, 1e-4], [-0.4, 0.01, 0.0]):  # the first two are longer than 1
        theirs.grad = torch.tensor(gradient)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_([theirs], clip_norm)
        rule.step()
        direction, state = optimizer.update({"w": jnp.asarray(gradient)}, state, ours)
        ours = jax.tree.map(lambda p, u: p - 0.05 * u, ours, direction)
    # PyTorch adds 1e-6 to the norm that it divides by.
    np.testing.assert_allclose(np.asarray(ours["w"]), theirs.detach().numpy(), rtol=1e-5 if clip_norm else 1e-6)


def _one_update(grads, params, **changes):
    config = configs.load("configs/rwsan.py").optim
    with config.unlocked():
        config.clip_norm = 0.0
        config.update(changes)
    optimizer = optim.make_optimizer(config, params)
    return optimizer.update(grads, optimizer.init(params), params, step=jnp.zeros((), jnp.int32))[0]


def test_tables_decay_scale_and_freeze():
    params = {"a": {"kernel": jnp.asarray([2.0])}, "b": {"kernel": jnp.asarray([4.0])}}
    grads = jax.tree.map(jnp.ones_like, params)
    plain = _one_update(grads, params, name="sgd", momentum=0.0)
    assert float(plain["a"]["kernel"][0]) == 1.0
    decayed = _one_update(grads, params, name="sgd", momentum=0.0, decay=(("a/.*", 0.5), (".*", 0.0)))
    assert float(decayed["a"]["kernel"][0]) == 2.0
    assert float(decayed["b"]["kernel"][0]) == 1.0
    scaled = _one_update(grads, params, name="sgd", momentum=0.0, lr_scale=(("a/.*", 0.1), (".*", 1.0)))
    assert float(scaled["a"]["kernel"][0]) == pytest.approx(0.1)
    frozen = _one_update(grads, params, freeze=(("a/.*", True), (".*", False)))
    assert float(frozen["a"]["kernel"][0]) == 0.0
    assert float(frozen["b"]["kernel"][0]) != 0.0


def test_clipping_keeps_the_direction():
    params = {"a": jnp.zeros(2)}
    clipped = _one_update({"a": jnp.asarray([3.0, 4.0])}, params, name="sgd", momentum=0.0, clip_norm=1.0)
    np.testing.assert_allclose(np.asarray(clipped["a"]), [0.6, 0.8], rtol=1e-6)


def test_unknown_names():
    config = configs.load("configs/rwsan.py").optim
    with pytest.raises(ConfigError, match="adam, adamax or sgd"):
        _one_update({"a": jnp.zeros(1)}, {"a": jnp.zeros(1)}, name="adamm")
    with config.unlocked():
        config.schedule.name = "stairs"
    with pytest.raises(ConfigError, match="staircase"):
        optim.make_schedule(config, data_size=10, batch_size=1, total_steps=10)


def _torch_sgd(start, gradients, restarts, rates, nesterov):
    """The path of a parameter under PyTorch's SGD with weight decay; at a restart a new optimiser without Nesterov."""
    theirs = torch.nn.Parameter(torch.tensor(start))
    options = {"momentum": 0.9, "weight_decay": 0.05}
    rule = torch.optim.SGD([theirs], lr=rates[0], nesterov=nesterov, **options)
    path = []
    for step, gradient in enumerate(gradients):
        if step in restarts:
            rule = torch.optim.SGD([theirs], lr=rates[step], nesterov=False, **options)
        rule.param_groups[0]["lr"] = rates[step]
        theirs.grad = torch.tensor(gradient)
        rule.step()
        path.append(theirs.detach().numpy().copy())
    return np.stack(path)


@pytest.mark.oracle
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("restart_epochs", [(), (1,), (1, 3)])
def test_sgd_is_pytorchs_with_and_without_restarts(restart_epochs, nesterov):
    start = np.asarray([1.0, -2.0, 0.5], np.float32)
    gradients = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    config = configs.load("configs/rwsan.py").optim
    with config.unlocked():
        config.update({"name": "sgd", "clip_norm": 0.0, "lr": 0.1, "momentum": 0.9, "nesterov": nesterov})
        config.update({"restart_epochs": restart_epochs, "coupled_decay": ((".*", 0.05),)})
        config.schedule = {"name": "epochs", "table": optim.sysu_table(4, block=1)}
    schedule = optim.make_schedule(config, data_size=2, batch_size=1, total_steps=8)
    rates = [float(schedule(step)) for step in range(8)]
    ours = {"w": jnp.asarray(start)}
    optimizer = optim.make_optimizer(config, ours, steps_per_epoch=2)
    state, path = optimizer.init(ours), []
    update = jax.jit(optimizer.update)
    for step, gradient in enumerate(gradients):
        direction, state = update({"w": jnp.asarray(gradient)}, state, ours, step=jnp.asarray(step))
        ours = jax.tree.map(lambda p, u, rate=rates[step]: p - rate * u, ours, direction)
        path.append(np.asarray(ours["w"]))
    theirs = _torch_sgd(start, gradients, [2 * epoch for epoch in restart_epochs], rates, nesterov)
    np.testing.assert_allclose(np.stack(path), theirs, rtol=1e-5, atol=1e-6)


def test_sysus_blocks():
    table = optim.sysu_table(100)
    assert [epoch for epoch, _ in table] == [0, 20, 40, 60, 80]
    np.testing.assert_allclose(
        [share for _, share in table], [1, 0.82724951, 0.6409097, 0.4482347, 0.2454694], rtol=1e-6
    )


def test_restarts_that_cannot_be():
    config = configs.load("configs/rwsan.py").optim
    with config.unlocked():
        config.restart_epochs = (1,)
    with pytest.raises(ConfigError, match="is for sgd"):
        optim.make_optimizer(config, jnp.ones(1), steps_per_epoch=3)
    with config.unlocked():
        config.name = "sgd"
    with pytest.raises(ConfigError, match="number of steps"):
        _one_update(jnp.ones(1), jnp.ones(1), name="sgd", restart_epochs=(1,))


def test_decay_and_rates_pass_over_what_is_frozen():
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    tables = {"decay": ((".*", 0.5),), "coupled_decay": ((".*", 0.25),), "lr_scale": ((".*", 2.0),)}
    update = _one_update(params, params, name="sgd", momentum=0.0, freeze=(("a", True), ("b", False)), **tables)
    assert {name: float(u[0]) for name, u in update.items()} == {"a": 0.0, "b": 2 * (1 + 0.25 + 0.5)}


def test_a_step_leaves_what_is_frozen_bit_for_bit_and_takes_no_gradient_of_it():
    class Product(Task):
        assets, batch_keys, predictions = {}, ("x",), {}
        transforms = init_batch = init = lambda *_, **__: None  # which a step does not call

        def loss(self, params, collections, batch, rngs, *, train, epoch):
            total = jnp.sum(params["a"] * params["b"] * batch["x"])
            return total, ({"loss": (total, jnp.ones(()))}, collections)

    config = configs.load("configs/rwsan.py")
    with config.unlocked():
        config.optim.update({"name": "sgd", "momentum": 0.0, "clip_norm": 0.0, "decay": ((".*", 0.5),)})
        config.optim.freeze = (("a", True), ("b", False))
    start = {"a": jnp.asarray([0.1, 3.0]), "b": jnp.asarray([1.0, 2.0])}
    params = optim.shorten_frozen(start, config.optim.freeze)
    optimizer = optim.make_optimizer(config.optim, params)
    step = jax.jit(make_train_step(config, Product(), optimizer, lambda step: 0.1, 1))
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), None)
    after, metrics = step(state, {"x": jnp.asarray([1.0, 1.0])})
    assert after.params["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(after.params["a"], params["a"])
    short = np.asarray(params["a"], np.float32)
    np.testing.assert_allclose(after.params["b"], [1 - 0.1 * (short[0] + 0.5), 2 - 0.1 * (short[1] + 1.0)], rtol=1e-6)
    assert float(metrics["gradient_norm"][0]) == pytest.approx(float(np.linalg.norm(short)), rel=1e-5)
