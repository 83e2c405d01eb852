"""Epochs of a curriculum draw from a part of the training set, and are as long as any other."""

import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.order import TrainOrder, curriculum_stages, train_order
from jaxvqa.errors import ConfigError


def order_of(*stages, size=10, batch_size=3):
    return TrainOrder(size, batch_size, seed=0, stages=stages)


def epoch_of(order, epoch):
    n = order.steps_per_epoch
    return np.concatenate([order(step) for step in range(epoch * n, (epoch + 1) * n)])


def test_a_stage_draws_from_its_part_alone_and_visits_it_evenly():
    order = order_of((2, ((6, 10),)), (4, ((0, 10),)))
    for epoch, members in ((0, range(10)), (1, range(10)), (2, range(6, 10)), (3, range(6, 10)), (4, range(10))):
        visited = epoch_of(order, epoch)
        assert len(visited) == 9
        assert set(visited) <= set(members)
        times = [int(np.sum(visited == i)) for i in members]
        assert max(times) - min(times) <= 1  # whole rounds, but for the last
    assert epoch_of(order, 2).tolist() != epoch_of(order, 3).tolist()


def test_a_stage_of_everything_is_the_order_without_a_curriculum():
    for step in range(7):
        np.testing.assert_array_equal(order_of((1, ((0, 10),)))(step), order_of()(step))


def test_a_split_that_is_named_twice_is_visited_twice_as_often():
    visited = epoch_of(order_of((0, ((0, 8), (8, 10), (8, 10))), size=12, batch_size=4), 0)
    assert sorted(visited.tolist()) == sorted([*range(8), 8, 9, 8, 9])


def curriculum(phantoms, rows, **changes):
    config = configs.load("configs/sysu_hcp.py:small")
    config.data.dir, config.data.train_split, config.curriculum = str(phantoms), "val+test", rows
    parts = {"examples": "phantom_vqa/tiny_questions", "images": "phantom_vqa/tiny_images"}
    config.data.update({"limit": 0} | parts | changes)
    return config


def test_stages_are_where_their_splits_lie_in_the_training_source(phantoms):
    config = curriculum(phantoms, ((0, "test"), (1, "val+test+test"), (2, "val")))
    data = DataSet(config.data)
    source = data.split(config.data.train_split)
    asked = [question["question_id"] for question in source.all_records()]
    for (_, parts), (_, names) in zip(curriculum_stages(config, data), config.curriculum, strict=True):
        expected = [q["question_id"] for s in names.split("+") for q in DataSet(config.data).split(s).all_records()]
        assert [asked[i] for start, end in parts for i in range(start, end)] == expected


def test_all_faults_of_a_curriculum_are_named_at_once(phantoms):
    rows = ((3, "val"), (3, "vall+test"), (4, "test"))
    config = curriculum(phantoms, rows, limit=5)
    with pytest.raises(ConfigError) as raised:
        curriculum_stages(config, DataSet(config.data))
    message = str(raised.value)
    assert "'vall' is not in config.data.train_split = 'val+test'" in message
    assert "epoch 3 stands behind epoch 3" in message
    assert "'test' has no examples" in message  # the limit leaves none


def test_epochs_take_splits_in_turn_and_are_as_long_as_the_first(phantoms):
    config = curriculum(phantoms, (), train_split="train[:6]+val[:5]+test[:3]")
    with config.unlocked():
        config.data.question_types, config.data.in_turn, config.batch_size = (), "val[:5]+test[:3]", 2
    order = train_order(config, DataSet(config.data))
    assert (order.size, order.steps_per_epoch) == (11, 5)
    for epoch, (first, last, times) in enumerate(((6, 11, 1), (11, 14, 2), (6, 11, 1))):
        visited = epoch_of(order, epoch).tolist()
        assert len(visited) == 10
        assert set(visited) <= {*range(6), *range(first, last)}
        assert len(set(visited)) >= 9
        assert max(map(visited.count, visited)) == times
    assert epoch_of(order, 0).tolist() != epoch_of(order, 2).tolist()
    config.data.in_turn = "val[:5]+other"
    config.curriculum = ((0, "val[:5]"),)
    with pytest.raises(ConfigError, match=r"(?s)'other' is not in .*config\.curriculum says"):
        train_order(config, DataSet(config.data))
