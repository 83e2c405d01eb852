"""CMSA's golden cases of text: questions, answers, the start of the second embedding, scoring, learning rates."""

import hashlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from jaxvqa import optim
from jaxvqa.data.rad_text import (
    RadAnswerList,
    RadVocabulary,
    normalise_rad_answer,
    second_embedding,
    tfidf,
    tokenise,
)
from jaxvqa.metrics import vqa_rad
from jaxvqa.testing import weights
from jaxvqa.testing.golden import Sections
from jaxvqa.testing.metrics import rad_splits

Results = Iterator[tuple[str, Any, Any]]  # (label, ours, expected)

LIMIT = 1e-6
"""Largest absolute difference of an entry of the "tf-idf" matrix and of what it gives; the cases have 6 or 7 decimals."""

_FIRST_SAVED = 30


def _questions(cases: list[dict[str, Any]]) -> Results:
    # The dictionary is no part of the cases, but what they use of it follows from them.
    pad = max(max(case["ids"]) for case in cases)
    words = [f"<{i}>" for i in range(pad)]
    for case in cases:
        for token, i in zip(case["tokens"], case["ids"], strict=False):
            if i < pad - 1:  # pad - 1 stands for unknown words
                words[i] = token
    vocabulary = RadVocabulary(tuple(words))
    for case in cases:
        yield case["question"], tokenise(case["question"]), case["tokens"]
        yield f"ids of {case['question']}", vocabulary.encode(case["question"]).tolist(), case["ids"]


def _questions_by_the_data(cases: list[dict[str, Any]]) -> Results | str:
    splits = rad_splits()
    if isinstance(splits, str):
        return splits
    vocabulary = RadVocabulary.build(row["question"] for row in splits["train"])
    return ((case["question"], vocabulary.encode(case["question"]).tolist(), case["ids"]) for case in cases)


def _answers(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        yield repr(case["answer"]), normalise_rad_answer(case["answer"]), case["normalised"]


def _targets(cases: list[dict[str, Any]]) -> Results | str:
    splits = rad_splits()
    if isinstance(splits, str):
        return splits
    answers = RadAnswerList.build(row["answer"] for row in splits["train"])

    def results() -> Results:
        for case in cases:
            scores = answers.exact_scores([str(case["answer"])])
            labels = np.flatnonzero(scores)
            yield repr(case["answer"]), [labels.tolist(), scores[labels].tolist()], [case["labels"], case["scores"]]

    return results()


def _score_of_count(cases: list[list[Any]]) -> Results:
    answers = RadAnswerList(("yes",))
    for count, score in cases:
        yield f"{count} annotators", round(float(answers.soft_scores(["yes"] * count)[0]), 6), score


def _tfidf(case: dict[str, Any]) -> Results:
    vocabulary = RadVocabulary.build(case["questions"])
    yield "words", list(vocabulary.tokens), case["words"]
    matrix = tfidf(case["questions"], vocabulary)
    yield "matrix", _near(matrix, case["matrix"]), True
    table = second_embedding(matrix, weights.make_input(case["embedding"]))
    yield "second embedding", _near(table, case["second_embedding"]), True
    yield "padding row", not table[-1].any(), case["padding_row_is_zero"]


def _tfidf_vqa_rad(case: dict[str, Any]) -> Results | str:
    splits = rad_splits()
    if isinstance(splits, str):
        return splits
    questions = [row["question"] for row in splits["train"]]
    vocabulary = RadVocabulary.build(questions)

    def results() -> Results:
        matrix = tfidf(questions, vocabulary)
        yield "shape", list(matrix.shape), case["shape"]
        yield "cells that are not 0", int(np.count_nonzero(matrix)), case["nonzero"]
        together = set()
        for question in questions:
            ids = [vocabulary.index[token] for token in tokenise(question)]
            together |= {(a, b) for i, a in enumerate(ids) for j, b in enumerate(ids) if i != j}
        yield "cells", len(together), case["stored"]
        yield "cells where words stand together", set(zip(*np.nonzero(matrix), strict=True)) <= together, True
        for row, column, value in case["cells"]:
            yield f"cell {row}, {column}", _near(matrix[row, column], value), True
        yield "sums of the rows", _near(matrix.sum(axis=1), np.ones(len(vocabulary))), True

    return results()


def _near(ours: Any, expected: Any) -> bool:
    ours, expected = np.asarray(ours), np.asarray(expected)
    return ours.shape == expected.shape and bool(np.all(np.abs(ours - expected) <= LIMIT))


def _evaluation(content: dict[str, Any]) -> Results:
    rows, organs = [], []
    names = tuple(f"answer {i}" for i in range(len(content["rows"][0]["logits"])))
    for number, case in enumerate(content["rows"]):
        chosen = names[int(np.argmax(case["logits"]))]
        truth = "another answer" if case["label"] is None else names[case["label"]]
        row = {name: case[name] for name in ("answer_type", "question_type", "phrase_type")}
        rows.append(row | {"question_id": number, "answer": chosen, "multiple_choice_answer": truth})
        if case["phrase_type"] == "freeform":
            organs.append(int(np.argmax(case["modal_logits"])) == case["organ"])
    summary = vqa_rad.summarise(rows, names, "original_308")

    def counts(score: vqa_rad.Score) -> list[Any]:
        return [score.count, score.answerable, score.right, round(score.accuracy, 1)]

    def theirs(score: dict[str, float]) -> list[Any]:
        return [score["count"], score["real"], score["true"], score["score_percent"]]

    ours = {**summary.by_answer_type, "ALL": summary.overall}
    by_type = {**summary.by_both, "ALL": summary.by_question_type}
    for name, expected in content["result"].items():
        yield name, counts(ours[name]), theirs(expected)
    for name, table in content["question_types_with_count"].items():
        yield f"{name}, question types", list(by_type[name]), list(table)
        for kind, expected in table.items():
            yield f"{name}, {kind}", counts(by_type[name][kind]), theirs(expected)
            yield f"{name}, {kind}, in the list", round(by_type[name][kind].ceiling, 1), expected["real_percent"]
    yield "modality accuracy", sum(organs) / len(organs), content["modality_accuracy"]


def _schedule(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        schedule = {"name": "epochs", "table": optim.cmsa_table(case["epochs"])}
        config = ml_collections.ConfigDict({"lr": 0.005, "schedule": schedule})
        rate = optim.make_schedule(config, data_size=1, batch_size=1, total_steps=case["epochs"])
        yield f"{case['epochs']} epochs", _near([float(rate(i)) for i in range(case["epochs"])], case["lr"]), True
        saved = range(_FIRST_SAVED, case["epochs"])
        yield f"{case['epochs']} epochs, saved", [saved[0], saved[-1], len(saved)], case["saved_epochs"]


def _lists(case: dict[str, Any]) -> Results | str:
    splits = rad_splits()
    if isinstance(splits, str):
        return splits

    def results() -> Results:
        yield "train", len(splits["train"]), case["train"]
        yield "test", len(splits["test"]), case["test"]
        lists = {
            "words": RadVocabulary.build(row["question"] for row in splits["train"]).tokens,
            "answers": RadAnswerList.build(row["answer"] for row in splits["train"]).answers,
        }
        for name, ours in lists.items():
            yield name, list(ours), case[name]
            yield f"number of {name}", len(ours), case[f"n_{name}"]
            digest = hashlib.sha256("\n".join(ours).encode()).hexdigest()
            yield f"SHA-256 of {name}", digest, case[f"{name}_sha256"]

    return results()


SECTIONS: Sections = {
    "questions": (_questions, _questions_by_the_data),
    "answers": (_answers,),
    "targets": (_targets,),
    "score_of_count": (_score_of_count,),
    "tfidf": (_tfidf,),
    "tfidf_vqa_rad": (_tfidf_vqa_rad,),
    "evaluation": (_evaluation,),
    "schedule": (_schedule,),
    "vqa_rad": (_lists,),
}
