"""RandomAugment: its operations, its draws, and the sound variant."""

import numpy as np
import pytest

from jaxvqa.data import augment


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(40, 200, (24, 31, 3), np.uint8)


def example(image, place=0):
    return {"image": image, "draw": (3, 5, place)}


def test_the_same_draw_gives_the_same_image_and_others_give_others(image):
    change = augment.RandomAugment()
    found = [change(example(image, place))["image"] for place in range(40)]
    np.testing.assert_array_equal(found[7], change(example(image, 7))["image"])
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in found)
    assert len({x.tobytes() for x in found}) > 10
    assert sum((x == image).all() for x in found) > 5  # each operation is applied half of the time, and some do nothing


def test_every_operation_of_the_list_is_drawn_and_no_other(image, monkeypatch):
    drawn = []

    def record(name, operation):
        def run(*args, **kwargs):
            drawn.append((name, args[1:]))
            return operation(*args, **kwargs)

        return run

    monkeypatch.setattr(augment, "OPERATIONS", {name: record(name, op) for name, op in augment.OPERATIONS.items()})
    change = augment.RandomAugment(number=4)
    for place in range(60):
        change(example(image, place))
    assert {name for name, _ in drawn} == set(augment.DRAWN)
    assert 0.4 < len(drawn) / 240 < 0.6
    assert {args for name, args in drawn if name == "Rotate"} == {(15.0,), (-15.0,)}
    assert {args for name, args in drawn if name == "Brightness"} == {(1.0,)}


def test_autocontrast_whitens_as_the_original_and_stretches_if_sound(image):
    assert (augment.autocontrast(image) >= 254).all()  # a maximum may give 254
    stretched = augment.autocontrast(image, sound=True)
    assert stretched.min() == 0
    assert stretched.max() in (254, 255)
    assert np.corrcoef(stretched[..., 0].ravel(), image[..., 0].ravel())[0, 1] > 0.999
    flat = np.full((5, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(augment.autocontrast(flat), flat)


def test_sound_brightness_and_sharpness_have_an_effect_either_way(image, monkeypatch):
    monkeypatch.setattr(augment, "DRAWN", ("Brightness",))
    means = {augment.RandomAugment(1, sound=True)(example(image, i))["image"].mean() for i in range(30)}
    assert min(means) < 0.7 * image.mean() < image.mean() < 1.3 * image.mean() < max(means)
    unsound = {augment.RandomAugment(1)(example(image, i))["image"].mean() for i in range(30)}
    assert unsound == {image.mean()}


def test_whole_moves_are_exact(image):
    moved = augment.translate_x(image, 3.0)
    np.testing.assert_array_equal(moved[:, :-3], image[:, 3:])
    assert (moved[:, -3:] == 128).all()
    moved = augment.translate_y(image, -2.0, (1, 2, 3))
    np.testing.assert_array_equal(moved[2:], image[:-2])
    assert (moved[:2] == (1, 2, 3)).all()
    square = image[:24, :24]
    turned = augment.rotate(square, 90.0)
    # About (W/2, H/2), not about the middle between the pixels: a row or column comes in from outside.
    np.testing.assert_array_equal(turned[1:], np.rot90(square)[:-1])


def test_sizes_down_to_one_pixel():
    image = np.asarray([[[3, 250, 9]]], np.uint8)
    for name, operation in augment.OPERATIONS.items():
        size = augment.argument(name, 10.0)
        assert operation(image, *([] if size is None else [size])).shape == (1, 1, 3), name


def test_levels():
    assert [augment.argument(name, 5.0) for name in ("Identity", "Brightness", "ShearX", "Rotate", "Solarize")] == [
        None,
        1.0,
        0.15,
        15.0,
        128,
    ]
