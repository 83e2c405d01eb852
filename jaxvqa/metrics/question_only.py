"""Answers from the words of the question alone: what a data set gives away before anyone looks at an image. NumPy only."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from jaxvqa.errors import DataError

MOST_FEATURES = 4096
_BLOCK = 4096


def question_only_answers(
    train: Sequence[str], answers: Sequence[str], questions: Sequence[str], *, ridge: float = 1.0
) -> list[str]:
    """Answers questions by ridge regression from their words and pairs of words to the train answers.

    Each answer of the train split is a class with targets 0 and 1; the class with the largest prediction is the answer. A
    question is the vector of its single words and neighbouring pairs, with marks at both ends, weighted by the inverse document
    frequency, of length 1. The solution is exact, so that there is no seed and nothing to tune to the questions.

    Args:
      train: train questions.
      answers: their answers, in the form that is to be returned.
      questions: the questions to answer.
      ridge: weight of the squared norm of the solution.

    Raises:
      DataError: there is no train question.
    """
    if not train:
        raise DataError("Answers from the question alone need at least one train question.")
    seen = Counter(feature for question in train for feature in _features(question))
    kept = [feature for feature, count in seen.most_common(MOST_FEATURES) if count > 1] or list(seen)[:MOST_FEATURES]
    columns = {feature: column for column, feature in enumerate(kept)}
    weights = np.log(len(train) / np.asarray([seen[feature] for feature in kept], np.float64)) + 1
    classes = list(dict.fromkeys(answers))
    place = {answer: i for i, answer in enumerate(classes)}

    squares = ridge * np.eye(len(kept))
    products = np.zeros((len(kept), len(classes)))
    for start in range(0, len(train), _BLOCK):
        vectors = _vectors(train[start : start + _BLOCK], columns, weights)
        squares += vectors.T @ vectors
        targets = np.zeros((len(vectors), len(classes)), np.float32)
        targets[np.arange(len(vectors)), [place[answer] for answer in answers[start : start + _BLOCK]]] = 1
        products += vectors.T @ targets
    solution = np.linalg.solve(squares, products).astype(np.float32)

    chosen: list[str] = []
    for start in range(0, len(questions), _BLOCK):
        predictions = _vectors(questions[start : start + _BLOCK], columns, weights) @ solution
        chosen += [classes[i] for i in predictions.argmax(axis=1)]
    return chosen


def _features(question: str) -> set[str]:
    words = ["<", *re.findall(r"[a-z0-9]+", question.lower()), ">"]
    return {*words[1:-1], *map(" ".join, itertools.pairwise(words))}


def _vectors(questions: Iterable[str], columns: dict[str, int], weights: np.ndarray) -> np.ndarray:
    """float32[questions, features]; a question without a known word is 0."""
    rows = [[columns[feature] for feature in _features(question) if feature in columns] for question in questions]
    vectors = np.zeros((len(rows), len(columns)), np.float32)
    for row, found in zip(vectors, rows, strict=True):
        row[found] = weights[found]
        row /= max(float(np.linalg.norm(row)), 1e-12)
    return vectors
