"""Answers from the question's words: what they give away is found, and nothing else."""

import numpy as np
import pytest

from jaxvqa.errors import DataError
from jaxvqa.metrics.question_only import question_only_answers

COLOURS = ("red", "blue", "green")


def test_words_that_tell_the_answer_are_found():
    nouns = [f"thing{i}" for i in range(10)]
    train = [f"Which colour has the {c} {noun}?" for noun in nouns for c in COLOURS]
    answers = [c for _ in nouns for c in COLOURS]
    asked = ["which COLOUR has the blue pebble", "The red thing3 has which colour?", "green"]
    assert question_only_answers(train, answers, asked) == ["blue", "red", "green"]


def test_the_order_of_words_can_be_read():
    train = ["left before right", "right before left"] * 5
    assert question_only_answers(train, ["l", "r"] * 5, train[:2]) == ["l", "r"]


def test_equal_questions_get_their_most_frequent_answer_and_unknown_ones_get_one_too():
    train, answers = ["is it large?"] * 5 + ["where?"] * 2, ["no", "yes", "yes", "yes", "no", "left", "left"]
    assert question_only_answers(train, answers, ["is it large?", "where?"]) == ["yes", "left"]
    assert question_only_answers(train, answers, ["pourquoi"])[0] in answers


def test_it_is_the_solution_of_the_regression():
    rng = np.random.default_rng(0)
    # One word a question, so that each vector has a single entry: the columns are apart, and each class's weight is
    # count / (questions with the word + ridge), whose largest is the most frequent answer.
    words = [f"w{i}" for i in rng.integers(0, 5, 300)]
    answers = [f"a{i}" for i in rng.integers(0, 3, 300)]
    for word in sorted(set(words)):
        own = [a for w, a in zip(words, answers, strict=True) if w == word]
        best = max(own.count(a) for a in set(own))
        (found,) = question_only_answers(words, answers, [word])
        assert own.count(found) == best


def test_no_train_question_is_an_error():
    with pytest.raises(DataError, match="at least one train question"):
        question_only_answers([], [], ["why?"])
