"""MedVL's rules in the runner: other cases of the same form pass, and wrong ones do not."""

import json

import pytest

from jaxvqa.golden import runner

BOXES = [{"x": 0, "y": 1, "w": 5, "h": 6, "OCR": ["c"]}, {"x": 7, "y": 1, "w": 4, "h": 3, "OCR": ["d", "e"]}]
CASES = {
    "image_size_w_h": [30, 20],
    "subfigure_choice": [
        {"boxes": BOXES, "Sub_ID": "e", "chosen": [7, 1, 4, 3]},
        {"boxes": BOXES[:1], "Sub_ID": "c", "chosen": [0, 0, 30, 20]},
    ],
    "first_box_choice": [{"boxes": BOXES, "chosen": [0, 1, 5, 6]}],
    "retrieval_records": {
        "annotation": [{"Img_id": "8.png", "Sub_ID": "", "text": "A (small) one"}, {"Img_id": "2.png", "text": "B"}],
        "train_img_ids": {"8": 0, "2": 1},
        "train_item0_caption_and_id": ["a small one", 0],
        "items": 2,
    },
    "openi": [{"query": "a b", "wanted": 2, "available": 3, "records": 3}],
}


def rows_of(folder, content):
    (folder / "any.json").write_text(json.dumps(content))
    return {row.output: row.passed for row in runner.run(folder)}


def test_other_cases_pass_whole_or_in_part(tmp_path):
    assert set(rows_of(tmp_path, CASES).values()) == {True}
    part = {name: CASES[name] for name in ("image_size_w_h", "first_box_choice")}
    assert rows_of(tmp_path, part) == {"first_box_choice": True}


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("subfigure_choice", [CASES["subfigure_choice"][0] | {"chosen": [0, 0, 30, 20]}]),
        ("first_box_choice", [CASES["first_box_choice"][0] | {"chosen": [0, 0, 30, 20]}]),
        ("retrieval_records", CASES["retrieval_records"] | {"items": 3}),
        ("openi", [CASES["openi"][0] | {"records": 4}]),
    ],
)
def test_wrong_ones_fail(tmp_path, section, wrong):
    rows = rows_of(tmp_path, CASES | {section: wrong})
    assert {name for name, passed in rows.items() if not passed} == {section}
