"""Accuracy of the chosen answers over a split: overall and by type, with confidence intervals, predictions kept by id."""

import contextlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxvqa.data import pipeline
from jaxvqa.data.answers import normalise_answer
from jaxvqa.data.sources import VqaSource, check_annotators
from jaxvqa.errors import DataError, os_errors
from jaxvqa.evaluators.few_shot import PromptExamples
from jaxvqa.evaluators.predicting import predict_all, predict_function
from jaxvqa.logs import log
from jaxvqa.metrics.bootstrap import percentages
from jaxvqa.metrics.question_only import question_only_answers
from jaxvqa.metrics.vqa import (
    eval_ai_results,
    fair_to_few,
    normalise_prediction,
    question_accuracy,
    question_accuracy_since_2021,
)
from jaxvqa.state import TrainState
from jaxvqa.tasks import AnswerTask

GROUPS = ("answer_type", "question_type", "open_closed")
"""Question features that accuracies are given by, where a data set has them."""


def _exact(predicted: str, annotators: list[str]) -> float:
    return float(any(normalise_answer(predicted) == normalise_answer(answer) for answer in annotators))


def annotators_of(question: Mapping[str, Any]) -> list[str]:
    """The right answers of a record: its annotators', or its caption if it has no question."""
    return list(question["answers"]) if "question" in question else [question["caption"]]


_soft = fair_to_few(question_accuracy)
_since_2021 = fair_to_few(question_accuracy_since_2021)

RULES: dict[str, Callable[[str, list[str]], float]] = {"soft": _soft, "counts": _soft, "exact": _exact}


class VqaEvaluator:
    """Predicts each question of a split exactly once and scores the answers.

    The rule is that of the data set's answers: `soft` (and `counts`, whose targets differ) is the official VQA accuracy over
    several annotators by the rule of 2015 to March 2021, beside which `accuracy_since_2021` is that of the newest script;
    `exact` compares with the annotated answer. See `jaxvqa.metrics.vqa`, also for what is done with fewer than four annotators.
    A split without answers (a test server's) yields no accuracy; its predictions are written all the same.

    A row of `config.evals` with a `train_split` yields controls too, `NAME/controls/…`, in percent of accuracy: `majority`, the
    most frequent train answer to every question; `question_only`, answers from the question's words by
    `jaxvqa.metrics.question_only`; `ceiling`, the most that the answer list allows.

    Attributes:
      name: the evaluator's.
      source: the questions.
    """

    groups: ClassVar[tuple[str, ...]] = GROUPS

    def __init__(
        self,
        name: str,
        config: ml_collections.ConfigDict,
        *,
        task: AnswerTask,
        open_source: Callable[[str], VqaSource],
        mesh: Mesh,
        workdir: Path,
        readers: pipeline.Readers,
    ):
        """Args: the evaluator's name and its row of `config.evals` (`split`, `batch_size`, `predict`), and what it reads."""
        self.name, self.source = name, open_source(config.split)
        self._task, self._mesh, self._workdir = task, mesh, workdir
        self._batch_size, self._readers = config.batch_size, readers
        check_annotators(self.source, task.answer_rule)
        self._rule: Callable[[str, list[str]], float] = RULES[task.answer_rule]
        self._predict = predict_function(name, config, task, mesh)
        self._answers = task.answers_among(config.predict)
        self._controls: dict[str, float] | None = None if "train_split" in config else {}
        self._train = _questions(open_source, config.get("train_split", ""))
        self._examples: PromptExamples | None = None
        if shots := task.shots(config.predict):
            self._examples = PromptExamples(
                shots,
                self.source,
                task=task,
                open_source=open_source,
                batch_size=config.batch_size,
                mesh=mesh,
                readers=readers,
            )

    def run(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Predicts and scores: see `predict` and `score`."""
        yield from self.score(int(state.step), self.predict(state))

    def predict(self, state: TrainState) -> dict[str, np.ndarray]:
        """What the predict function gives for every question, in the split's order."""
        return predict_all(
            self._predict,
            state,
            task=self._task,
            source=self.source,
            batch_size=self._batch_size,
            mesh=self._mesh,
            readers=self._readers,
            transforms=self._examples.transforms(state) if self._examples else None,
            what=f"evaluating {self.name}",
        )

    def rows(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """The predictions as they are written, scored where the split has answers; `outputs` as in `score`."""
        return [
            self._row(question, {key: np.asarray(values[i]) for key, values in outputs.items()})
            for i, question in enumerate(self.source.all_questions())
        ]

    def score(self, step: int, outputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
        """Yields accuracies in percent: `accuracy`, its interval `accuracy/low` and `accuracy/high`, and by group.

        Writes `predictions/NAME_STEP.jsonl` (one line a question) and `predictions/NAME_STEP_evalai.json` (what the
        EvalAI server takes), from process 0. A question without an answer counts as wrong; their share is `unanswered`.

        Args:
          step: of the state that predicted.
          outputs: `answer` int[N, K], best first, and its `probability` float[N, K]; an answer -1 is none. `votes` int[N, M]
            are those of M models that answered together.
        """
        rows = self.rows(outputs)
        if jax.process_index() == 0:
            self._write(step, rows)
        if scored := [row for row in rows if "annotators" in row]:
            yield from self._measures(scored)
            if self._controls is None:  # the same for every state
                self._controls = dict(self._controls_of(scored))
            yield from ((f"{self.name}/controls/{name}", value) for name, value in self._controls.items())
        if unanswered := [row["id"] for row in rows if row.get("unanswered")]:
            log.warning(
                "%s: %d of %d questions have no answer: %s …", self.name, len(unanswered), len(rows), unanswered[:5]
            )
            yield f"{self.name}/unanswered", 100 * len(unanswered) / len(rows)

    def _measures(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        """Values by name, from predictions with their `accuracy`; each question has an answer to compare with."""
        images = [row["image_id"] for row in scored]
        yield from percentages(f"{self.name}/accuracy", [row["accuracy"] for row in scored], images)
        if self._rule is _soft:
            newest = [0.0 if row.get("unanswered") else _since_2021(row["answer"], row["annotators"]) for row in scored]
            yield from percentages(f"{self.name}/accuracy_since_2021", newest, images)
        for group in self.groups:
            members = defaultdict(list)
            for row in scored:
                if row.get(group):
                    members[row[group]].append(row["accuracy"])
            for member in sorted(members):
                yield f"{self.name}/{group}/{member}", 100 * float(np.mean(members[member]))

    def _controls_of(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        """What answers without a picture reach, in percent, and what the answer list allows; `scored` as in `_measures`."""
        if self._train:
            asked = [question["question"] for question in self._train]
            answers = [question["multiple_choice_answer"] for question in self._train]
            majority = Counter(answers).most_common(1)[0][0]
            yield "majority", self._accuracy([majority] * len(scored), scored)
            guesses = question_only_answers(asked, answers, [row["question"] for row in scored])
            yield "question_only", self._accuracy(guesses, scored)
        if len(self._answers):
            known = {normalise_prediction(self._answer(i)) for i in range(len(self._answers))}
            possible = [[a for a in row["annotators"] if normalise_prediction(a) in known] for row in scored]
            best = [max(set(found), key=found.count, default="") for found in possible]
            yield "ceiling", self._accuracy(best, scored)

    def _accuracy(self, answers: list[str], scored: list[dict[str, Any]]) -> float:
        pairs = zip(answers, scored, strict=True)
        return 100 * float(np.mean([self._rule(answer, row["annotators"]) if answer else 0.0 for answer, row in pairs]))

    def _row(self, question: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> dict[str, Any]:
        answer, probability = self._chosen(output)
        row = {
            "id": int(question["question_id"]),
            "image_id": int(question["image_id"]),
            "question": question.get("question", ""),
            "answer": answer,
            "probability": round(probability, 6),
        }
        unanswered = "answer" in output and output["answer"][0] < 0
        if unanswered:
            row["unanswered"] = True
        if "votes" in output:
            row["votes"] = [self._answer(vote) for vote in output["votes"]]
        row |= {group: question[group] for group in self.groups if question.get(group)}
        if annotators := annotators_of(question):
            row["annotators"] = annotators
            row["accuracy"] = 0.0 if unanswered else self._rule(row["answer"], row["annotators"])
        return row

    def _chosen(self, output: Mapping[str, np.ndarray]) -> tuple[str, float]:
        """The answer as it is written down, and its probability."""
        return self._answer(output["answer"][0]), float(output["probability"][0])

    def _answer(self, index: Any) -> str:
        """An answer as it is written down: the text, empty for none."""
        return self._answers[int(index)] if index >= 0 else ""

    def _submission(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """The file that the data set's server takes, by what its name ends in; empty where it would take none."""
        return {"evalai.json": json.dumps(eval_ai_results({row["id"]: row["answer"] for row in rows}))}

    def _write(self, step: int, rows: list[dict[str, Any]]) -> None:
        folder = self._workdir / "predictions"
        with os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{self.name}_{step}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for ending, text in self._submission(rows).items():
                write_whole(folder / f"{self.name}_{step}_{ending}", text)


def _questions(open_source: Callable[[str], VqaSource], split: str) -> list[dict[str, Any]]:
    """The questions of a split; none if there is no such split, as in what VQA-Med 2021 gives out."""
    with contextlib.suppress(DataError):
        return list(open_source(split).all_questions()) if split else []
    return []


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name first, so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
