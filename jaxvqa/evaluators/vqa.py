"""Accuracy of the chosen answers over a split: overall and by type, with confidence intervals, predictions kept by id."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jaxvqa.checkpoints import storage_errors
from jaxvqa.data import pipeline
from jaxvqa.data.answers import normalise_answer
from jaxvqa.data.sources import VqaSource
from jaxvqa.evaluators.predicting import predict_all, predict_function
from jaxvqa.metrics.bootstrap import confidence_interval
from jaxvqa.metrics.vqa import eval_ai_results, question_accuracy
from jaxvqa.state import TrainState
from jaxvqa.tasks import AnswerTask

GROUPS = ("answer_type", "question_type", "open_closed")
"""Question features that accuracies are given by, where a data set has them."""


def _exact(predicted: str, annotators: list[str]) -> float:
    return float(any(normalise_answer(predicted) == normalise_answer(answer) for answer in annotators))


RULES = {"soft": question_accuracy, "exact": _exact}


class VqaEvaluator:
    """Predicts each question of a split exactly once and scores the answers.

    The rule is that of the data set's answers: `soft` is the official VQA accuracy over ten annotators, `exact` compares
    with the annotated answer. A split without answers (a test server's) yields no accuracy; its predictions are
    written all the same.
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
        self.name, self._task, self._mesh, self._workdir = name, task, mesh, workdir
        self._source = open_source(config.split)
        self._batch_size, self._readers, self._rule = config.batch_size, readers, RULES[task.answer_rule]
        self._predict = predict_function(name, config, task, mesh)

    def run(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields accuracies in percent: `accuracy`, its interval `accuracy/low` and `accuracy/high`, and by group.

        Writes `predictions/NAME_STEP.jsonl` (one line a question) and `predictions/NAME_STEP_evalai.json` (what the
        EvalAI server takes), from process 0.
        """
        outputs = predict_all(
            self._predict,
            state,
            task=self._task,
            source=self._source,
            batch_size=self._batch_size,
            mesh=self._mesh,
            readers=self._readers,
        )
        rows = [
            self._row(question, {key: values[i] for key, values in outputs.items()})
            for i, question in enumerate(self._source.all_questions())
        ]
        if jax.process_index() == 0:
            self._write(int(state.step), rows)
        scored = [row for row in rows if "accuracy" in row]
        if scored:
            yield from self._measures(scored)

    def _measures(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        """Values by name, from predictions with their `accuracy`."""
        accuracies = np.asarray([row["accuracy"] for row in scored])
        yield f"{self.name}/accuracy", 100 * float(accuracies.mean())
        low, high = confidence_interval(accuracies)
        yield f"{self.name}/accuracy/low", 100 * low
        yield f"{self.name}/accuracy/high", 100 * high
        for group in self.groups:
            members = defaultdict(list)
            for row in scored:
                if row.get(group):
                    members[row[group]].append(row["accuracy"])
            for member in sorted(members):
                yield f"{self.name}/{group}/{member}", 100 * float(np.mean(members[member]))

    def _row(self, question: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> dict[str, Any]:
        answers = self._task.assets["answers"]
        row = {
            "id": int(question["question_id"]),
            "image_id": int(question["image_id"]),
            "question": question["question"],
            "answer": answers[int(output["answer"][0])],
            "probability": round(float(output["probability"][0]), 6),
        }
        row |= {group: question[group] for group in self.groups if question.get(group)}
        if len(question["answers"]):
            row["annotators"] = list(question["answers"])
            row["accuracy"] = self._rule(row["answer"], row["annotators"])
        return row

    def _write(self, step: int, rows: list[dict[str, Any]]) -> None:
        folder = self._workdir / "predictions"
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{self.name}_{step}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            results = eval_ai_results({row["id"]: row["answer"] for row in rows})
            write_whole(folder / f"{self.name}_{step}_evalai.json", json.dumps(results))


def write_whole(path: Path, text: str) -> None:
    """Writes a file under another name first, so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
