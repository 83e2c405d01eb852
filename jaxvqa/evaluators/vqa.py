"""Accuracy of the chosen answers over a split: overall and by type, with confidence intervals, predictions kept by id."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxvqa.checkpoints import storage_errors
from jaxvqa.data import pipeline
from jaxvqa.data.answers import normalise_answer
from jaxvqa.data.sources import VqaSource
from jaxvqa.errors import ConfigError
from jaxvqa.metrics.bootstrap import confidence_interval
from jaxvqa.metrics.vqa import eval_ai_results, question_accuracy
from jaxvqa.sharding import batch_sharding, check_batch_size
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task

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

    def __init__(
        self,
        name: str,
        config: ml_collections.ConfigDict,
        *,
        task: Task,
        source: VqaSource,
        mesh: Mesh,
        workdir: Path,
        rule: str,
        readers: pipeline.Readers,
    ):
        """Args: the evaluator's name and its row of `config.evals` (`batch_size`, `predict`), and what it reads."""
        check_batch_size(config.batch_size, 1, mesh, f"config.evals.{name}.batch_size")
        if config.predict not in task.predict_fns:
            raise ConfigError(
                f"config.evals.{name}.predict is {config.predict!r}; the task has {', '.join(task.predict_fns)}."
            )
        self.name, self._task, self._source, self._mesh, self._workdir = name, task, source, mesh, workdir
        self._order = pipeline.EvalOrder(len(source), config.batch_size)
        self._readers, self._rule = readers, RULES[rule]
        self._predict = jax.jit(task.predict_fns[config.predict])

    def run(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields accuracies in percent: `accuracy`, its interval `accuracy/low` and `accuracy/high`, and by group.

        Writes `predictions/NAME_STEP.jsonl` (one line a question) and `predictions/NAME_STEP_evalai.json` (what the
        EvalAI server takes), from process 0.
        """
        outputs = self._predict_all(state)
        rows = [
            self._row(question, {key: values[i] for key, values in outputs.items()})
            for i, question in enumerate(self._source.all_questions())
        ]
        if jax.process_index() == 0:
            self._write(int(state.step), rows)
        scored = [row for row in rows if "accuracy" in row]
        if not scored:
            return
        accuracies = np.asarray([row["accuracy"] for row in scored])
        yield f"{self.name}/accuracy", 100 * float(accuracies.mean())
        low, high = confidence_interval(accuracies)
        yield f"{self.name}/accuracy/low", 100 * low
        yield f"{self.name}/accuracy/high", 100 * high
        for group in GROUPS:
            members = defaultdict(list)
            for row in scored:
                if row.get(group):
                    members[row[group]].append(row["accuracy"])
            for member in sorted(members):
                yield f"{self.name}/{group}/{member}", 100 * float(np.mean(members[member]))

    def _predict_all(self, state: TrainState) -> dict[str, np.ndarray]:
        load = pipeline.LoadBatch(
            self._source, self._order, self._task.transforms(), jax.process_index(), jax.process_count()
        )
        host = pipeline.batches(load, 0, self._order.steps, self._readers)
        kept = []
        for step, (batch, _) in enumerate(
            pipeline.to_device(host, batch_sharding(self._mesh), tuple(self._task.batch_keys))
        ):
            predicted = self._predict(state.eval_params, state.extra, batch)
            real = self._order(step) >= 0
            gathered = (
                multihost_utils.process_allgather(predicted, tiled=True)
                if jax.process_count() > 1
                else jax.device_get(predicted)
            )
            kept.append({key: np.asarray(value)[real] for key, value in gathered.items()})
        return {key: np.concatenate([k[key] for k in kept]) for key in kept[0]}

    def _row(self, question: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> dict[str, Any]:
        answers = self._task.assets["answers"]
        row = {
            "id": int(question["question_id"]),
            "image_id": int(question["image_id"]),
            "question": question["question"],
            "answer": answers[int(output["answer"][0])],
            "probability": round(float(output["probability"][0]), 6),
        }
        row |= {group: question[group] for group in GROUPS if question.get(group)}
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
