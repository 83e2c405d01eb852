"""BLIP's captions, questions, answers and image ids."""

import pytest

from jaxvqa.data import blip_text, tokenizers
from jaxvqa.data.tokenizers import BERT_SPECIAL
from jaxvqa.errors import DataError


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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("pieces") / "pieces.txt"
    file.write_text("\n".join((*BERT_SPECIAL, "a", "dog", "##s", "'", "s", ",", "red", "-", "t1", "?")))
    return blip_text.CaptionTokenizer(tokenizers.load(file, blip_text.ADDED))


def test_texts_are_cut_with_their_end_last(tokenizer):
    assert (tokenizer.padding, tokenizer.begin, tokenizer.end) == (0, 2, 3)
    assert (tokenizer.decode_begin, tokenizer.encode_begin, len(tokenizer)) == (15, 16, 17)
    assert tokenizer.whole("A dog's dogs") == [2, 5, 6, 8, 9, 6, 7, 3]
    assert tokenizer.whole("A dog's dogs", 5) == [2, 5, 6, 8, 3]
    assert tokenizer.whole("", 30) == [2, 3]
    # Special tokens in the data are text, unless they are read as the original reads them.
    assert not {2, 3, 15, 16} & set(tokenizer.whole("[SEP] [DEC] [ENC] [CLS]")[1:-1])
    assert tokenizer.whole("[DEC] a dog[SEP]red", spelt=True) == [2, 15, 5, 6, 3, 11, 3]


def test_texts_are_written_as_the_original_joins_them(tokenizer):
    assert tokenizer.decode([16, *tokenizer.whole("red, t1-dogs? a dog's"), 0, 0]) == "red, t1 - dogs? a dog's"


def test_a_tokenizer_without_blips_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join((*BERT_SPECIAL, "a")))
    with pytest.raises(DataError, match=r"no token \[DEC\], \[ENC\]"):
        blip_text.CaptionTokenizer(tokenizers.load(tmp_path))
