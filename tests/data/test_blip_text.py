"""BLIP's captions, questions, answers and image ids."""

import pytest

from jaxvqa.data import blip_text


def test_captions_lose_marks_to_spaces_and_questions_lose_them():
    text = '  An "MRI" (T1):  what\'s there?  '
    assert blip_text.pre_caption(text) == "an mri t1 what's there?"
    assert blip_text.pre_question(text) == "  an mri t1  what's there?"
    assert blip_text.vis_pre_caption("Contrast-enhanced, T1/T2.") == "contrast enhanced t1 t2"


def test_what_counts_as_a_word():
    assert blip_text.pre_caption("one two\nthree four", 2) == "one two\nthree"
    assert blip_text.pre_question("a  b c", 3) == "a  b"
    assert blip_text.pre_caption("...", 1) == ""


@pytest.mark.parametrize(
    ("path", "original", "sound"),
    [
        ("val2014/COCO_val2014_000000391895.jpg", "000000391895", "000000391895"),
        ("a/b_77.png", "77.pn", "77"),
        ("1007129816.jpg", "1007129816", "1007129816"),
        ("pages/page_7g.jpg", "7", "7g"),
    ],
)
def test_image_ids_by_the_original_and_by_sense(path, original, sound):
    assert blip_text.coco_image_id(path) == original
    assert blip_text.coco_image_id(path, sound=True) == sound


def test_answers_weigh_by_how_often_they_were_given():
    answers, weights = blip_text.weighted_answers(["net", "mesh", "net", "net"])
    assert answers == ["net", "mesh"]
    assert weights == pytest.approx([0.75, 0.25])
    assert blip_text.weighted_answers("left") == (["left"], [0.2])
