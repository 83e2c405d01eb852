"""VQA-RAD by the protocols of its literature, side by side, with what no model has to earn beside them."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxvqa.data.rad_text import normalise_rad_answer
from jaxvqa.evaluators.vqa import VqaEvaluator
from jaxvqa.metrics import vqa_rad
from jaxvqa.metrics.bootstrap import percentages
from jaxvqa.metrics.question_only import question_only_answers

CONTROLS = {
    "majority": ((),),
    "majority_of_type": vqa_rad.TYPE,
    "same_question": (("question",), *vqa_rad.TYPE),
    "same_image_and_type": vqa_rad.IMAGE_AND_TYPE,
}
"""Name -> fields of `jaxvqa.metrics.vqa_rad.majority_answers`: answers by counting train answers, with no model at all."""


class VqaRadEvaluator(VqaEvaluator):
    """Accuracy on all questions under the strict rule, then every protocol of `jaxvqa.metrics.vqa_rad.PROTOCOLS`.

    A protocol's values are `NAME/PROTOCOL`, with an interval, its `closed` and `open`, `question_type/…` and `organ/…`.
    `NAME/controls/…` are `CONTROLS`, what counting reaches under the strict rule on all questions,
    and those of `VqaEvaluator`.
    """

    groups: ClassVar[tuple[str, ...]] = ("answer_type", "question_type", "phrase_type", "organ")

    def __init__(self, name: str, config: Any, **options: Any):
        """Args: as for `VqaEvaluator`; the row of `config.evals` has a `train_split` here, always."""
        super().__init__(name, config, **options)
        self._truth = {int(q["question_id"]): q for q in self.source.all_questions()}

    def _row(self, question: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> dict[str, Any]:
        row = super()._row(question, output)
        truth = normalise_rad_answer(question["multiple_choice_answer"])
        row["accuracy"] = float(row["answer"] == truth)
        row["answerable"] = truth in self._answers
        if "organ_right" in output:
            row["organ_right"] = float(output["organ_right"])
        return row

    def _measures(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        yield from self._share("accuracy", {row["id"]: row["accuracy"] for row in scored})
        rows = [{**self._truth[row["id"]], "answer": row["answer"]} for row in scored]
        for protocol, summary in vqa_rad.report(rows, self._answers).items():
            table = summary.table()
            del table["accuracy"]
            yield from self._share(protocol, summary.per_question)
            for kind in vqa_rad.ANSWER_TYPES:
                each = summary.per_question.items()
                if right := {i: r for i, r in each if self._truth[i]["answer_type"].strip() == kind}:
                    yield from self._share(f"{protocol}/{kind.lower()}", right)
                del table[kind.lower()]
            yield from ((f"{self.name}/{protocol}/{group}", value) for group, value in table.items() if value == value)
        if "organ_right" in scored[0]:
            yield f"{self.name}/organ_accuracy", 100 * float(np.mean([row["organ_right"] for row in scored]))

    def _share(self, measure: str, right: Mapping[int, float]) -> Iterator[tuple[str, float]]:
        images = [int(self._truth[question]["image_id"]) for question in right]
        yield from percentages(f"{self.name}/{measure}", list(right.values()), images)

    def _controls_of(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        rows = [self._truth[row["id"]] for row in scored]
        asked = [question["question"] for question in self._train]
        truths = [normalise_rad_answer(question["multiple_choice_answer"]) for question in self._train]
        answers = {name: vqa_rad.majority_answers(self._train, rows, keys) for name, keys in CONTROLS.items()}
        answers["question_only"] = question_only_answers(asked, truths, [row["question"] for row in rows])
        for name, answered in answers.items():
            summary = vqa_rad.summarise(vqa_rad.with_answers(rows, answered), self._answers, "strict_451")
            yield name, summary.overall.accuracy
        yield "ceiling", summary.overall.ceiling
