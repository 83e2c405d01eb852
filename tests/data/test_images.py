"""Pictures: decoding, resizing, random changes."""

import io
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvqa.data import images
from jaxvqa.data.transforms import random_of
from jaxvqa.errors import DataError


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def gradient():
    rows, columns = np.mgrid[:40, :60]
    return (2 * rows + 2 * columns).astype(np.uint8)


def example(encoded: bytes, image_id: int = 1, draw: tuple[int, int, int] = (0, 0, 0)) -> dict:
    return {"image": encoded, "image_id": image_id, "draw": draw, "question_id": 7}


def test_a_grey_picture_becomes_the_sizes_and_channels_asked_for(gradient):
    decoded = images.DecodeImage({"image": (16, 3), "grey": (8, 1)})(example(png(gradient)))
    assert decoded["image"].shape == (16, 16, 3)
    assert decoded["grey"].shape == (8, 8, 1)
    assert decoded["image"].dtype == decoded["grey"].dtype == np.uint8
    assert np.ptp(decoded["image"], axis=-1).max() == 0  # three equal channels
    # Antialiased: each pixel is near the mean of what it covers, whatever the aspect ratio.
    means = gradient.reshape(8, 5, 60).mean(axis=(1, 2))
    assert np.abs(decoded["grey"][..., 0].mean(axis=1) - means).max() < 3


def test_label_maps_keep_their_labels(gradient):
    labels = np.where(gradient > 90, 13, 2).astype(np.uint8)
    decode = images.DecodeImage({"segmentation": (16, 1)}, source="image", nearest=True)
    assert set(np.unique(decode(example(png(labels)))["segmentation"])) == {2, 13}


def test_pictures_are_decoded_once_and_no_more_are_kept_than_fit(gradient):
    decode = images.DecodeImage({"image": (16, 1)}, cache_mib=2.5 * 256 / 2**20)
    first = decode(example(png(gradient), 1))["image"]
    assert decode(example(b"", 1))["image"] is first  # not decoded again
    decode(example(png(gradient), 2))
    decode(example(png(gradient), 3))
    with pytest.raises(DataError):
        decode(example(b"", 3))  # was not kept
    again = pickle.loads(pickle.dumps(decode))
    with pytest.raises(DataError):
        again(example(b"", 1))  # another process begins with none
    np.testing.assert_array_equal(again(example(png(gradient), 1))["image"], first)


@pytest.mark.parametrize("damage", [b"", b"no picture", None])
def test_a_damaged_picture_is_named(gradient, damage):
    encoded = png(gradient)[:60] if damage is None else damage
    with pytest.raises(DataError, match=r"image 42 .*PNG or JPEG"):
        images.DecodeImage({"image": (16, 3)})(example(encoded, 42))


def test_crop_and_rotate_depends_on_the_draw_alone_and_moves_the_map_alike():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[10:30, 12:28] = 200
    labels = (picture[..., :1] > 0).astype(np.uint8)
    change = images.CropAndRotate(32, 15.0, label_map="segmentation")

    def changed(draw):
        return change({"image": picture, "segmentation": labels, "draw": draw})

    first, again, other = changed((0, 5, 1)), changed((0, 5, 1)), changed((0, 5, 2))
    assert first["image"].shape == (32, 32, 3)
    assert first["segmentation"].shape == (32, 32, 1)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])
    assert set(np.unique(first["segmentation"])) == {0, 1}
    agree = (first["image"][..., 0] > 100) == (first["segmentation"][..., 0] == 1)
    assert agree.mean() > 0.97
    assert picture.max() == 200  # what is kept for other examples is not changed


def test_brightness_keeps_the_order_of_grey_values():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    changed = images.Brightness(0.4)({"image": picture, "draw": (1, 2, 3)})["image"].ravel().astype(int)
    assert (np.diff(changed) >= 0).all()
    assert not np.array_equal(changed, picture.ravel())
    same = images.Brightness(0.0)({"image": picture, "draw": (1, 2, 3)})["image"]
    np.testing.assert_array_equal(same, picture)


def test_normalised_is_imagenets_for_colour_and_plain_for_grey():
    colour = np.asarray(images.normalised(jnp.full((1, 2, 2, 3), 255, jnp.uint8)))
    np.testing.assert_allclose(
        colour[0, 0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-6
    )
    assert float(np.asarray(images.normalised(jnp.full((1, 2, 2, 1), 51, jnp.uint8)))[0, 0, 0, 0]) == pytest.approx(0.2)


def test_noise_depends_on_the_draw_alone():
    make = images.NoiseImage({"image": (8, 3)})
    first, again, other = (make(example(b"", draw=draw))["image"] for draw in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert (first.shape, first.dtype) == ((8, 8, 3), np.uint8)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_crop_and_flip_takes_every_place_and_both_ways_by_the_draw():
    rows, columns = np.mgrid[:12, :12].astype(np.uint8)
    picture = np.stack([rows, columns, rows], axis=-1)
    change = images.CropAndFlip(4)
    seen = set()
    for i in range(1500):
        cut = change({"image": picture, "draw": (0, i, 0)})["image"]
        assert cut.shape == (4, 4, 3)
        flipped = bool(cut[0, 0, 1] > cut[0, -1, 1])
        seen.add((int(cut[0, 0, 0]), int(cut[0, :, 1].min()), flipped))
    assert len(seen) == 9 * 9 * 2
    first, again = (change({"image": picture, "draw": (3, 1, 2)})["image"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_what_a_crop_and_a_flip_are():
    picture = np.arange(5 * 6, dtype=np.uint8).reshape(5, 6, 1)
    np.testing.assert_array_equal(images.cropped_and_flipped(picture, 2, 3, 1, False)[..., 0], [[9, 10], [15, 16]])
    np.testing.assert_array_equal(images.cropped_and_flipped(picture, 2, 3, 1, True)[..., 0], [[10, 9], [16, 15]])


def test_a_picture_may_be_turned_by_its_nearest_pixels():
    picture = np.where(np.mgrid[:32, :32].sum(axis=0) % 7 < 3, 200, 10).astype(np.uint8)[..., None].repeat(3, axis=-1)
    values = {}
    for nearest in (True, False):
        turn = images.CropAndRotate(32, 10.0, nearest=nearest)
        values[nearest] = set(np.unique(turn({"image": picture, "draw": (0, 1, 2)})["image"]).tolist())
    assert values[True] <= {0, 10, 200}  # 0: what comes in from outside
    assert len(values[False]) > 20


def test_colours_change_by_the_draw_alone_and_grey_stays_grey():
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (8, 8, 3), np.uint8)
    change = images.ColourJitter(0.4)
    first, again, other = (change({"image": picture, "draw": (0, 1, i)})["image"] for i in (2, 2, 3))
    assert (first.shape, first.dtype) == (picture.shape, np.uint8)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    grey = np.repeat(random.integers(60, 180, (8, 8, 1), np.uint8), 3, axis=-1)
    for i in range(8):
        changed = change({"image": grey, "draw": (0, 0, i)})["image"]
        assert np.ptp(changed, axis=-1).max() == 0
        order = np.argsort(grey[..., 0].ravel(), kind="stable")
        assert (
            np.diff(changed[..., 0].ravel()[order].astype(int)) >= 0
        ).all()  # brightness and contrast keep the order


@pytest.mark.parametrize(("turn", "colour"), [(1 / 3, [0, 255, 0]), (-1 / 3, [0, 0, 255]), (0.0, [255, 0, 0])])
def test_hue_is_turned_around_the_circle(turn, colour):
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    np.testing.assert_allclose(np.asarray(images._hue_turned(red, turn))[0, 0], colour, atol=8)


def test_random_numbers_of_an_example_depend_on_its_draw_and_the_streams_name_alone():
    first = random_of({"draw": (0, 3, 5), "image_id": 1}, "noise").random(4)
    np.testing.assert_array_equal(random_of({"draw": (0, 3, 5), "image_id": 2}, "noise").random(4), first)
    others = [((0, 3, 5), "colour"), ((0, 3, 6), "noise"), ((0, 4, 5), "noise"), ((1, 3, 5), "noise")]
    assert len({tuple(first)} | {tuple(random_of({"draw": draw}, name).random(4)) for draw, name in others}) == 5


def test_a_random_part_of_an_image_is_of_the_area_and_aspect_asked_for():
    random = np.random.default_rng(0)
    boxes = np.asarray([images.random_box(random, 60, 40, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(500)])
    left, top, width, height = boxes.T
    assert (np.minimum(left, top) >= 0).all()
    assert (left + width <= 60).all()
    assert (top + height <= 40).all()
    shares = width * height / (60 * 40)
    assert shares.min() < 0.25
    assert shares.max() > 0.8
    assert (shares > 0.17).all()  # whole pixels
    ratios = width / height
    assert 0.7 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.4
    # Nothing fits: the largest part in the middle of an aspect that is allowed.
    assert images.random_box(random, 100, 10, (0.9, 1.0), (3 / 4, 4 / 3)) == (43, 0, 13, 10)


def test_resized_crops_follow_their_draw_and_name_what_is_broken(gradient):
    coloured = np.stack([gradient, gradient // 2, 255 - gradient], -1)
    crop = images.ResizedCrop(16, (0.2, 1.0))
    found = [crop(example(png(coloured), draw=(0, 0, i)))["image"] for i in range(20)]
    assert {x.shape for x in found} == {(16, 16, 3)}
    assert len({x.tobytes() for x in found}) == 20
    np.testing.assert_array_equal(found[3], crop(example(png(coloured), draw=(0, 0, 3)))["image"])
    # The gradient grows to the right unless the part was mirrored.
    mirrored = [x[8, 0, 0] > x[8, -1, 0] for x in found]
    assert 4 < sum(mirrored) < 16
    never = [images.ResizedCrop(16, (0.2, 1.0), flip=False)(example(png(coloured), draw=(0, 0, i))) for i in range(20)]
    assert not any(x["image"][8, 0, 0] > x["image"][8, -1, 0] for x in never)
    with pytest.raises(DataError, match="of image 4 is not a picture"):
        crop(example(b"no picture", 4))


def test_resized_crops_are_of_kept_images_up_to_a_bound(gradient, monkeypatch):
    plain = images.ResizedCrop(16, (0.2, 1.0))
    pixels = {4: gradient, 5: np.stack([gradient, gradient // 2, gradient], -1)}
    cases = [example(png(pixels[image_id]), image_id, (0, 0, i)) for image_id in (4, 5, 4, 5) for i in range(2)]
    expected = [plain(one)["image"] for one in cases]
    decode, decoded = images.pictures.decode, []
    monkeypatch.setattr(images.pictures, "decode", lambda *given: decoded.append(given) or decode(*given))
    crop = images.ResizedCrop(16, (0.2, 1.0), cache_mib=1.5 * gradient.size / 2**20)  # room for the grey one
    counts = []
    for one, image in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(crop(one)["image"], image)
        counts.append(len(decoded))
    assert counts == [1, 1, 2, 3, 3, 3, 4, 5]
