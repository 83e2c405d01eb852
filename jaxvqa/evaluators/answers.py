"""Evaluation of answers and texts: each example predicted once, written down with its id, and scored by one scoring."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvqa.data.data_set import check_annotators
from jaxvqa.errors import ConfigError
from jaxvqa.evaluators.context import Context, Row
from jaxvqa.evaluators.few_shot import with_examples
from jaxvqa.logs import log
from jaxvqa.metrics.score import Score, Scores, share
from jaxvqa.metrics.vqa import eval_ai_results
from jaxvqa.report.numbers import percent
from jaxvqa.report.tables import Table, Values, cell
from jaxvqa.state import TrainState
from jaxvqa.tasks import Answers
from jaxvqa.tasks.predictions import Predict, Prediction
from jaxvqa.types import Config

Question = Mapping[str, Any]

GROUPS = ("answer_type", "question_type", "open_closed")
"""Question features that accuracies are given by, where a data set has them."""


def _evalai(rows: Sequence[Row]) -> dict[str, str]:
    """What the EvalAI server takes."""
    return {"evalai.json": json.dumps(eval_ai_results({row["id"]: row["answer"] for row in rows}))}


@dataclass(frozen=True)
class Scoring:
    """How the predictions of a split are scored: what differs between evaluations of answers.

    Attributes:
      fields: what a row holds besides, of a question with annotated answers, which are the row's `annotators`.
      scores: what comes out of all rows that have annotators, by name.
      controls: what answers without an image reach, in percent; the same for every state.
      submission: the files that the data set's server takes, by what their names end in; none where it would take none.
      of_outputs: what comes out of the predictions of all examples, with or without annotators.
      kept: features of a question that are written down with its prediction, where a data set has them.
    """

    fields: Callable[[Question, Prediction, Row], Row]
    scores: Callable[[Sequence[Row]], Scores]
    controls: Callable[[Sequence[Row]], Iterable[tuple[str, float]]] = lambda rows: ()
    submission: Callable[[Sequence[Row]], dict[str, str]] = _evalai
    of_outputs: Callable[[Sequence[Prediction]], Scores] = lambda predictions: iter(())
    kept: Sequence[str] = GROUPS


class AnswersEvaluator:
    """Predicts each example of a split once, writes the predictions, and scores them.

    A split without answers (a test server's) yields no accuracy; its predictions are written all the same.

    Attributes:
      name: the evaluation's.
      source: the questions.
      predict: the predict function, with the answers as they are written down.
    """

    def __init__(self, context: Context, scoring: Scoring, predict: Predict | None = None):
        """Args: what the evaluation works with, how it scores, and the predict function if it is not the context's own."""
        self.name, self.source, self.predict = context.name, context.source, predict or context.predict
        self._context, self._scoring = context, scoring
        self._transforms: Callable[[TrainState], Any] = with_examples(context, self.predict.shots)
        self._controls: dict[str, Score] | None = None

    def run(self, state: TrainState) -> Scores:
        """Predicts and scores: see `outputs` and `score`."""
        yield from self.score(int(state.step), self.predictions(self.outputs(state)))

    def outputs(self, state: TrainState) -> dict[str, np.ndarray]:
        """What the predict function gives for every example, in the split's order."""
        return self._context.outputs(state, predict=self.predict, transforms=self._transforms(state))

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[Prediction]:
        """The same example by example."""
        rows = zip(*outputs.values(), strict=True)
        return [self.predict.prediction({k: np.asarray(v) for k, v in zip(outputs, row, strict=True)}) for row in rows]

    def rows(self, predictions: Sequence[Prediction]) -> list[Row]:
        """The predictions as they are written, scored where the split has answers."""
        return [self._row(*pair) for pair in zip(self.source.all_records(), predictions, strict=True)]

    def score(self, step: int, predictions: Sequence[Prediction]) -> Scores:
        """Writes `predictions/NAME_STEP.jsonl` (one line an example) and what servers take, and yields the scores by name.

        A question without an answer counts as wrong; their share is `unanswered`.

        Args:
          step: of the state that predicted.
          predictions: of each example, in the split's order.
        """
        rows = self.rows(predictions)
        self._context.write(step, rows, self._scoring.submission(rows))
        scores: dict[str, Score] = {}
        if scored := [row for row in rows if "annotators" in row]:
            scores = dict(self._scoring.scores(scored))
            if self._controls is None:
                found = self._scoring.controls(scored)
                self._controls = {f"controls/{name}": Score(value, n=len(scored)) for name, value in found}
            scores |= self._controls
        if unanswered := [row["id"] for row in rows if row.get("unanswered")]:
            log.warning(
                "%s: %d of %d questions have no answer: %s …", self.name, len(unanswered), len(rows), unanswered[:5]
            )
            scores["unanswered"] = Score(100 * len(unanswered) / len(rows), n=len(rows))
        scores |= dict(self._scoring.of_outputs(predictions))
        yield from ((f"{self.name}/{name}", score) for name, score in scores.items())

    def _row(self, question: Question, prediction: Prediction) -> Row:
        row = {
            "id": int(question["question_id"]),
            "image_id": int(question["image_id"]),
            "question": question.get("question", ""),
            "answer": prediction.answer,
            "probability": round(prediction.probability, 6),
        }
        if prediction.unanswered:
            row["unanswered"] = True
        if prediction.votes:
            row["votes"] = list(prediction.votes)
        row |= {group: question[group] for group in self._scoring.kept if question.get(group)}
        if annotators := annotators_of(question):
            row["annotators"] = annotators
            row |= self._scoring.fields(question, prediction, row)
        return row


def answer_rule(context: Context) -> str:
    """The rule by which a task's answers are scored, checked to go with the questions.

    Raises:
      ConfigError: the task gives no answers; or the rule compares several annotators, and the questions have one each.
    """
    if not isinstance(context.task, Answers):
        raise ConfigError(
            f"config.evals.{context.name}.type is {context.config.get('type')!r}, which scores answers; the predict function "
            f"{context.config.predict!r} of this task gives none. Take the type 'scores'."
        )
    check_annotators(context.source, context.task.answer_rule)
    return context.task.answer_rule


def annotators_of(question: Question) -> list[str]:
    """The right answers of a record: its annotators', or its caption if it has no question."""
    return list(question["answers"]) if "question" in question else [question["caption"]]


def mean(name: str, rows: Sequence[Row]) -> tuple[str, Score]:
    """The mean of a field of the rows, which is in [0, 1], with its interval over images."""
    return name, Score.mean([row[name] for row in rows], [row["image_id"] for row in rows])


def by_group(name: str, rows: Sequence[Row], groups: Sequence[str]) -> Iterator[tuple[str, Score]]:
    """The mean of a field over the rows of each member of each group: `GROUP/MEMBER`."""
    for group in groups:
        members = defaultdict(list)
        for row in rows:
            if row.get(group):
                members[row[group]].append(row[name])
        for member, values in sorted(members.items()):
            yield f"{group}/{member}", Score(share(values), n=len(values))


# --- in a report ---------------------------------------------------------------------------------------------------------

CONTROL_WORDS = {
    "ceiling": "the most that the answer list allows",
    "same_image_and_type": "the most frequent train answer to the same image and question type: the split's leak",
    "question_only": "a linear classifier of the question's words, which reads no image",
    "same_question": "the most frequent train answer to the same question, else to its type",
    "majority_of_type": "the most frequent train answer to the question's type",
    "majority": "the most frequent train answer",
}


def rule_table(name: str, config: Config, values: Values) -> Iterator[Table]:
    """VQA accuracy by the two rules that the official script has had (`jaxvqa.metrics.vqa`)."""
    if f"{name}/accuracy_since_2021" not in values:
        return
    old = "the rule of MCAN's and RWSAN's numbers, and of this report"
    new = "nothing is normalised where all annotators agree, both sides in full otherwise"
    rows = (
        ("2015 to March 2021", old, cell(values, f"{name}/accuracy")),
        ("since March 2021", new, cell(values, f"{name}/accuracy_since_2021")),
    )
    yield Table("VQA accuracy by the official script's two rules", ("rule", "what it is", "accuracy"), rows)


def control_table(name: str, config: Config, values: Values) -> Iterator[Table]:
    """The model beside a black image and beside answers that are only counted, all questions; VQA-RAD by the strict rule."""
    found = {key: values[f"{name}/controls/{key}"] for key in CONTROL_WORDS if f"{name}/controls/{key}" in values}
    if not found:
        return
    rows = [("this model", "", cell(values, f"{name}/accuracy"))]
    for other, row in config["evals"].items():
        same_split = row.get("split") == config["evals"][name].get("split")
        if row.get("predict") == "answers_blank" and same_split and f"{other}/accuracy" in values:
            rows.append((other, "this model, shown a black image", cell(values, f"{other}/accuracy")))
    rows += [(key, CONTROL_WORDS[key], percent(value)) for key, value in found.items()]
    yield Table("Beside answers that need no image", ("", "what it is", "accuracy"), rows)
