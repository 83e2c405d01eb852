"""Panels, letters and pairs of composed figures, and of published ones."""

import collections
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("tesserocr", reason="the extra pubmed is not installed: tesserocr")

from benchmarks import pubmed_figures as measure
from benchmarks.pubmed_compose import compose
from tfds_builders.pubmed_figures.collect import letters, panels
from tfds_builders.pubmed_figures.collect.letters import Tesseract
from tfds_builders.pubmed_figures.collect.pair import split_figure
from tfds_builders.pubmed_figures.collect.subcaptions import split_caption


@pytest.fixture(scope="module")
def reader():
    return Tesseract()


def smooth(width, height, seed=0, low=60, high=190):
    """A picture without edges."""
    rng = np.random.default_rng(seed)
    small = rng.integers(low, high, (max(2, height // 40), max(2, width // 40))).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(grey, quality=75):
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def is_close(boxes, expected):
    return len(boxes) == len(expected) and all(
        measure.overlap(a, b) > 0.95 for a, b in zip(boxes, expected, strict=True)
    )


@pytest.mark.parametrize("gutter", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("colour", [255, 0])
def test_gutters_of_a_row(gutter, colour):
    parts = [smooth(150, 150, seed) for seed in range(3)]
    band = np.full((150, gutter), colour, np.uint8)
    grey = jpeg(np.concatenate([parts[0], band, parts[1], band, parts[2]], 1))
    step = 150 + gutter
    assert is_close(panels.panel_boxes(grey, 3), [(step * i, 0, step * i + 150, 150) for i in range(3)])
    if colour == 255:
        assert len(panels.panel_boxes(grey)) == 3  # without a caption too


def test_pictures_that_touch():
    grey = jpeg(np.concatenate([smooth(200, 160, 0, 30, 90), smooth(180, 160, 1, 140, 220)], 1))
    assert is_close(panels.panel_boxes(grey, 2), [(0, 0, 200, 160), (200, 0, 380, 160)])


def test_a_stack_beside_a_large_panel():
    small = [smooth(150, 145, seed) for seed in range(2)]
    stack = np.concatenate([small[0], np.full((10, 150), 255, np.uint8), small[1]])
    grey = jpeg(np.concatenate([smooth(250, 300, 5), np.full((300, 4), 255, np.uint8), stack], 1))
    expected = [(0, 0, 250, 300), (254, 0, 404, 145), (254, 155, 404, 300)]
    assert is_close(panels.panel_boxes(grey, 3), expected)


def test_one_picture_is_one_panel():
    grey = jpeg(smooth(300, 200))
    assert panels.panel_boxes(grey) == [(0, 0, 300, 200)]
    assert len(panels.panel_boxes(np.full((40, 40), 255, np.uint8))) == 1


@pytest.mark.parametrize("form", ["{}", "({})", "{}."])
@pytest.mark.parametrize("place", [(8, 6), (110, 6), (8, 112)])
def test_letters_are_read_where_they_stand(reader, form, place):
    image = Image.new("RGB", (306, 150), "white")
    for i in range(2):
        image.paste(Image.fromarray(smooth(150, 150, i, 20, 90)), (156 * i, 0))
        ImageDraw.Draw(image).text((156 * i + place[0], place[1]), form.format("BA"[i]), fill="white", font_size=24)
    found = split_figure(np.asarray(image), split_caption("(A) One. (B) Two."), reader)
    # The letters stand against the order: what is read weighs more.
    assert [(panel.label, panel.text) for panel in found] == [("B", "Two."), ("A", "One.")]
    assert [panel.read.text for panel in found] == ["b", "a"]


def test_without_letters_the_order_counts_and_sides_are_sides(reader):
    image = np.full((150, 306, 3), 255, np.uint8)
    for i in range(2):
        image[:, 156 * i : 156 * i + 150] = smooth(150, 150, i)[..., None]
    for caption, labels in (
        ("(A) One. (B) Two.", ["A", "B"]),
        ("Right: CT. Left: MRI.", ["left", "right"]),
        ("Two.", ["", ""]),
    ):
        assert [panel.label for panel in split_figure(image, split_caption(caption), reader)] == labels


def test_fewer_panels_than_labels_are_not_named_by_order(reader):
    image = smooth(300, 150)[..., None].repeat(3, 2)
    (panel,) = split_figure(image, split_caption("(A) One. (B) Two. (C) Three."), reader)
    assert (panel.label, panel.text) == ("", "")


def test_labels_share_size_and_place():
    boxes = [(0, 0, 100, 100), (110, 0, 210, 100)]
    read = [
        letters.Letter("A", 0.9, (5, 5, 17, 20)),
        letters.Letter("B", 0.6, (115, 5, 127, 20)),
        letters.Letter("B", 0.95, (112, 84, 118, 92)),  # small, elsewhere: surer, but none of the labels
    ]
    assert {i: letter.box for i, letter in letters.labels_of_panels(read, boxes).items()} == {
        0: read[0].box,
        1: read[1].box,
    }


def test_composed_figures(reader, tmp_path):
    counts = collections.defaultdict(list)
    measure.add_composed(counts, range(900, 908), measure.phantom_pictures(tmp_path, 20), reader)
    shares = {name: row["share"] for name, row in measure.summary(counts).items()}
    assert shares["boxes"] >= 0.85, shares
    assert shares["letters"] >= 0.8, shares
    assert shares["pairs"] >= 0.75, shares


def test_composing_is_seeded(tmp_path):
    pictures = measure.phantom_pictures(tmp_path, 4)
    first, again, other = (compose(seed, pictures) for seed in (3, 3, 4))
    assert first == again
    assert first.jpeg != other.jpeg
    assert set(first.texts) == set(first.labels)


def test_published_figures(reader, jaxvqa_data):
    counts = collections.defaultdict(list)
    missed = measure.add_published(counts, jaxvqa_data / "data/pmc_figures", reader)
    rows = measure.summary(counts)
    assert rows["boxes"]["right"] >= 24, missed
    assert rows["sub-captions"]["right"] >= 25
    assert rows["pairs"]["right"] >= 7, missed
