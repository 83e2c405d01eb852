"""Accuracy of the chosen answers over a split: overall and by type, with what answers without an image reach."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxvqa.data.answers import normalise_answer
from jaxvqa.errors import DataError
from jaxvqa.evaluators.answers import GROUPS, AnswersEvaluator, Question, Scoring, answer_rule, by_group, mean
from jaxvqa.evaluators.context import Context, Row
from jaxvqa.metrics.question_only import question_only_answers
from jaxvqa.metrics.score import Score, Scores, share
from jaxvqa.metrics.vqa import fair_to_few, normalise_prediction, question_accuracy, question_accuracy_since_2021
from jaxvqa.tasks.predictions import Prediction

Rule = Callable[[str, list[str]], float]
"""An answer and those of the annotators -> how right it is, in [0, 1]."""


def _exact(predicted: str, annotators: list[str]) -> float:
    return float(any(normalise_answer(predicted) == normalise_answer(answer) for answer in annotators))


_soft = fair_to_few(question_accuracy)
_since_2021 = fair_to_few(question_accuracy_since_2021)

RULES: dict[str, Rule] = {"soft": _soft, "counts": _soft, "exact": _exact}


def evaluator(context: Context) -> AnswersEvaluator:
    """Scores answers by the rule of the data set's, overall and by group, with controls; see `scoring`."""
    return AnswersEvaluator(context, scoring(context, context.predict.choices))


def scoring(context: Context, choices: Sequence[str], rule: Rule | None = None) -> Scoring:
    """`accuracy` by a rule, and by group.

    The rule is by default that of the data set's answers: `soft` (and `counts`, whose targets differ) is the official VQA
    accuracy over several annotators by the rule of 2015 to March 2021, beside which `accuracy_since_2021` is that of the newest
    script; `exact` compares with the annotated answer. See `jaxvqa.metrics.vqa`, also for what is done with fewer than four
    annotators. A question without an answer counts as wrong.

    A row of `config.evals` with a `train_split` yields controls too, in percent of accuracy: `controls/majority`, the most
    frequent train answer to every question; `controls/question_only`, answers from the question's words by
    `jaxvqa.metrics.question_only`; `controls/ceiling`, the most that `choices` allow.

    Raises:
      ConfigError: the rule compares several annotators, and the questions have one each.
    """
    of_data_set = RULES[answer_rule(context)]
    right = rule or of_data_set

    def fields(question: Question, prediction: Prediction, row: Row) -> Row:
        return {"accuracy": 0.0 if prediction.unanswered else right(row["answer"], row["annotators"])}

    def scores(rows: Sequence[Row]) -> Scores:
        yield mean("accuracy", rows)
        if right is _soft:
            newest = (0.0 if row.get("unanswered") else _since_2021(row["answer"], row["annotators"]) for row in rows)
            yield "accuracy_since_2021", Score.mean(list(newest), [row["image_id"] for row in rows])
        yield from by_group("accuracy", rows, GROUPS)

    def accuracy(answers: Sequence[str], rows: Sequence[Row]) -> float:
        pairs = zip(answers, rows, strict=True)
        return share([right(answer, row["annotators"]) if answer else 0.0 for answer, row in pairs])

    def controls(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
        if train := train_questions(context):
            asked = [question["question"] for question in train]
            answers = [question["multiple_choice_answer"] for question in train]
            yield "majority", accuracy([Counter(answers).most_common(1)[0][0]] * len(rows), rows)
            guesses = question_only_answers(asked, answers, [row["question"] for row in rows])
            yield "question_only", accuracy(guesses, rows)
        if len(choices):
            known = {normalise_prediction(answer) for answer in choices}
            possible = [[a for a in row["annotators"] if normalise_prediction(a) in known] for row in rows]
            yield "ceiling", accuracy([max(set(found), key=found.count, default="") for found in possible], rows)

    return Scoring(fields, scores, controls if "train_split" in context.config else Scoring.controls)


def train_questions(context: Context) -> list[dict[str, Any]]:
    """The questions of the row's `train_split`; none if there is no such split, as in what VQA-Med 2021 gives out."""
    split = context.config.get("train_split", "")
    with contextlib.suppress(DataError):
        return list(context.open_source(split).all_records()) if split else []
    return []
