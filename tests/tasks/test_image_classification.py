"""Classification by the picture alone: what a batch holds, what is learned of it, mixing, masks, and one whole run."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, logs, losses, main
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.order import TrainOrder
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.tasks import make_task, task_with_assets
from tests.made_up import variables_of

CHANGES = {
    "data.examples": "phantom_vqa/tiny_questions",
    "data.images": "phantom_vqa/tiny_images",
    "data.answers.min_count": 1,
    "batch_size": 4,
}


def small_config(phantoms, variant="small", **changes):
    config = configs.load(f"configs/sysu_hcp.py:{variant}")
    everything = {"data.dir": phantoms} | CHANGES | {name.replace("__", "."): value for name, value in changes.items()}
    configs.override(config, [(name, str(value)) for name, value in everything.items()])
    return config


def task_of(config):
    return make_task(config, DataSet(config.data))


def batch_of(config, task, step=0, *, train=True):
    source = DataSet(config.data).split("train")
    order = TrainOrder(len(source), config.batch_size, 0)
    batch = LoadBatch(source, order, task.transforms(train=train), 0, 1)(step)
    return {key: jnp.asarray(batch[key]) for key in task.init_batch(1)}


@pytest.fixture(scope="module")
def mixed(phantoms):
    """The task with all three ideas, its variables and a batch; its jitted loss and gradient in training."""
    config = small_config(phantoms, "small,mixup,smoothing,superloss", loss__mixup_off_epoch=3)
    task = task_of(config)
    variables = dict(jax.jit(task.init)(jax.random.key(0)))

    @jax.jit
    def of_epoch(params, collections, batch, key, epoch):
        rngs = {"dropout": key, "mixup": key}
        loss = partial(task.loss, collections=collections, batch=batch, rngs=rngs, train=True, epoch=epoch)
        return jax.value_and_grad(loss, has_aux=True)(params)

    def step(params, collections, batch, key, epoch=0.0):  # one program for every epoch
        return of_epoch(params, collections, batch, key, epoch)

    return task, variables.pop("params"), variables, batch_of(config, task), step


def test_a_batch_fits_what_is_traced_and_holds_the_pictures_answers(mixed, phantoms):
    task, _, _, batch, _ = mixed
    for key, array in task.init_batch(4).items():
        assert (batch[key].shape, batch[key].dtype) == (array.shape, array.dtype), key
    source = DataSet(small_config(phantoms).data).split("train")
    assert {question["question_type"] for question in source.all_records()} == {"abnormality"}
    asked = [source[int(i)]["multiple_choice_answer"] for i in TrainOrder(len(source), 4, 0)(0)]
    assert [task.assets["answers"][i] for i in batch["answer_class"]] == asked
    assert (batch["modality"] == 0).all()  # no masks


def test_training_pictures_change_with_the_step_and_evaluated_ones_do_not(phantoms):
    config = small_config(phantoms, data__eval_size=72)
    task = task_of(config)
    first, again, evaluated = (batch_of(config, task, train=t)["image"] for t in (True, True, False))
    np.testing.assert_array_equal(first, again)
    assert evaluated.shape == (4, 72, 72, 3)  # an evaluation's size is its own
    source = DataSet(config.data).split("train")
    order = TrainOrder(len(source), 4, 0)
    later = LoadBatch(source, lambda _: order(0), task.transforms(train=True), 0, 1)(1)["image"]
    assert not np.array_equal(first, later)


@pytest.mark.slow
def test_the_loss_of_one_batch_falls(mixed):
    _, params, collections, batch, step = mixed
    values = []
    for _ in range(8):
        (loss, (metrics, collections)), gradients = step(params, collections, batch, jax.random.key(3))
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradients)
        values.append(float(loss))
        assert float(metrics["loss"][1]) == 4
    assert values[-1] < values[0] - 0.5
    assert all(np.isfinite(values))


def test_mixing_depends_on_the_step_alone(mixed):
    task, params, collections, batch, step = mixed
    once, again, other = (float(step(params, collections, batch, jax.random.key(k))[0][0]) for k in (3, 3, 4))
    assert once == again != other
    # The draw is that of `losses.Mixup`: the loss is its mean over both targets.
    mixup = losses.Mixup.draw(jax.random.key(3), 4)
    shares = np.asarray(mixup.share), 1 - np.asarray(mixup.share)
    assert 0 <= min(shares) <= max(shares) <= 1
    assert sorted(mixup.partner.tolist()) == [0, 1, 2, 3]
    assert task.batch_keys == ("image", "answer_class", "mask")


def test_mixing_ends_at_its_epoch(mixed):
    _, params, collections, batch, step = mixed

    def loss(key, epoch):
        return float(step(params, collections, batch, jax.random.key(key), epoch)[0][0])

    assert loss(3, 2.99) == loss(3, 0.0) != loss(4, 2.99)
    assert loss(3, 3.0) == loss(4, 3.0) == loss(4, 7.5) != loss(3, 0.0)


def test_examples_without_a_class_and_padding_count_for_nothing(mixed):
    task, params, collections, batch, step = mixed
    (_, (metrics, _)), gradients = step(
        params, collections, batch | {"answer_class": jnp.full(4, -1, jnp.int32)}, jax.random.key(3)
    )
    assert float(metrics["loss"][0]) == float(metrics["accuracy"][0]) == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))
    evaluate = jax.jit(lambda b: task.loss(params, collections, b, {}, train=False)[1][0])
    whole = evaluate(batch)
    hidden = batch | {"mask": jnp.asarray([1.0, 1.0, 1.0, 0.0])}
    without = batch | {"answer_class": batch["answer_class"].at[3].set(-1)}
    assert float(evaluate(hidden)["loss"][0]) == float(evaluate(without)["loss"][0]) < float(whole["loss"][0])
    assert float(evaluate(hidden)["loss"][1]) == 3


def test_a_mask_never_lets_another_class_through(phantoms, tmp_path):
    file = tmp_path / "modelmask.json"
    file.write_text(json.dumps({"image": [2, 1], "finding": [0], "abnormality": []}))
    config = small_config(phantoms, data__mask_file=file)
    task = task_of(config)
    assert task.assets["masks"] == [["image", [1, 2]], ["finding", [0]], ["abnormality", []]]
    find = next(t for t in task.transforms(train=False) if hasattr(t, "masks"))
    asked = {"what abnormality is seen here?": 2, "is this finding in the image?": 1, "fine Image": 3}
    assert {text: int(find({"question": text})["modality"]) for text in asked} == asked
    # What a checkpoint keeps gives the same task.
    again = task_with_assets(config, json.loads(json.dumps(task.assets)))
    params, variables = variables_of(again)
    names = ("answers", "answers_masked", "answers_flip", "logits")
    predict = jax.jit(lambda p, e, b: {name: again.predictions[name].function(p, e, b) for name in names})
    batch = batch_of(config, again, train=False) | {"modality": jnp.asarray([0, 1, 2, 3])}
    predicted = predict(params, variables, batch)
    answers, masked, flipped, logits = (predicted[name] for name in names)
    assert int(masked["answer"][0, 0]) in (1, 2)
    assert int(masked["answer"][1, 0]) == 0
    np.testing.assert_array_equal(masked["answer"][2:], answers["answer"][2:])  # an empty mask is none
    np.testing.assert_array_equal(np.argmax(logits["logits"], axis=1), answers["answer"][:, 0])
    assert 0 < float(answers["probability"].min()) < float(answers["probability"].max()) <= 1
    mirrored = batch | {"image": jnp.concatenate([batch["image"], batch["image"][:, :, ::-1]])[4:]}
    same = predict(params, variables, mirrored)["answers_flip"]
    np.testing.assert_allclose(same["probability"], flipped["probability"], rtol=1e-5)


def test_mistakes_are_reported(phantoms, tmp_path, caplog):
    with pytest.raises(DataError, match=r"'abnormalty'.*types are abnormality, count.*'abnormality'"):
        task_of(small_config(phantoms, data__question_types="('abnormalty',)", data__limit=0))
    with pytest.raises(DataError, match="occurs 1000 times"):
        task_of(small_config(phantoms, data__answers__min_count=1000))
    with pytest.raises(ConfigError, match=r"images is empty"):
        task_of(small_config(phantoms, data__images=""))
    with pytest.raises(ConfigError, match="soft, counts or exact"):
        task_of(small_config(phantoms, data__answers__rule="hard"))
    with pytest.raises(ConfigError, match="original or each"):
        task_of(small_config(phantoms, loss__flags="some"))
    (tmp_path / "answers.json").write_text('["a mass", "normal"]')
    (tmp_path / "mask.json").write_text('{"ct": [0, 7]}')
    files = {"data__answers__file": tmp_path / "answers.json", "data__mask_file": tmp_path / "mask.json"}
    with pytest.raises(DataError, match=r"0 to 1:\n  ct: \[7\]"):
        task_of(small_config(phantoms, **files))
    assert not caplog.records
    task_of(small_config(phantoms, "small,smoothing", loss__flags="original"))
    assert "label_smooth: IGNORED" in caplog.text


def test_all_questions_may_be_asked_and_yes_and_no_are_no_answers(phantoms):
    config = small_config(phantoms, data__question_types="()", data__limit=0)
    answers = task_of(config).assets["answers"]
    assert {"ct", "axial", "mass"} <= set(answers)
    assert not {"yes", "no"} & set(answers)
    some = small_config(phantoms, data__question_types="('plane', 'organ')", data__limit=30)
    source = DataSet(some.data).split("val")
    assert len(source) == 30
    assert {question["question_type"] for question in source.all_records()} == {"plane", "organ"}


def test_a_whole_run(phantoms, tmp_path, capsys):
    changes = {"data.dir": phantoms} | CHANGES | {
        "batch_size": 8,
        "total": "3 steps",
        "log_every": "1 steps",
        "evals.val.type": "vqa_med",
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in changes.items()]
    assert main.main(["--config=configs/sysu_hcp.py:small,mixup,RepVGG-B0", f"--workdir={tmp_path}", *arguments]) == 0
    rows = logs.read_metrics(tmp_path)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]
    last = [row for row in rows if "val/accuracy" in row][-1]
    assert {"val/accuracy/low", "val/question_type/abnormality"} <= last.keys()
    assert any("val_flip/accuracy" in row for row in rows)
    assert last["val/accuracy"] <= last["val/bleu"] <= 100  # names of one word or two: a right one scores 1 in both
    predicted = [json.loads(line) for line in (tmp_path / "predictions/val_3.jsonl").read_text().splitlines()]
    assert {row["question_type"] for row in predicted} == {"abnormality"}
    assert (tmp_path / "report.html").exists()
    assert main.main(["--mode=predict", "--split=test", f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "predictions/test_3.jsonl").exists()
