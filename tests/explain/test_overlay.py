import io

import numpy as np
import pytest
from PIL import Image

from jaxvqa.errors import DataError
from jaxvqa.explain import overlay
from jaxvqa.explain.explanation import AttentionMap, Explanation


def picture(height=48, width=64):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


def weights(*values):
    return np.array(values, np.float32)


def explanation(**changes):
    fields = {
        "id": 7,
        "image_id": 3,
        "question": "what costs $5 or $6?",
        "words": ("what", "costs", "$5", "or", "$6"),
        "word_attention": weights(0.1, 0.2, 0.3, 0.3, 0.1),
        "answers": (("$5", 0.9), ("tea", 0.05)),
        "annotators": ("tea", "$5", "$5"),
        "boxes": boxes([0, 0, 20, 20], [10, 10, 60, 40]),
        "maps": (AttentionMap(weights(0.7, 0.3)),),
        "image": overlay.encode(picture()),
        "size": (64, 48),
    }
    return Explanation(**(fields | changes))


def test_zero_weights_and_no_boxes_leave_the_picture_as_it_is():
    image = picture()
    for b, w in ((boxes([1, 1, 9, 9]), weights(0)), (boxes(), weights())):
        drawn = overlay.overlay(image, b, w)
        np.testing.assert_array_equal(drawn, image)
        assert drawn is not image


def test_one_region_is_drawn_where_it_is_and_the_input_stays():
    image = np.full((200, 200, 3), 128, np.uint8)
    drawn = overlay.overlay(image, boxes([10, 10, 40, 40]), weights(1.0))
    assert (image == 128).all()
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    changed = np.abs(drawn.astype(int) - 128).sum(axis=-1)
    assert changed[10:40, 10:40].mean() > 60
    np.testing.assert_array_equal(drawn[150:, 150:], image[150:, 150:])


def test_only_the_strongest_boxes_carry_a_share():
    image = np.full((320, 320, 3), 0, np.uint8)
    many = boxes(*[[x, 200, x + 30, 230] for x in range(0, 300, 60)])
    w = weights(0.5, 0.2, 0.15, 0.1, 0.05)
    labelled = (overlay.overlay(image, many, w, outlined=5) == 255).all(axis=-1)
    assert labelled[150:200, 200:].any()  # the white digits above the fourth and fifth box
    few = (overlay.overlay(image, many, w, outlined=2) == 255).all(axis=-1)
    assert few[150:200, :60].any()
    assert not few[150:200, 120:].any()


def test_the_share_of_a_box_hides_no_other_box():
    image = np.zeros((320, 320, 3), np.uint8)
    near = boxes([100, 100, 130, 130], [105, 140, 135, 170])
    one, two = (overlay.overlay(image, near, weights(0.6, 0.4), outlined=n) for n in (1, 2))
    np.testing.assert_array_equal(one[103:128, 103:128], two[103:128, 103:128])
    assert (two[172:] == 255).all(axis=-1).any()  # it stands below


def test_even_attention_is_fainter_than_a_choice():
    image = np.full((90, 90, 3), 100, np.uint8)
    grid = boxes(*[[x, y, x + 30, y + 30] for x in (0, 30, 60) for y in (0, 30, 60)])
    even = overlay.overlay(image, grid, np.full(9, 1 / 9, np.float32), outlined=0)
    choice = overlay.overlay(image, grid, np.where(np.arange(9) == 4, 0.92, 0.01).astype(np.float32), outlined=0)
    assert np.abs(even[45, 45].astype(int) - 100).sum() < np.abs(choice[45, 45].astype(int) - 100).sum()


def test_boxes_outside_the_picture_are_cut_off():
    clipped = overlay.clip_boxes(
        boxes([-5, -5, 10, 10], [60, 40, 90, 90], [100, 100, 120, 120], [30, 20, 10, 5]), 48, 64
    )
    np.testing.assert_array_equal(clipped, boxes([0, 0, 10, 10], [60, 40, 64, 48], [64, 48, 64, 48], [10, 5, 30, 20]))
    assert clipped.dtype == np.float32
    drawn = overlay.overlay(picture(), boxes([-50, -50, 500, 500], [100, 100, 120, 120]), weights(0.5, 0.5))
    assert drawn.shape == (48, 64, 3)


def test_heat_is_hottest_in_the_strongest_box_and_scaled_to_one():
    two = boxes([0, 0, 20, 20], [40, 40, 60, 60])
    heat = overlay.heat_map(two, weights(0.2, 0.8), 64, 80)
    assert heat.shape == (64, 80)
    assert heat.dtype == np.float32
    assert heat.max() == pytest.approx(1)
    assert heat.min() >= 0
    assert np.unravel_index(heat.argmax(), heat.shape) in {(y, x) for y in (49, 50) for x in (49, 50)}
    assert heat[10, 10] == pytest.approx(0.25, abs=0.02)
    assert not overlay.heat_map(two, weights(0, 0), 64, 80).any()
    assert not overlay.heat_map(boxes(), weights(), 64, 80).any()


def test_small_pictures_are_enlarged_with_their_boxes_and_large_ones_stay():
    image, moved = overlay.enlarge(picture(48, 64), boxes([8, 8, 16, 24]), side=320)
    assert image.shape == (240, 320, 3)
    np.testing.assert_allclose(moved, boxes([40, 40, 80, 120]))
    large = picture(400, 300)
    same, unmoved = overlay.enlarge(large, boxes([1, 2, 3, 4]), side=320)
    assert same is large
    np.testing.assert_array_equal(unmoved, boxes([1, 2, 3, 4]))


def test_decoding_takes_png_and_jpeg_and_names_the_fault():
    np.testing.assert_array_equal(overlay.decode(overlay.encode(picture())), picture())
    assert overlay.decode(overlay.encode(picture(), "JPEG")).shape == (48, 64, 3)
    grey = io.BytesIO()
    Image.fromarray(picture()[..., 0]).save(grey, "PNG")
    assert overlay.decode(grey.getvalue()).shape == (48, 64, 3)
    with pytest.raises(DataError, match="12 bytes cannot be decoded"):
        overlay.decode(b"not an image")
    with pytest.raises(DataError, match="cannot be decoded"):
        overlay.decode(overlay.encode(picture())[:200])


def test_canvas_without_a_picture_has_the_size_of_the_picture():
    image, moved = overlay.canvas(explanation(image=b"", size=(640, 480)))
    assert image.shape == (480, 640, 3)
    assert (image == overlay.BLANK).all()
    np.testing.assert_array_equal(moved, explanation().boxes)
    assert overlay.canvas(explanation(image=b"", size=(0, 0))) is None


def test_boxes_follow_a_picture_that_is_stored_smaller_than_it_was():
    image, moved = overlay.canvas(explanation(image=overlay.encode(picture(400, 500)), size=(1000, 800)))
    assert image.shape == (400, 500, 3)
    np.testing.assert_allclose(moved, explanation().boxes / 2)


def test_large_pictures_are_drawn_smaller_where_that_is_asked_for():
    large = explanation(image=overlay.encode(picture(1000, 800)), size=(800, 1000))
    assert overlay.canvas(large)[0].shape == (1000, 800, 3)
    image, moved = overlay.canvas(large, 500)
    assert image.shape == (500, 400, 3)
    np.testing.assert_allclose(moved, explanation().boxes / 2)
    image, maps = overlay.drawn_maps(large, 500)
    assert {image.shape, *(drawn.shape for _, drawn in maps)} == {(500, 400, 3)}
    small = explanation(image=overlay.encode(picture(400, 300)), size=(300, 400))
    assert overlay.canvas(small, 500)[0].shape == (400, 300, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image": b"", "size": (0, 0)},
        {"boxes": boxes(), "maps": ()},
        {"words": (), "word_attention": weights(), "question": "?", "annotators": ()},
    ],
)
def test_figure_is_drawn_for_every_kind_of_data(changes):
    page = overlay.figure(explanation(**changes))
    file = io.BytesIO()
    page.savefig(file, format="png")
    assert overlay.decode(file.getvalue()).std() > 5


def test_annotators_in_one_line():
    assert overlay.most_common(["right", "left", "left", "none"]) == "left × 2, right, none"
    assert overlay.most_common([]) == ""
