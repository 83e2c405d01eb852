"""Examples of one picture side by side: groups, order, parts of a source, several processes, faults."""

import ml_collections
import numpy as np
import pytest

from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import Split
from jaxvqa.data.order import Together, TrainOrder, epoch_order, examples_together
from jaxvqa.errors import ConfigError, DataError

IMAGES = np.repeat([7, 3, 9, 4, 1, 8], 10)
"""Six pictures of ten questions each."""


class Numbers(Split):
    """A source whose examples are their positions."""

    def __init__(self, pictures):
        self._ids = pictures

    def __len__(self):
        return len(self._ids)

    def read(self, indices):
        return [{"number": np.int64(i), "image_id": np.int64(self._ids[i])} for i in indices]

    def all_records(self):
        return ({"image_id": picture} for picture in self._ids)


def test_an_epoch_is_a_permutation_in_groups_of_one_picture():
    together = Together(IMAGES, 5)
    order = TrainOrder(60, 20, 0, together=together)
    epochs = [np.concatenate([order(3 * epoch + step) for step in range(3)]) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(60))
        assert (np.ptp(IMAGES[epoch].reshape(-1, 5), axis=1) == 0).all()
        # Groups are shuffled, and so is what is in them.
        assert (np.diff(IMAGES[epoch].reshape(-1, 5)[:, 0]) != 0).sum() > 5
        assert (np.diff(epoch.reshape(-1, 5), axis=1) < 0).any()
    assert not np.array_equal(epochs[0], epochs[1])


def test_the_order_depends_on_seed_and_epoch_alone():
    epoch_order.cache_clear()
    first = TrainOrder(60, 20, 0, together=Together(IMAGES, 5))(4)
    epoch_order.cache_clear()
    np.testing.assert_array_equal(TrainOrder(60, 20, 0, together=Together(IMAGES.copy(), 5))(4), first)
    assert not np.array_equal(TrainOrder(60, 20, 1, together=Together(IMAGES, 5))(4), first)
    assert not np.array_equal(TrainOrder(60, 20, 0)(4), first)


def test_a_picture_with_fewer_or_odd_questions_has_some_twice():
    pictures = np.asarray([5, 5, 6, 5, 6, 6, 6, 2])
    found = Together(pictures, 3).permuted(np.arange(8), np.random.default_rng(0))
    assert set(found) == set(range(8))
    groups = found.reshape(-1, 3)
    assert (np.ptp(pictures[groups], axis=1) == 0).all()
    assert len(groups) == 1 + 2 + 1
    assert sorted(found[pictures[found] == 2]) == [7, 7, 7]


def test_a_part_of_a_source_keeps_its_groups():
    stages = ((0, ((0, 20),)), (1, ((20, 40), (20, 40))))
    order = TrainOrder(60, 20, 0, stages, Together(IMAGES, 5))
    for epoch, allowed in ((0, range(20)), (1, range(20, 40))):
        found = np.concatenate([order(3 * epoch + step) for step in range(3)])
        assert set(found) <= set(allowed)
        assert (np.ptp(IMAGES[found].reshape(-1, 5), axis=1) == 0).all()


def test_any_number_of_processes_reads_the_same_batch():
    order = TrainOrder(60, 20, 3, together=Together(IMAGES, 5))
    whole = LoadBatch(Numbers(IMAGES), order, (), 0, 1)(2)["number"]
    for count in (2, 4, 5):
        parts = [LoadBatch(Numbers(IMAGES), order, (), i, count)(2)["number"] for i in range(count)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def config(together, batch_size=20, microbatches=1):
    data = {"examples_per_image": together}
    return ml_collections.ConfigDict({"data": data, "batch_size": batch_size, "microbatches": microbatches})


def test_what_a_transform_does_not_find_is_named():
    def regions(example):
        return {"boxes": example["boxes"], "features": example["features"]}

    class Pixels:
        def __len__(self):
            return 1

        def read(self, indices):
            return [{"question_id": 7, "image": b"", "boxes": []} for _ in indices]

    message = r"Example 7 has no 'features', which this model reads; it has boxes, image, question_id\. Take parts"
    with pytest.raises(DataError, match=message):
        LoadBatch(Pixels(), lambda step: np.arange(1), (regions,), 0, 1)(0)
    with pytest.raises(KeyError):  # of something else
        LoadBatch(Pixels(), lambda step: np.arange(1), (lambda example: {}["image"],), 0, 1)(0)


def test_what_a_config_says():
    source = Numbers(IMAGES)
    assert examples_together(config(1), source) is None
    found = examples_together(config(5), source)
    assert found.count == 5
    np.testing.assert_array_equal(found.images, IMAGES)


@pytest.mark.parametrize(("together", "batch_size", "microbatches"), [(5, 16, 1), (5, 20, 2), (0, 20, 1)])
def test_batches_that_cannot_be_cut_into_groups(together, batch_size, microbatches):
    message = f"examples_per_image is {together}: .*they are {batch_size} and {microbatches}"
    with pytest.raises(ConfigError, match=message):
        examples_together(config(together, batch_size, microbatches), Numbers(IMAGES))
