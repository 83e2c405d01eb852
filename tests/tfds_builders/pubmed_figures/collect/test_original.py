"""The original's rules against its own numbers: which crop a sub-caption gets, how Open-i is paged, ids of figures."""

import itertools
import json

import pytest

from tfds_builders.pubmed_figures.collect import original
from tfds_builders.pubmed_figures.collect.original import first_box_choice, subfigure_choice

LEFT, RIGHT = {"x": 2, "y": 3, "w": 20, "h": 30}, {"x": 30, "y": 3, "w": 25, "h": 30}


@pytest.fixture(scope="module")
def cases(jaxvqa_data):
    return json.loads((jaxvqa_data / "reference/blip/medvl_cases.json").read_text(encoding="utf-8"))


def test_the_crops_of_the_cases(cases):
    size = tuple(cases["image_size_w_h"])
    for case in cases["subfigure_choice"]:
        assert list(subfigure_choice(case["boxes"], case["Sub_ID"], size)) == case["chosen"], case
    for case in cases["first_box_choice"]:
        assert list(first_box_choice(case["boxes"], size)) == case["chosen"], case
    assert len(cases["subfigure_choice"]) == 12
    assert len(cases["first_box_choice"]) == 3


@pytest.mark.parametrize(
    ("texts", "label", "chosen"),
    [
        ((["a", "t2"], ["b"]), "b", RIGHT),
        ((["a b", "a", "b"], ["b"]), "b", LEFT),  # the article or a neighbour's letter: the first box wins
        ((["(a)"], ["b)"]), "a", None),
        ((["a"], ["b"]), "A", None),
        ((["a"], ["b"]), "", None),
        ((["a"],), "a", None),  # one box: the whole figure
        ((), "a", None),
    ],
)
def test_a_crop_needs_a_word_equal_to_the_letter(texts, label, chosen):
    boxes = [box | {"OCR": words} for box, words in zip((LEFT, RIGHT), texts, strict=False)]
    expected = (chosen["x"], chosen["y"], chosen["w"], chosen["h"]) if chosen else (0, 0, 60, 40)
    assert subfigure_choice(boxes, label, (60, 40)) == expected


def service(available):
    """Answers like Open-i, and remembers the addresses."""
    asked = []

    def get(url):
        asked.append(url)
        first, last = (int(part.partition("=")[2]) for part in url.split("&") if part[:2] in ("m=", "n="))
        numbers = range(first, min(last, available) + 1)
        entries = [{"imgLarge": f"/imgs/512/{n}.png", "image": {"caption": f"caption {n}"}} for n in numbers]
        return {"total": available, "list": entries}

    return asked, get


def test_the_paging_of_the_cases(cases):
    for case in cases["openi"]:
        asked, get = service(case["available"])
        figures = list(original.openi_figures(case["query"], case["wanted"], get, as_written=True))
        assert asked == case["urls"]
        assert len(figures) == case["records"]
        for figure, expected in ((figures[0], case["first"]), (figures[-1], case["last"])):
            assert (figure.caption, figure.img_file, figure.img_url) == tuple(expected.values())


@pytest.mark.parametrize(
    ("wanted", "available", "kept"), [(150, 1000, 150), (300, 200, 200), (300, 130, 130), (5, 0, 0)]
)
def test_the_sound_rule_stops(wanted, available, kept):
    asked, get = service(available)
    assert len(list(original.openi_figures("brain", wanted, get))) == kept
    assert len(asked) == len(set(asked)) <= kept // original.PAGE + 1


def test_as_written_never_stops_at_the_service_s_end():
    asked, get = service(200)

    def limited(url):
        if len(asked) >= 9:
            raise TimeoutError
        return get(url)

    with pytest.raises(TimeoutError):
        list(original.openi_figures("brain", 300, limited, as_written=True))
    assert (
        list(itertools.islice(original.openi_figures("brain", 300, service(200)[1]), 250))[-1].caption == "caption 200"
    )


def test_figures_share_a_number(cases):
    records = cases["retrieval_records"]
    assert original.figure_ids(records["annotation"]) == records["train_img_ids"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("<b>brain</b> MRI", "brain MRI"),
        ("p < 0.05 and n > 3, <i>in vivo</i><br/>", "p < 0.05 and n > 3, in vivo"),
        ('<a href="x">link</a> <sup>2</sup>', "link 2"),
    ],
)
def test_tags_of_captions(caption, expected):
    assert original.without_tags(caption) == expected
