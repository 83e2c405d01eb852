"""Sentences about two images: which image is which, what changes place, what counts in the loss, what the controls read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, init_from
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.transforms import BothImages
from jaxvqa.state import TrainState
from jaxvqa.tasks import task_with_assets, task_without_data
from jaxvqa.tasks.image_pairs import SwapImages
from tests.made_up import variables_of


@pytest.fixture(scope="module")
def config(phantoms):
    config = configs.load("configs/blip_nlvr.py:pixels,small")
    changes = {
        "data.dir": phantoms,
        "data.examples": "phantom_vqa/tiny_pairs",
        "data.images": "phantom_vqa/tiny_images",
    }
    changes |= {"data.image_size": 16, "data.vocabulary_parts": (), "model.vision_sizes.patch": 8}
    configs.override(config, [(name, str(value)) for name, value in changes.items()])
    return config


@pytest.fixture(scope="module")
def data(config):
    return DataSet(config.data)


@pytest.fixture(scope="module")
def task(config, data):
    cls = type(task_without_data(config))
    return task_with_assets(config, cls.make_assets(config, data))


def load(task, source, rows, *, train=False, step=0):
    return LoadBatch(source, lambda step: np.asarray(rows), task.transforms(train=train), 0, 1)(step)


@pytest.fixture(scope="module")
def batch(task, data):
    """Six examples and two rows of padding."""
    loaded = load(task, data.split("train"), [0, 9, 18, 27, 36, 45, -1, -1])
    return {name: jnp.asarray(loaded[name]) for name in task.batch_keys}


@pytest.fixture(scope="module")
def params(task):
    return variables_of(task)[0]


@pytest.fixture(scope="module")
def loss(task, params):
    return jax.jit(lambda batch: task.loss(params, {}, batch, {}, train=False))


def test_an_example_has_both_images_its_sentence_and_what_is_true(task, data):
    records = list(data.split("val").all_records())
    loaded = load(task, data.split("val"), range(12))
    see = task.see(train=False)
    for row, record in enumerate(records[:12]):
        images = data.split("val").read_images([record["image_id"], record["second_image_id"]])
        for place, image in enumerate(images):
            for step in see:
                image = step(image)
            np.testing.assert_array_equal(loaded["image"][row, place], image["image"])
        ids = loaded["text"][row][loaded["text_mask"][row]]
        assert ids[0] == task.tokenizer.encode_begin
        assert ids.tolist()[1:] == task.tokenizer.whole(record["question"], len(loaded["text"][row]))[1:]
        assert loaded["answer_class"][row] == (record["multiple_choice_answer"] == "true")
    assert loaded["image"][0, 0].tolist() != loaded["image"][0, 1].tolist()
    assert set(loaded["answer_class"]) == {0, 1}


def test_images_change_place_with_the_words_of_their_sides_or_not_at_all():
    image, swap = np.arange(2)[:, None, None, None], SwapImages(max_words=7)
    example = {"image": image, "question": "The LEFT dog is right. left, it (left) leftwards"}
    found = [swap(example | {"draw": (0, 0, i)}) for i in range(200)]
    same = [x for x in found if x["question"] == example["question"]]
    swapped = [x for x in found if x["question"] == "the right dog is left left, it"]  # the marks go in any case
    assert len(same) + len(swapped) == 200
    assert 70 < len(same) < 130
    assert all(x["image"][0] == 0 for x in same)
    assert all(x["image"][0] == 1 for x in swapped)


def test_training_swaps_and_evaluation_does_not(task, data):
    rows = np.zeros(32, int)
    sentence = next(data.split("train").all_records())["question"]
    written = {train: load(task, data.split("train"), rows, train=train)["text"] for train in (True, False)}
    assert len(np.unique(written[False], axis=0)) == 1
    sides = {"left", "right"} & set(sentence.split())
    assert len(np.unique(written[True], axis=0)) == 1 + bool(sides)
    images = load(task, data.split("train"), rows, train=True)["image"]
    assert len(np.unique(images.reshape(64, -1), axis=0)) > 40  # each has random numbers of its own


def test_the_two_images_draw_apart():
    def drawn(example):
        return {"image": np.asarray([*example["draw"], example["value"]])}

    made = BothImages((drawn,))({"draw": (5, 6, 7), "value": 1, "second": {"value": 2}})
    assert made["image"].tolist() == [[5, 6, 7, 0, 1], [5, 6, 7, 1, 2]]


def test_the_loss_is_the_cross_entropy_of_real_examples_that_say_what_is_true(task, params, batch, loss):
    texts = {name: batch[name] for name in ("text", "text_mask")}
    logits, _ = jax.jit(task.model.apply)({"params": params}, image=task.pair(batch["image"]), **texts)
    logits, classes = np.asarray(logits, np.float64)[:6], np.asarray(batch["answer_class"])[:6]
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), classes]
    value, (metrics, _) = loss(batch)
    np.testing.assert_allclose(value, each.sum(), rtol=1e-5)
    assert metrics["loss"] == (pytest.approx(each.sum(), rel=1e-5), 6)
    assert metrics["accuracy"] == ((logits.argmax(1) == classes).sum(), 6)
    unsaid = batch | {"answer_class": batch["answer_class"].at[2].set(-1)}  # as of a test split without labels
    np.testing.assert_allclose(loss(unsaid)[0], each.sum() - each[2], rtol=1e-5)
    assert loss(unsaid)[1][0]["loss"][1] == 5
    nothing, (metrics, _) = loss(batch | {"mask": jnp.zeros(8)})
    assert (nothing, metrics["accuracy"]) == (0, (0, 1))


def test_what_fills_up_a_sentence_changes_nothing(task, params, batch, loss):
    assert not batch["text_mask"].all()
    other = batch | {"text": jnp.where(batch["text_mask"], batch["text"], 7)}
    np.testing.assert_allclose(loss(other)[0], loss(batch)[0], rtol=1e-5)


def test_the_controls_read_black_images(task, params, batch):
    def predicted(name, image):
        given = batch | {"image": image}
        predict = task.predictions[name]
        return predict.jitted(params, {}, {key: given[key] for key in predict.keys})["probability"]

    image = batch["image"]
    expected = {"answers_blank": jnp.zeros_like(image), "answers_first": image.at[:, 1].set(0)}
    for name, black in expected.items():
        np.testing.assert_allclose(predicted(name, image), predicted("answers", black), rtol=1e-5)
        assert np.abs(predicted(name, image) - predicted("answers", image)).max() > 1e-4


def test_a_pretrainings_cross_attention_is_taken_for_both_images(config, task, params):
    pretraining = configs.load("configs/blip_pretrain.py:pixels,small")
    changes = {"data.image_size": 32, "model.vision_sizes.patch": 8, "compile.vocab_size": len(task.tokenizer)}
    configs.override(pretraining, [(name, str(value)) for name, value in changes.items()])
    theirs = dict(zip(("params", "rest"), variables_of(task_without_data(pretraining)), strict=True))
    fresh = TrainState(jnp.zeros((), jnp.int32), params, {}, None)
    table = config.init_from.model.table
    found = init_from.take("model", "there", {"params": theirs["params"]}, fresh, table, task.kinds).params
    block, source = found["text_tower"]["block_0"], theirs["params"]["text_tower"]["block_0"]
    for name in ("cross_attention", "second_cross_attention"):
        jax.tree.map(np.testing.assert_array_equal, block[name], source["cross_attention"])
    jax.tree.map(np.testing.assert_array_equal, block["attention"], source["attention"])
    for name in ("head_0", "head_1"):
        jax.tree.map(np.testing.assert_array_equal, found[name], params[name])
    jax.tree.map(np.testing.assert_array_equal, block["merge"], params["text_tower"]["block_0"]["merge"])
    assert found["vision_tower"]["position"].shape == (5, 32)  # of a grid of 4 x 4 there
