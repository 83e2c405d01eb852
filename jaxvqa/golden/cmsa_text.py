"""CMSA's golden cases of text: questions, answers, the start of the second embedding, scoring, learning rates."""

import hashlib
from typing import Any

import ml_collections
import numpy as np

from jaxvqa import optim
from jaxvqa.data.rad_text import (
    MAX_TOKENS,
    RadAnswerList,
    RadVocabulary,
    normalise_rad_answer,
    second_embedding,
    tfidf,
    tokenise,
)
from jaxvqa.golden import weights
from jaxvqa.golden.cases import Results
from jaxvqa.golden.metrics import rad_splits
from jaxvqa.golden.runner import Check, Sections
from jaxvqa.metrics import vqa_rad

LIMIT = 1e-6
"""Largest absolute difference of an entry of the "tf-idf" matrix and of what it gives; the cases have 6 or 7 decimals."""

_FIRST_SAVED = 30

_ABOUT_LISTS = ("words", "n_words", "words_sha256", "answers", "n_answers", "answers_sha256")


def _questions(cases: list[dict[str, Any]]) -> Results:
    # The dictionary is not part of the cases, but what they use of it follows from them.
    pad = max((i for case in cases for i in case["ids"]), default=0)
    words = [f"<{i}>" for i in range(pad)]
    for case in cases:
        for token, i in zip(case["tokens"], case["ids"], strict=False):
            if i < pad - 1:  # pad - 1 stands for unknown words
                words[i] = token
    vocabulary = RadVocabulary(tuple(words))
    for case in cases:
        yield case["question"], tokenise(case["question"]), case["tokens"]
        yield f"ids of {case['question']}", vocabulary.encode(case["question"], MAX_TOKENS).tolist(), case["ids"]


def _questions_by_the_data(cases: list[dict[str, Any]]) -> Results:
    splits = rad_splits()
    vocabulary = RadVocabulary.build(row["question"] for row in splits["train"])
    for case in cases:
        yield case["question"], vocabulary.encode(case["question"], MAX_TOKENS).tolist(), case["ids"]


def _answers(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        yield repr(case["answer"]), normalise_rad_answer(case["answer"]), case["normalised"]


def _targets(cases: list[dict[str, Any]]) -> Results:
    splits = rad_splits()
    answers = RadAnswerList.build(row["answer"] for row in splits["train"])
    for case in cases:
        scores = answers.exact_scores([str(case["answer"])])
        labels = np.flatnonzero(scores)
        yield repr(case["answer"]), [labels.tolist(), scores[labels].tolist()], [case["labels"], case["scores"]]


def _score_of_count(cases: list[list[Any]]) -> Results:
    answers = RadAnswerList(("yes",))
    for count, score in cases:
        yield f"{count} annotators", round(float(answers.soft_scores(["yes"] * count)[0]), 6), score


def _tfidf(case: dict[str, Any]) -> Results:
    vocabulary = RadVocabulary.build(case["questions"])
    if "words" in case:
        yield "words", list(vocabulary.tokens), case["words"]
    matrix = tfidf(case["questions"], vocabulary)
    if "matrix" in case:
        yield "matrix", _near(matrix, case["matrix"]), True
    if "embedding" not in case:
        return
    table = second_embedding(matrix, weights.make_input(case["embedding"]))
    yield "second embedding", _near(table, case["second_embedding"]), True
    if "padding_row_is_zero" in case:
        yield "padding row", not table[-1].any(), case["padding_row_is_zero"]


def _tfidf_vqa_rad(case: dict[str, Any]) -> Results:
    splits = rad_splits()
    questions = [row["question"] for row in splits["train"]]
    vocabulary = RadVocabulary.build(questions)
    matrix = tfidf(questions, vocabulary)
    together = set()
    for question in questions:
        ids = [vocabulary.index[token] for token in tokenise(question)]
        together |= {(a, b) for i, a in enumerate(ids) for j, b in enumerate(ids) if i != j}
    ours = {"shape": list(matrix.shape), "nonzero": int(np.count_nonzero(matrix)), "stored": len(together)}
    yield from ((name, value, case[name]) for name, value in ours.items() if name in case)
    yield "cells where words stand together", set(zip(*np.nonzero(matrix), strict=True)) <= together, True
    for row, column, value in case.get("cells", ()):
        yield f"cell {row}, {column}", _near(matrix[row, column], value), True
    yield "sums of the rows", _near(matrix.sum(axis=1), np.ones(len(vocabulary))), True


def _near(ours: Any, expected: Any) -> bool:
    ours, expected = np.asarray(ours), np.asarray(expected)
    return ours.shape == expected.shape and bool(np.all(np.abs(ours - expected) <= LIMIT))


def _evaluation(content: dict[str, Any]) -> Results:
    rows, organs = [], []
    names = tuple(f"answer {i}" for i in range(max((len(row["logits"]) for row in content["rows"]), default=0)))
    for number, case in enumerate(content["rows"]):
        chosen = names[int(np.argmax(case["logits"]))]
        truth = "another answer" if case["label"] is None else names[case["label"]]
        row = {name: case[name] for name in ("answer_type", "question_type", "phrase_type")}
        rows.append(row | {"question_id": number, "answer": chosen, "multiple_choice_answer": truth})
        if case["phrase_type"] == "freeform" and "modal_logits" in case:
            organs.append(int(np.argmax(case["modal_logits"])) == case["organ"])
    summary = vqa_rad.summarise(rows, names, "original_308")

    def compared(score: vqa_rad.Counts, expected: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ours and theirs, of what the case has: `real_percent` of a whole is always 0 there.

        docs/originals/cmsa.md, section 13, quirk 18.
        """
        ours: dict[str, float] = {"count": score.count, "real": score.answerable, "true": score.right}
        ours["score_percent"] = round(score.accuracy, 1)
        both = ours.keys() & expected.keys()
        return {name: ours[name] for name in both}, {name: expected[name] for name in both}

    ours = {**summary.by_answer_type, "ALL": summary.overall}
    by_type = {**summary.by_both, "ALL": summary.by_question_type}
    for name, expected in content.get("result", {}).items():
        yield name, *compared(ours[name], expected)
    for name, table in content.get("question_types_with_count", {}).items():
        yield f"{name}, question types", list(by_type[name]), list(table)
        for kind, expected in table.items():
            yield f"{name}, {kind}", *compared(by_type[name][kind], expected)
            if "real_percent" in expected:
                yield f"{name}, {kind}, in the list", round(by_type[name][kind].ceiling, 1), expected["real_percent"]
    if "modality_accuracy" in content:
        yield "modality accuracy", sum(organs) / max(len(organs), 1), content["modality_accuracy"]


def _schedule(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        epochs = case["epochs"]
        schedule = {"name": "epochs", "table": optim.cmsa_table(epochs)}
        config = ml_collections.ConfigDict({"lr": case.get("base_lr", 0.005), "schedule": schedule})
        rate = optim.make_schedule(config, data_size=1, batch_size=1, total_steps=epochs)
        if "lr" in case:
            yield f"{epochs} epochs", _near([float(rate(i)) for i in range(epochs)], case["lr"]), True
        if "saved_epochs" in case:
            # First, last, and how many; a run that ends before the first has none, however the case writes that.
            saved, expected = range(_FIRST_SAVED, epochs), case["saved_epochs"]
            ours = [saved[0], saved[-1], len(saved)] if saved else []
            yield f"{epochs} epochs, saved", ours, expected if expected and expected[-1] else []


def _lists(case: dict[str, Any]) -> Results:
    splits = rad_splits()
    ours: dict[str, Any] = {"train": len(splits["train"]), "test": len(splits["test"])}
    lists = {
        "words": RadVocabulary.build(row["question"] for row in splits["train"]).tokens,
        "answers": RadAnswerList.build(row["answer"] for row in splits["train"]).answers,
    }
    for name, values in lists.items():
        digest = hashlib.sha256("\n".join(values).encode()).hexdigest()
        ours |= {name: list(values), f"n_{name}": len(values), f"{name}_sha256": digest}
    yield from ((name, value, case[name]) for name, value in ours.items() if name in case)


SECTIONS: Sections = {
    "questions": (
        Check.of(_questions, "question", "tokens", "ids"),
        Check.of(_questions_by_the_data, "question", "ids"),
    ),
    "answers": (Check.of(_answers, "answer", "normalised"),),
    "targets": (Check.of(_targets, "answer", "labels", "scores"),),
    "score_of_count": (Check.of(_score_of_count),),
    "tfidf": (
        Check.of(
            _tfidf,
            *("questions", "words", "matrix", "embedding", "second_embedding"),
            *("second_embedding_trainable", "padding_row_is_zero"),
        ),
    ),
    "tfidf_vqa_rad": (Check.of(_tfidf_vqa_rad, "shape", "nonzero", "stored", "cells"),),
    "evaluation": (Check.of(_evaluation, "rows", "result", "question_types_with_count", "modality_accuracy"),),
    "schedule": (Check.of(_schedule, "epochs", "lr", "saved_epochs", "base_lr"),),
    "vqa_rad": (Check.of(_lists, "sha256_of", "train", "test", *_ABOUT_LISTS),),
}
