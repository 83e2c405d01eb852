"""Images with captions as batches, numbered by image or by figure, and the tokenizer of their captions."""

import dataclasses

import numpy as np
import pytest

from jaxvqa.configs import common
from jaxvqa.data import image_text
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.blip_text import CaptionTokenizer, pre_caption
from jaxvqa.data.data_set import DataSet, Split
from jaxvqa.data.records import Records
from jaxvqa.data.transforms import PadRegions
from jaxvqa.errors import DataError


@pytest.fixture(scope="module")
def config(phantoms):
    section = common.data_section(
        common.CAPTIONS,
        common.RANDOM_AUGMENT,
        dir=str(phantoms),
        examples="phantom_vqa/tiny_captions",
        images="phantom_vqa/tiny_images",
        image_size=32,
        vocab_size=200,
        max_tokens=12,
    )
    return section


@pytest.fixture(scope="module")
def data(config):
    return DataSet(config)


@pytest.fixture(scope="module")
def tokenizer(data):
    return CaptionTokenizer(image_text.tokenizer_of(data))


def batch_of(source, transform, count=8):
    return LoadBatch(source, lambda step: np.arange(count), (transform,), 0, 1)(3)


def test_batches_of_pixels(config, data, tokenizer):
    write = image_text.WriteCaption(tokenizer, config.max_tokens, config.max_words)
    trained = image_text.ImageText(image_text.image_steps(config, train=True), write)
    batch = batch_of(data.split("train"), trained)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "image": ((8, 32, 32, 3), np.uint8),
        "text": ((8, 12), np.int32),
        "text_mask": ((8, 12), np.bool_),
        "image_id": ((8,), np.int32),
        "id": ((8,), np.int64),
        "mask": ((8,), np.float32),
    }
    assert batch["image_id"].tolist() == list(range(8))
    for text, mask, record in zip(batch["text"], batch["text_mask"], data.split("train").all_records(), strict=False):
        ids = text[mask].tolist()
        assert ids[0] == tokenizer.begin
        assert ids[-1] == tokenizer.end
        assert (text[~mask] == tokenizer.padding).all()
        assert ids == tokenizer.whole(pre_caption(record["caption"]), 12)
    again = batch_of(data.split("train"), trained)
    np.testing.assert_array_equal(again["image"], batch["image"])
    seen = dataclasses.replace(trained, see=image_text.image_steps(config, train=False), numbered=False)
    evaluated = batch_of(data.split("train"), seen)
    assert "image_id" not in evaluated
    assert not np.array_equal(evaluated["image"], batch["image"])


def test_batches_of_regions(config, data, tokenizer):
    write = image_text.WriteCaption(tokenizer, config.max_tokens, config.max_words)
    transform = image_text.ImageText((PadRegions(9),), write, ("regions", "boxes"))
    batch = batch_of(data.split("train"), transform)
    assert batch["regions"].shape == (8, 9, 320)
    assert batch["boxes"].shape == (8, 9, 4)
    assert "image" not in batch


class Rows(Records):
    """Records without a built part."""

    def __init__(self, rows):
        self.rows, self.part, self.splits = rows, "made/up", "train"

    def __len__(self):
        return len(self.rows)

    def read(self, positions):
        return [self.rows[i] for i in positions]


ROWS = [
    {"question_id": i, "image_id": 900 + image, "figure_id": figure, "caption": f"<b>Brain</b> MRI, {i}."}
    for i, (image, figure) in enumerate([(7, "a"), (3, "b"), (7, "a"), (5, "a"), (3, "b")])
]


@pytest.mark.parametrize(
    ("by", "numbers", "limited"),
    [("image_id", [0, 1, 0, 2, 1], [0, 1, 2]), ("figure_id", [0, 1, 0, 0, 1], [0, 1, 1])],
)
def test_images_are_numbered_in_order_of_first_appearance(by, numbers, limited):
    split = Split(Rows(ROWS), number_by=by)
    assert split.image_numbers.tolist() == numbers
    assert [example["image_number"] for example in split.read(range(5))] == numbers
    assert Split(Rows(ROWS[1:]), number_by=by, limit=3).image_numbers.tolist() == limited


def test_what_cannot_be_numbered(tokenizer):
    transform = image_text.ImageText((), image_text.WriteCaption(tokenizer, 9, 30), ())
    with pytest.raises(DataError, match=r"Image 907 has no number.*config\.data\.positives_by"):
        transform(Split(Rows(ROWS))[0])
    with pytest.raises(DataError, match=r"'figureid'; the examples of made/up have .* Did you mean 'figure_id'"):
        Split(Rows(ROWS), number_by="figureid").read([0])


def test_tags_stay_unless_they_are_stripped(tokenizer):
    kept, stripped = (image_text.WriteCaption(tokenizer, 20, 30, strip_tags=strip)(ROWS[0]) for strip in (False, True))
    assert stripped["text_mask"].sum() < kept["text_mask"].sum()
    plain = image_text.WriteCaption(tokenizer, 20, 30)({"caption": "Brain MRI, 0."})
    np.testing.assert_array_equal(stripped["text"], plain["text"])


def test_a_named_tokenizer_is_read(data, tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\naxial\nimage\n##s\n")
    named = data.changed(tokenizer=str(file))
    found = CaptionTokenizer(image_text.tokenizer_of(named))
    assert found.whole("Axial images") == [2, 5, 6, 7, 3]
    assert (found.decode_begin, found.encode_begin) == (8, 9)
