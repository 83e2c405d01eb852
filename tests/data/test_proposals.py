"""Regions of an image by its pixels alone: what they find, and how runs read them."""

import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.data import images, proposals
from jaxvqa.data.region_features import FEATURE_WIDTH, region_features
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.tasks import task_without_data
from tests.picture_files import encoded
from tfds_builders.phantom_vqa.render import render
from tfds_builders.phantom_vqa.scenes import make_scene

COUNT = 40


def disc(centre, radius, size=(96, 128), light=200, ground=60):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.hypot(x - centre[0], y - centre[1]) < radius
    return np.where(inside, light, ground).astype(np.uint8)


def best_overlap(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return float((shared / (areas - shared)).max())


@pytest.mark.parametrize("radius", [4, 7, 12, 22])
@pytest.mark.parametrize("light", [20, 200])
def test_a_spot_is_found_at_its_size(radius, light):
    image = disc((70, 40), radius, light=light)
    boxes = proposals.propose(image, COUNT)
    box = np.asarray([70 - radius, 40 - radius, 70 + radius, 40 + radius])
    assert best_overlap(box, boxes[14:]) > 0.6


def test_what_is_not_round_is_found_by_its_contour():
    image = np.full((80, 80), 50, np.uint8)
    image[20:30, 8:70] = 180
    assert best_overlap(np.asarray([8, 20, 70, 30]), proposals.propose(image, COUNT)) > 0.8


def test_the_image_and_the_grids_come_first():
    boxes = proposals.propose(disc((70, 40), 7), COUNT)
    np.testing.assert_array_equal(boxes[0], [0, 0, 128, 96])
    np.testing.assert_array_equal(boxes[1:5], [[0, 0, 64, 48], [64, 0, 128, 48], [0, 48, 64, 96], [64, 48, 128, 96]])
    np.testing.assert_allclose(boxes[5], [0, 0, 128 / 3, 32], rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (40, 3), (600, 410)])
def test_boxes_lie_inside_images_of_any_size(size):
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    for shown in (image, np.zeros(size, np.uint8), np.stack([image] * 3, axis=-1)):
        regions = proposals.regions_of(shown, COUNT)
        boxes = regions["boxes"]
        assert 1 <= len(boxes) <= COUNT
        assert (boxes >= 0).all()
        assert (boxes <= np.asarray([size[1], size[0]] * 2)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        np.testing.assert_array_equal(regions["features"], region_features(shown, boxes))
        assert regions["features"].shape == (len(boxes), FEATURE_WIDTH)
    assert len(proposals.propose(image, 1)) == 1


def test_large_images_have_the_regions_of_small_ones():
    small = disc((70, 40), 10)
    large = np.kron(small, np.ones((6, 6), np.uint8))
    boxes = proposals.propose(large, COUNT)
    assert best_overlap(6.0 * np.asarray([60, 30, 80, 50]), boxes[14:]) > 0.6


def test_small_lesions_of_the_phantoms_are_mostly_found():
    found = []
    for image_id in range(24):
        picture = render(make_scene(image_id))
        boxes = proposals.propose(picture.image, COUNT)
        found += [best_overlap(box, boxes) > 0.3 for box in picture.lesion_boxes]
    assert len(found) > 20
    assert np.mean(found) > 0.6


def test_an_example_gets_its_regions_in_its_own_pixels():
    image = disc((70, 40), 9)
    step = images.ProposeRegions(COUNT)
    example = {"image_id": 3, "image": encoded(image), "image_w": 128, "image_h": 96}
    plain, twice = step(example), step(example | {"image_id": 4, "image_w": 256, "image_h": 192})
    np.testing.assert_array_equal(plain["boxes"], proposals.propose(image, COUNT))
    np.testing.assert_allclose(twice["boxes"], 2 * plain["boxes"], rtol=1e-6)
    np.testing.assert_array_equal(twice["features"], plain["features"])
    with pytest.raises(DataError, match="Image 5 has features of regions alone"):
        step({"image_id": 5, "features": plain["features"]})
    with pytest.raises(DataError, match="image 6 is not a picture"):
        step({"image_id": 6, "image": b"no", "image_w": 1, "image_h": 1})


@pytest.mark.parametrize("config", ["configs/rwsan.py:proposed", "configs/flamingo.py:proposed"])
def test_tasks_read_and_show_proposed_regions(config):
    task = task_without_data(configs.load(config))
    image = disc((70, 40), 9)
    example = {
        "image_id": 3,
        "image": encoded(image),
        "image_w": 128,
        "image_h": 96,
        "question_id": 1,
        "question": "why?",
    }
    example |= {"boxes": np.zeros((2, 4)), "features": np.zeros((2, 7)), "answers": (), "multiple_choice_answer": ""}
    expected = proposals.regions_of(image, COUNT)
    np.testing.assert_allclose(task.boxes(example, {}), expected["boxes"], rtol=1e-6)
    for transform in task.transforms(train=False):
        example = transform(example)
    seen = example["regions"] if "regions" in example else example["image"][:, 0, :FEATURE_WIDTH]
    np.testing.assert_array_equal(seen[: len(expected["boxes"])], expected["features"])
    assert task.reads == "pixels"


def test_an_unknown_source_is_named():
    config = configs.load("configs/rwsan.py:proposed")
    with config.unlocked():
        config.data.regions = "shape"
    with pytest.raises(ConfigError, match=r"config.data.regions is 'shape': choose .*Did you mean 'shapes'"):
        images.region_steps(config.data)
