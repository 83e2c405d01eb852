"""ImageCLEF VQA-Med by the rules of its official evaluator: accuracy and BLEU, each the best over a question's answers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxvqa.data.med_text import repaired
from jaxvqa.evaluators.vqa import VqaEvaluator
from jaxvqa.metrics import vqa_med
from jaxvqa.metrics.bootstrap import percentages


class VqaMedEvaluator(VqaEvaluator):
    """Yields `accuracy` and what else `VqaEvaluator` gives, by the official rule, and `bleu` in percent with its interval.

    Beside the predictions it writes `NAME_STEP_imageclef.txt`, lines `image|answer`, where the challenge would take them: each
    picture is asked about once, and every question is answered.
    """

    def __init__(self, name: str, config: Any, **options: Any):
        """Args: as for `VqaEvaluator`; with `repair_names` in the row, answers are written without SYSU-HCP's garbling."""
        super().__init__(name, config, **options)
        self._rule = vqa_med.accuracy
        self._written = repaired if config.get("repair_names", False) else str

    def _answer(self, index: Any) -> str:
        return self._written(super()._answer(index))

    def _row(self, question: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> dict[str, Any]:
        row = super()._row(question, output)
        if "image_name" in question:
            row["image_name"] = question["image_name"]
        if "annotators" in row:
            row["bleu"] = 0.0 if row.get("unanswered") else vqa_med.bleu(row["answer"], row["annotators"])
        return row

    def _submission(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        answers = {row.get("image_name", str(row["image_id"])): row["answer"] for row in rows}
        if len(answers) < len(rows) or any(row.get("unanswered") for row in rows):
            return {}
        return {"imageclef.txt": "\n".join(vqa_med.submission_lines(answers)) + "\n"}

    def _measures(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        yield from super()._measures(scored)
        images = [row["image_id"] for row in scored]
        yield from percentages(f"{self.name}/bleu", [row["bleu"] for row in scored], images)
