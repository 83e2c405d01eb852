"""CMSA's pre-training: pairs drawn at random, both losses, scores; and the branches flow into CMSA."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import checkpoints, configs, logs, main, paths
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.order import EvalOrder, TrainOrder
from jaxvqa.tasks import make_task
from tests.made_up import variables_of
from tfds_builders import build

ORGANS = ("abdomen", "brain", "chest")


@pytest.fixture(scope="module")
def mtpt(phantoms):
    """The folder of tiny phantoms, with the tiny pre-training sets in it."""
    names = ",".join(f"tiny_phantom_{organ}{part}" for organ in ORGANS for part in ("", "_questions"))
    assert build.main(["mtpt", f"--config={names}", f"--data_dir={phantoms}", "--workers=1"]) == 0
    return phantoms


def changes(folder, organ):
    return {
        "data.dir": str(folder),
        "data.examples": f"mtpt/tiny_phantom_{organ}",
        "data.question_list": f"mtpt/tiny_phantom_{organ}_questions",
        "report": "False",
        "log_every": "1 steps",
        "total": "3 steps",
    }


def small_config(folder, organ):
    config = configs.load(f"configs/mtpt.py:{organ},small")
    configs.override(config, list(changes(folder, organ).items()))
    return config


def batch_of(config, task, step=0):
    source = DataSet(config.data).split("train")
    order = TrainOrder(len(source), config.batch_size, config.seed)
    batch = LoadBatch(source, order, task.transforms(train=True), 0, 1, config.seed)(step)
    return {key: jnp.asarray(batch[key]) for key in task.batch_keys}


@pytest.mark.parametrize(("organ", "measure"), [("abdomen", "iou"), ("brain", "accuracy")])
def test_both_tasks_are_learned_and_scored(mtpt, organ, measure):
    config = small_config(mtpt, organ)
    task = make_task(config, DataSet(config.data))
    batch = batch_of(config, task)
    for key, array in task.init_batch(config.batch_size).items():
        assert (batch[key].shape, batch[key].dtype) == (array.shape, array.dtype), key
    params, variables = variables_of(task)
    loss = jax.jit(lambda p, e, b: task.loss(p, e, b, {"dropout": jax.random.key(1)}, train=True))
    value, (metrics, after) = loss(params, variables, batch)
    parts = [float(metrics[name][0]) for name in ("image_loss", "compatibility_loss")]
    assert float(value) == pytest.approx(sum(parts), rel=1e-5)
    assert min(parts) > 0
    for name in ("accuracy", "compatibility"):
        right, count = metrics[name]
        assert 0 <= right <= count == config.batch_size, name
    assert not np.array_equal(*(jax.tree.leaves(tree["batch_stats"]["backbone"])[0] for tree in (after, variables)))
    scores = task.predictions["scores"].jitted(params, variables, batch)
    assert set(scores) == {measure, "compatibility"}
    assert all(
        array.shape == (config.batch_size,) and 0 <= array.min() <= array.max() <= 1 for array in scores.values()
    )


def test_questions_are_drawn_anew_each_time_and_the_same_on_every_way_there(mtpt):
    config = small_config(mtpt, "brain")
    task = make_task(config, DataSet(config.data))
    source = DataSet(config.data).split("train")
    order = TrainOrder(len(source), 8, 0)
    load = LoadBatch(source, order, task.transforms(train=True), 0, 1, 5)
    first, again, epoch_later = load(1), load(1), load(1 + order.steps_per_epoch)
    for key in task.batch_keys:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["question"], epoch_later["question"])
    # Two processes make the halves of the same batch.
    halves = [LoadBatch(source, order, task.transforms(train=True), i, 2, 5)(1) for i in range(2)]
    for key in task.batch_keys:
        np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), first[key])
    # Evaluation draws from the test list, the same questions each time, and does not turn pictures.
    listed = dict(map(tuple, task.assets["questions"]["test"]))
    encoded = {tuple(task.vocabulary.encode(text, config.data.max_tokens)): label for text, label in listed.items()}
    evaluation = LoadBatch(source, EvalOrder(len(source), 8), task.transforms(train=False), 0, 1)
    for question, label in zip(evaluation(0)["question"], evaluation(0)["fits"], strict=True):
        assert encoded[tuple(question.tolist())] == label


@pytest.mark.slow
def test_pretrained_branches_flow_into_cmsa(mtpt, tmp_path, capsys):
    taken = {"head": "brain"}
    for organ in taken.values():
        arguments = [f"--config.{name}={value}" for name, value in changes(mtpt, organ).items()]
        config = f"--config=configs/mtpt.py:{organ},small"
        assert main.main([config, f"--workdir={tmp_path / organ}", *arguments]) == 0
    last = [row for row in logs.read_metrics(tmp_path / "brain") if "test/accuracy" in row][-1]
    assert {"test/accuracy/low", "test/accuracy/high", "test/compatibility"} <= last.keys()
    scored = [json.loads(line) for line in (tmp_path / "brain/predictions/test_3.jsonl").read_text().splitlines()]
    assert np.mean([row["accuracy"] for row in scored]) * 100 == pytest.approx(last["test/accuracy"], abs=1e-3)

    common = {
        "data.dir": str(mtpt),
        "data.examples": "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.answers.min_count": 1,
        "data.limit": 64,
        "optim.lr": 0.0,
        "optim.freeze": "(('classifier/.*', False), ('.*', True))",  # whose gradients take long to compile
        "total": "1 steps",
        "evals.val.every": "100 steps",
    }
    given = {f"init_from.{branch}.workdir": str(tmp_path / organ) for branch, organ in taken.items()}
    given |= {f"init_from.{branch}.without": "it is trained first" for branch in ("abdomen", "chest")}
    arguments = [f"--config.{name}={value}" for name, value in (common | given).items()]
    assert main.main(["--config=configs/cmsa.py:small", f"--workdir={tmp_path / 'cmsa'}", *arguments]) == 0

    def arrays(folder):
        saved = checkpoints.Checkpoints(folder, read_only=True)
        model = saved.restore_model(saved.model_shapes())
        saved.close()
        return paths.flatten(model["params"])

    ours = arrays(tmp_path / "cmsa")
    for branch, organ in taken.items():
        theirs = arrays(tmp_path / organ)
        mine = {path.partition("/")[2]: leaf for path, leaf in ours.items() if path.startswith(f"{branch}/")}
        assert len(mine) == 36  # all of a residual network of 10 layers
        for path, leaf in mine.items():
            np.testing.assert_array_equal(leaf, theirs[f"backbone/{path}"])
    # What was not given is said in the log and in the report.
    assert "init_from.chest is not given: it is trained first" in capsys.readouterr().err
    assert "Not given: config.init_from.abdomen, config.init_from.chest." in (tmp_path / "cmsa/report.html").read_text()
