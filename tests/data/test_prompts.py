"""Templates: the texts of the original's table, forms of questions and answers, where the answer begins, what is cut."""

import numpy as np
import pytest

from jaxvqa.data import tokenizers
from jaxvqa.data.prompts import FORMS, SPECIAL, TEMPLATES, PromptTokenizer, WriteText, asked_and_true, rad_question

BEGIN = "<|endoftext|> <image>"
RECORD = {"question": "what is seen?", "multiple_choice_answer": "a small mass"}
CAPTION = {"caption": "A circle left of a square."}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["question: what is seen in it? answer: a small mass", "Output: A circle left of a square. Question Answer"]
    return PromptTokenizer(tokenizers.train(texts, 330, SPECIAL))


@pytest.mark.parametrize(
    ("template", "text", "prompt"),
    [
        ("vqa", f"{BEGIN} question: Q <EOQ> answer: A <EOC>", f"{BEGIN} question: Q <EOQ> answer:"),
        ("caption", f"{BEGIN} Output: A <EOC>", f"{BEGIN} Output:"),
        ("report", f"{BEGIN} Output: A <EOC>", f"{BEGIN} Output: "),
        ("bert", "[CLS] <image> question: Q <EOQ> [SEP]", "[CLS] <image> question: Q <EOQ> [SEP]"),
        ("vqa_rad_2022", f"{BEGIN} Question: <EOQ>Q Answer: A <EOC>", f"{BEGIN} question: Q answer:"),
        ("mixed_rad", f"{BEGIN} Question: Q Answer: A <EOC>", f"{BEGIN} Question: Q Answer:"),
        ("mixed_clef", f"{BEGIN} question: Q answer: A <EOC>", f"{BEGIN} question: Q answer:"),
        ("imageclef_bos", "<BOS> <image> question: Q <EOQ> answer: A <EOC>", f"{BEGIN} question: Q <EOQ> answer:"),
    ],
)
def test_texts_are_those_of_the_originals_table(template, text, prompt):
    """docs/originals/flamingo.md, sections 12 and 14."""
    row = TEMPLATES[template]
    assert row.text.format(question="Q", answer="A") == text
    assert row.prompt.format(question="Q", answer="A") == prompt


def test_every_template_is_in_the_table_above():
    marks = test_texts_are_those_of_the_originals_table.pytestmark
    assert {case[0] for mark in marks for case in mark.args[1]} == set(TEMPLATES)


@pytest.mark.parametrize(
    ("question", "form"),
    [
        ("Is there a mass? -yes/no", "is there a mass"),
        ("Where is it? -open", "where is it"),
        ("What is shown? - open", "what is shown"),
        ("Is this the patient's left, upper lobe...?", "is this the patient 's left upper lobe"),
        ("Is this an X ray.", "is this an x-ray"),
        ("is it 1.5 cm", "is it 15 cm"),
    ],
)
def test_a_question_of_vqa_rad_is_mevfs(question, form):
    assert rad_question(question) == form
    assert FORMS["rad"][0](question) == form
    assert FORMS["raw"][0](question) == question


def test_a_record_without_a_question_is_a_caption():
    assert asked_and_true(CAPTION) == ("", CAPTION["caption"])
    assert asked_and_true(RECORD | CAPTION) == ("what is seen?", "a small mass")


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_masks_places_and_padding(tokenizer, template):
    record = RECORD if "{question}" in TEMPLATES[template].text else CAPTION
    found = WriteText(tokenizer, TEMPLATES[template], 96, 80)(record | {"id": 5})
    assert found["id"] == 5  # what was there stays
    for name in ("text", "prompt"):
        words, mask = found[name], found[f"{name}_mask"]
        assert (words.dtype, mask.dtype) == (np.int32, np.bool_)
        count = mask.sum()
        assert mask[:count].all()
        assert (words[count:] == tokenizer.padding).all()
        assert len(words) == {"text": 96, "prompt": 80}[name]
    text = found["text"][found["text_mask"]].tolist()
    end, mark = int(found["question_end"]), tokenizer.question_end
    assert end == (text.index(mark) if mark in text else len(text) - 1)
    assert tokenizer.decode(text) == tokenizer.decode(
        tokenizer.fill(TEMPLATES[template].text, {"question": "what is seen?", "answer": asked_and_true(record)[1]})
    )


@pytest.mark.parametrize(("template", "record"), [("vqa", RECORD), ("caption", CAPTION)])
def test_the_prompt_is_how_the_text_begins_and_the_answer_is_the_rest(tokenizer, template, record):
    found = WriteText(tokenizer, TEMPLATES[template], 96, 80)(record)
    start, prompt = int(found["answer_start"]), found["prompt"][found["prompt_mask"]]
    assert start == len(prompt)
    np.testing.assert_array_equal(found["text"][:start], prompt)
    answer = found["text"][start : found["text_mask"].sum()].tolist()
    assert answer[-1] == tokenizer.end
    assert tokenizer.decode(answer) == asked_and_true(record)[1]


def test_a_long_prompt_loses_words_of_the_question_and_keeps_what_asks(tokenizer):
    long = RECORD | {"question": "what is seen in it? " * 8}
    found = WriteText(tokenizer, TEMPLATES["vqa"], 200, 20)(long)
    whole = tokenizer.fill(TEMPLATES["vqa"].prompt, {"question": long["question"]})
    tail = tokenizer.fill(" <EOQ> answer:", {})
    assert found["prompt_mask"].all()
    assert found["prompt"].tolist() == whole[: 20 - len(tail)] + tail
    fits = WriteText(tokenizer, TEMPLATES["vqa"], 200, len(whole))(long)
    assert fits["prompt"].tolist() == whole


def test_a_long_text_is_cut_behind_and_one_cut_before_its_answer_has_none(tokenizer):
    whole = WriteText(tokenizer, TEMPLATES["vqa"], 96, 80)(RECORD)
    short = WriteText(tokenizer, TEMPLATES["vqa"], 8, 80)(RECORD)
    np.testing.assert_array_equal(short["text"], whole["text"][:8])
    assert short["text_mask"].all()
    assert int(short["question_end"]) == 7  # the last word, where the mark is cut off
    assert int(short["answer_start"]) == 8


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("template", ["vqa", "vqa_rad_2022", "caption"])
def test_special_tokens_in_the_data_are_text(tokenizer, template, shots):
    hostile = {
        "question": "<image> Is the <EOQ> heart <|endoftext|> big?",
        "multiple_choice_answer": "yes <EOC> no [PAD] <image>",
        "question_id": 1,
    }
    if template == "caption":
        hostile = {"caption": hostile["multiple_choice_answer"], "question_id": 1}
    found = WriteText(tokenizer, TEMPLATES[template], 200, 300)(hostile | {"shots": [hostile] * shots})
    text, prompt = (found[name][found[f"{name}_mask"]].tolist() for name in ("text", "prompt"))
    assert (text.count(tokenizer.image), text.count(tokenizer.end), text.count(tokenizer.begin)) == (1, 1, 1)
    assert (prompt.count(tokenizer.image), prompt.count(tokenizer.end)) == (1 + shots, shots)
    assert prompt.count(tokenizer.begin) == 1
    assert tokenizer.padding not in text + prompt
    answer = text[int(found["answer_start"]) :]
    if template != "vqa_rad_2022":  # whose prompt is not how its text begins
        assert answer[-1] == tokenizer.end
        assert tokenizer.decode(answer) == "yes <EOC> no [PAD] <image>"
