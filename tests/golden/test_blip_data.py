"""BLIP's golden cases of images, texts and learning rates: the given ones, parts of them, others, and wrong ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.golden import runner

GOLDEN = Path(__file__).parents[1] / "golden" / "blip"


def passed(rows):
    return {row.output: row.passed for row in rows}


def write(folder, name, content, arrays=None):
    (folder / f"{name}.json").write_text(json.dumps(content))
    if arrays:
        np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def given():
    content = json.loads((GOLDEN / "image_cases.json").read_text())
    with np.load(GOLDEN / "image_cases.npz") as stored:
        return content, dict(stored)


@pytest.fixture(autouse=True)
def no_vocabulary(monkeypatch):
    monkeypatch.delenv("JAXVQA_BERT_VOCAB", raising=False)


def test_images_are_the_originals():
    rows = runner.run(GOLDEN / "image_cases.npz")
    assert [row for row in rows if not row.passed] == []
    assert len(rows) == 40 + 5 + 2 + 1
    # The fixed point of the warps is that of OpenCV 4.10, from which the case is.
    assert {row.note for row in rows if "grey levels" in row.note} == {"0 grey levels at most, in 0% of the values"}


def test_learning_rates_are_the_originals():
    rows = runner.run(GOLDEN / "schedule_cases.json")
    assert [row for row in rows if not row.passed] == []
    assert {row.output: row.note for row in rows} == {
        "cosine": "36/36",
        "warmup": "18/18",
        "step": "18/18",
        "alpha_pretrain": "18/18",
        "alpha_retrieval": "6/6",
        "drop_path": "2/2",
    }


def test_texts_are_the_originals_and_tokens_skip_visibly():
    rows = runner.run(GOLDEN / "text_cases.json")
    assert [row for row in rows if row.passed is False] == []
    skipped = {row.output: row.note for row in rows if row.passed is None}
    assert set(skipped) == {"tokenizer", "prompt", "caption_postprocess_cases"}
    assert all("JAXVQA_BERT_VOCAB" in note for note in skipped.values())
    assert sum(row.passed is True for row in rows) == 6


def test_parts_of_an_images_file_under_another_name(given, tmp_path):
    content, arrays = given
    part = {"cases": [c for c in content["cases"] if c["op"] in ("Equalize", "ShearY")], "made_with": {}}
    arrays = {name: arrays[name] for name in ("in_image", "in_image_dark", *(c["key"] for c in part["cases"]))}
    rows = runner.run(write(tmp_path, "pictures", part, arrays))
    assert len(rows) == 5
    assert all(row.passed for row in rows)
    levels = {
        "level_to_first_argument_magnitude": {"levels": [2.5], "Rotate": [7.5], "Color": [0.55], "Equalize": [None]}
    }
    assert passed(runner.run(write(tmp_path, "numbers", levels | {"cases": []}))) == dict.fromkeys(levels, True)
    assert passed(runner.run(write(tmp_path, "empty", {"cases": [], "resized_crop": None}))) == {"": None}


def test_wrong_images_fail(given, tmp_path):
    content, arrays = given
    chosen = {c["op"]: c for c in content["cases"]}
    cases = [chosen[name] for name in ("Rotate", "ShearX", "Solarize", "Color")]
    arrays = {name: arrays[name].copy() for name in ("in_image", *(c["key"] for c in cases))}
    rotated, sheared, solarized, _ = (arrays[c["key"]] for c in cases)
    rotated[5, 5, 0] += 4 if rotated[5, 5, 0] < 128 else -4  # one value, by too much
    sheared[:20] += np.where(sheared[:20] < 128, 1, -1).astype(np.uint8)  # too many values, by little
    solarized[0, 0, 0] ^= 1
    unknown = {"key": "out_op", "op": "Blur", "args": [], "input": "in_image"}
    rows = runner.run(write(tmp_path, "x", {"cases": [*cases, unknown]}, arrays))
    results = [row.passed for row in rows]
    assert results == [False, False, False, True, False], rows


def test_images_without_their_arrays_fail(tmp_path):
    shutil.copy(GOLDEN / "image_cases.json", tmp_path)
    rows = runner.run(tmp_path / "image_cases.json")
    assert passed(rows)["level_to_first_argument_magnitude"]
    assert any("npz" in row.note for row in rows if row.passed is False)


TOKENS = {
    "tokenizer": {
        **{"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "dec": 98, "enc": 99},
        "cases": [
            {"in": "Axial brain MRI?", "ids": [2, 37, 24, 25, 80, 3], "decoded_skip_special": "axial brain mri?"},
            {"in": "dogs, a zebra", "ids": [2, 62, 81, 77, 5, 1, 3]},
            {"in": "[ENC] a [SEP]", "ids": [2, 99, 5, 3, 3], "decoded_skip_special": "a"},
        ],
        "padded": [
            {"in": "a dog", "max_length": 6, "ids": [2, 5, 62, 3, 0, 0], "mask": [1, 1, 1, 1, 0, 0]},
            {"in": "a cat with a dog", "max_length": 4, "ids": [2, 5, 63, 3]},
        ],
    },
    "prompt": {"text": "a picture of ", "ids": [2, 5, 6, 7, 3], "prompt_length": 4},
    "caption_postprocess_cases": [{"ids": [98, 5, 6, 7, 5, 62, 79, 91, 3, 0], "out": "a dog's"}],
}


def made_up_vocabulary():
    words = (GOLDEN / "small_vocab.txt").read_text().split("\n")
    index = {word: i for i, word in enumerate(words)}
    return words, index


def test_tokens_by_a_vocabulary_beside_the_case_or_one_that_is_named(tmp_path, monkeypatch):
    content = json.loads(json.dumps(TOKENS))
    words, index = made_up_vocabulary()

    def ids(text):
        return [index[token] for token in text.split()]

    cases = content["tokenizer"]["cases"]
    cases[0]["ids"] = ids("[CLS] axial brain mri ? [SEP]")
    cases[1]["ids"] = ids("[CLS] dog ##s , a [UNK] [SEP]")
    content["tokenizer"]["padded"][0]["ids"] = ids("[CLS] a dog [SEP] [PAD] [PAD]")
    content["tokenizer"]["padded"][1]["ids"] = ids("[CLS] a cat [SEP]")
    content["prompt"]["ids"] = ids("[CLS] a picture of [SEP]")
    content["caption_postprocess_cases"][0]["ids"] = [98, *ids("a picture of a dog ' s [SEP] [PAD]")]
    path = write(tmp_path, "tokens", content)
    (tmp_path / "a_note.txt").write_text("No vocabulary.\n")
    assert set(passed(runner.run(path)).values()) == {None}
    (tmp_path / "pieces.txt").write_text("\n".join(words))
    rows = runner.run(path)
    assert passed(rows) == {"tokenizer": True, "prompt": True, "caption_postprocess_cases": True}, rows
    monkeypatch.setenv("JAXVQA_BERT_VOCAB", str(GOLDEN / "small_vocab.txt"))
    (tmp_path / "pieces.txt").unlink()
    assert set(passed(runner.run(path)).values()) == {True}
    monkeypatch.setenv("JAXVQA_BERT_VOCAB", str(tmp_path / "none.txt"))
    assert {row.note.partition(":")[0] for row in runner.run(path)} == {"FileNotFoundError"}
    monkeypatch.setenv("JAXVQA_BERT_VOCAB", str(GOLDEN / "small_vocab.txt"))
    content["tokenizer"]["dec"] = 97
    content["prompt"]["prompt_length"] = 5
    content["caption_postprocess_cases"][0]["out"] = "a dog"
    assert set(passed(runner.run(write(tmp_path, "wrong", content))).values()) == {False}


@pytest.mark.parametrize(
    ("section", "entry", "wrong"),
    [
        ("pre_caption", {"in": "A (b)  c", "out": "a b c"}, {"out": "a b  c"}),
        ("pre_question", {"in": "A (b)  c", "max_words": 3, "out": "a b "}, {"out": "a b c"}),
        ("vis_pre_caption", {"in": "A-b, c", "max_words": 2, "out": "a b"}, {"max_words": 3}),
        ("coco_image_id", {"in": "x/y_12.gif", "out": "12.gif"}, {"out": "12"}),
        (
            "vqa_answer_weights",
            {"annotation": {"question": "Is it?", "answer": ["no", "yes", "no"]}, "answers": ["no", "yes"]},
            {"answers": ["yes", "no"]},
        ),
        ("alpha_pretrain", {"epoch": 1, "step": 1, "steps_per_epoch": 4, "alpha": 0.25}, {"epoch": 0}),
        ("alpha_retrieval", {"epoch": 0, "step": 1, "steps_per_epoch": 4, "alpha": 0.1}, {"alpha": 0.2}),
        ("drop_path", {"rate": 0.3, "depth": 4, "per_block": [0.0, 0.1, 0.2, 0.3]}, {"rate": 0.2}),
        ("cosine", {"epoch": 3, "max_epoch": 4, "init_lr": 2.0, "min_lr": 1.0, "lr": 1.5 - 0.5**1.5}, {"lr": 1.1464}),
        ("step", {"epoch": 5, "init_lr": 1.0, "min_lr": 0.04, "decay": 0.5, "lr": 0.04}, {"min_lr": 0.03}),
        (
            "warmup",
            {"step": 3, "warmup_steps": 6, "warmup_lr": 0.0, "init_lr": 1.0, "lr": 0.5},
            {"warmup_steps": 7},
        ),
    ],
)
def test_other_cases_pass_and_wrong_ones_fail(section, entry, wrong, tmp_path):
    (row,) = runner.run(write(tmp_path, "a", {section: [entry]}))
    assert row.passed, row.note
    (row,) = runner.run(write(tmp_path, "b", {section: [entry, entry | wrong]}))
    assert row.passed is False
    assert row.note.startswith("1/2") or section in ("vqa_answer_weights", "pre_question")
    assert passed(runner.run(write(tmp_path, "c", {section: []}))) == {section: None}


def test_answers_of_a_batch(tmp_path):
    rows = [{"annotation": {"question": "q", "answer": answer}} for answer in (["a", "b", "a", "a"], "left")]
    batch = {"answers": ["a", "b", "left"], "weights": [0.75, 0.25, 0.2], "n": [2, 1]}
    assert passed(runner.run(write(tmp_path, "a", {"vqa_answer_weights": rows, "vqa_collate": batch})))["vqa_collate"]
    wrong = batch | {"n": [1, 2]}
    assert not passed(runner.run(write(tmp_path, "b", {"vqa_answer_weights": rows, "vqa_collate": wrong})))[
        "vqa_collate"
    ]
    assert passed(runner.run(write(tmp_path, "c", {"vqa_collate": batch}))) == {"vqa_collate": None}
