"""CMSA's task: what a batch holds, what the loss is made of, what is predicted, and the controls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.order import TrainOrder
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.explain.attention import explain
from jaxvqa.runs import Run
from jaxvqa.tasks import make_task, task_with_assets
from jaxvqa.tasks.radiology_vqa import dynamic_weights
from tests import runs
from tests.made_up import variables_of


def small_config(phantoms, variant="small", **changes):
    config = configs.load(f"configs/cmsa.py:{variant}")
    everything = {
        "data.dir": str(phantoms),
        "data.examples": "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.answers.min_count": 1,
        "data.limit": 64,
        "batch_size": 4,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    configs.override(config, [(name, str(value)) for name, value in everything.items()])
    return config


def ready(config):
    """The task, its variables, and a batch as the devices get it."""
    task = make_task(config, DataSet(config.data))
    source = DataSet(config.data).split("train")
    order = TrainOrder(len(source), config.batch_size, 0)
    batch = LoadBatch(source, order, task.transforms(train=True), 0, 1)(0)
    return task, *variables_of(task), {key: jnp.asarray(batch[key]) for key in task.batch_keys}


@functools.cache  # compiled once for all tests
def compiled_loss(task, train):
    return jax.jit(lambda p, e, b: task.loss(p, e, b, {"dropout": jax.random.key(1)}, train=train))


def loss_of(task, params, collections, batch, *, train=True):
    return compiled_loss(task, train)(params, collections, batch)


@functools.cache
def compiled_predictions(task):
    names = ("answers", "explain", "answers_blank")
    return jax.jit(lambda p, e, b: {name: task.predictions[name].function(p, e, b) for name in names})


@pytest.fixture(scope="module")
def cmsa(phantoms):
    return ready(small_config(phantoms))


def test_a_batch_fits_what_is_traced_and_names_the_part_of_the_body(cmsa, phantoms):
    task, _, _, batch = cmsa
    for key, array in task.init_batch(4).items():
        assert batch[key].shape == array.shape
        assert batch[key].dtype == array.dtype
    # The data set's labels are brain 0, chest 1, abdomen 2; the model's abdomen 0, head 1, chest 2.
    source = DataSet(small_config(phantoms).data).split("train")
    shown = [int(source[int(i)]["organ"]) for i in TrainOrder(len(source), 4, 0)(0)]
    assert batch["organ"].tolist() == [{0: 1, 1: 2, 2: 0}[organ] for organ in shown]
    assert (batch["answer_scores"].max(axis=1) > 0).all()
    assert len(np.unique(np.asarray(batch["image"]).reshape(4, -1), axis=0)) > 1


def test_the_loss_is_answers_plus_half_the_organ_and_moves_the_statistics(cmsa):
    task, params, collections, batch = cmsa
    loss, (metrics, after) = loss_of(task, params, collections, batch)
    parts = {name: float(total) for name, (total, _) in metrics.items()}
    assert float(loss) == pytest.approx(parts["answer_loss"] + 0.5 * parts["organ_loss"], rel=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(collections)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), after["batch_stats"], collections["batch_stats"])
    assert all(jax.tree.leaves(moved))
    _, (_, same) = loss_of(task, params, collections, batch, train=False)
    jax.tree.map(np.testing.assert_array_equal, same, collections)


def test_padding_examples_change_nothing_in_evaluation(cmsa):
    task, params, collections, batch = cmsa
    longer = {key: jnp.concatenate([value, value[:1]]) for key, value in batch.items()}
    longer["mask"] = jnp.asarray([1.0] * 4 + [0.0])
    loss, (metrics, _) = loss_of(task, params, collections, batch, train=False)
    padded, (padded_metrics, _) = loss_of(task, params, collections, longer, train=False)
    assert float(padded) == pytest.approx(float(loss), rel=1e-5)
    for name, (total, count) in metrics.items():
        assert float(padded_metrics[name][0]) == pytest.approx(float(total), rel=1e-4, abs=1e-5), name
        assert float(padded_metrics[name][1]) == float(count)


def test_predictions_are_ranked_and_the_blank_control_sees_no_picture(cmsa):
    task, params, collections, batch = cmsa
    predict = compiled_predictions(task)
    predicted = predict(params, collections, batch)
    answers, explained, blank = (predicted[name] for name in ("answers", "explain", "answers_blank"))
    assert answers["answer"].shape == (4, 1)
    assert (np.diff(np.asarray(explained["probability"]), axis=1) <= 0).all()
    np.testing.assert_array_equal(answers["answer"][:, 0], explained["answer"][:, 0])
    shuffled = batch | {"image": batch["image"][::-1]}
    again = predict(params, collections, shuffled)["answers_blank"]
    np.testing.assert_array_equal(blank["probability"], again["probability"])
    for name in ("region_attention", "question_attention"):
        np.testing.assert_allclose(np.asarray(explained[name]).sum(axis=1), 1, rtol=1e-4)


def test_boxes_cover_the_picture_as_the_attention_does(cmsa, phantoms):
    task, params, collections, batch = cmsa
    source = DataSet(small_config(phantoms).data).split("train")
    boxes = task.boxes(source[0], {})
    regions = compiled_predictions(task)(params, collections, batch)["explain"]["region_attention"].shape[1]
    assert boxes.shape == (regions, 4)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
    assert area == pytest.approx(int(source[0]["image_w"]) * int(source[0]["image_h"]), rel=1e-5)


@pytest.mark.parametrize(("variant", "inputs"), [("small,ban", 2), ("small,san", 2), ("small,blind", 1)])
def test_the_other_models_learn_from_the_same_task(phantoms, variant, inputs):
    task, params, collections, batch = ready(small_config(phantoms, variant))
    assert sum(name.startswith("image") for name in batch) == inputs
    loss, (metrics, _) = loss_of(task, params, collections, batch)
    assert np.isfinite(float(loss))
    if "blind" in variant:
        pictures = np.asarray(batch["image"])
        assert 120 < pictures.mean() < 135
        assert not np.array_equal(pictures[0], pictures[1])
        assert task.boxes({}, {}).shape == (0, 4)
    else:
        error = float(metrics["reconstruction_error"][0])
        assert 0 < error < 1
        assert float(loss) == pytest.approx(float(metrics["answer_loss"][0]) + 0.001 * error, rel=1e-6)


def test_answers_of_a_question_only_run_can_be_shown(phantoms, tmp_path):
    runs.write(small_config(phantoms, "small,san,blind"), tmp_path)
    (shown,) = explain(Run.open(tmp_path), count=1)
    assert shown.boxes.shape == (0, 4)
    assert shown.answers


def test_assets_of_a_checkpoint_give_the_same_task(cmsa, phantoms):
    task, params, collections, batch = cmsa
    again = task_with_assets(small_config(phantoms), task.assets)
    ours, theirs = (compiled_predictions(t)(params, collections, batch)["answers"] for t in (task, again))
    np.testing.assert_array_equal(ours["probability"], theirs["probability"])


def test_dynamic_weights_follow_how_fast_each_loss_falls():
    history = {"last": jnp.zeros(2), "before": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}
    losses = [np.asarray(pair, np.float32) for pair in ([100.0, 10.0], [80.0, 9.0], [60.0, 8.5], [50.0, 8.0])]
    kept: list[np.ndarray] = []  # as the original's script keeps them: (total, organ)
    for step, now in enumerate(losses):
        weights, history = dynamic_weights(history, jnp.asarray(now))
        expected = np.ones(2)
        if step >= 2:
            ratio = np.exp(kept[-1] / (kept[-2] + 1e-8) / 2)
            expected = 2 * ratio / ratio.sum()
        np.testing.assert_allclose(np.asarray(weights), expected, rtol=1e-5)
        kept.append(np.asarray([(expected * now).sum(), now[1]]))
    assert weights[0] < weights[1]  # the answers' loss falls faster


def test_dynamic_weights_in_training_are_part_of_the_state(phantoms):
    task, params, collections, batch = ready(small_config(phantoms, loss__dynamic=True))
    _, (_, after) = loss_of(task, params, collections, batch)
    assert int(after["losses"]["steps"]) == 1
    shapes = jax.eval_shape(task.predictions["answers"].function, params, collections, batch)
    assert shapes["answer"].shape == (4, 1)


def test_mistakes_are_reported(phantoms):
    with pytest.raises(ConfigError, match="soft, counts or exact"):
        ready(small_config(phantoms, data__answers__rule="hard"))
    with pytest.raises(ConfigError, match="abdomen"):
        ready(small_config(phantoms, data__organs="(0, 1)"))
    with pytest.raises(DataError, match=r"organ = \d; expected one of \[5, 6, 7\]"):
        ready(small_config(phantoms, data__organs="(5, 6, 7)"))
