"""Golden cases of the metrics: what the official evaluators gave."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxvqa.data.answers import AnswerList
from jaxvqa.metrics import vqa
from jaxvqa.testing.golden import Sections

QUESTIONS = "data/vqa_v2_mini"
"""Below the folder that the environment variable JAXVQA_DATA names."""


def _predictions(annotations: list[dict[str, Any]]) -> dict[str, dict[int, str]]:
    """The submissions that the cases make by rule."""
    rules: dict[str, Callable[[dict[str, Any]], str]] = {
        "human_k": lambda a: a["answers"][a["question_id"] % 10]["answer"],
        "most_common": lambda a: a["multiple_choice_answer"],
        "all_yes": lambda a: "yes",
        "all_2": lambda a: "two",
        "most_common_shouted": lambda a: f"The {a['multiple_choice_answer'].upper()}.",
    }
    return {name: {a["question_id"]: rule(a) for a in annotations} for name, rule in rules.items()}


def _vqa_v2(content: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for case in content.get("cases", ()):
        name = f"question {case['question_id']}"
        ours = round(100 * vqa.question_accuracy(case["prediction"], case["answers"]), 2)
        yield name, ours, round(case["accuracy"], 2)
        # The answer list of the original is no part of the case: of its answers, those with a score are checked.
        answers = AnswerList(tuple(case["rwsan_target"]))
        scores = dict(zip(answers.answers, answers.soft_scores(case["answers"]).tolist(), strict=True))
        yield f"{name}, target", scores, case["rwsan_target"]


def _vqa_v2_files(content: dict[str, Any]) -> Iterator[tuple[str, Any, Any]] | str:
    folder = Path(os.environ.get("JAXVQA_DATA", "")) / QUESTIONS
    if "JAXVQA_DATA" not in os.environ or not folder.is_dir():
        return f"whole submissions need {QUESTIONS} under the folder that JAXVQA_DATA names"
    ids = set(json.loads((folder / "splits.json").read_text())["minival"])
    annotated = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    annotations = [a for a in annotated if a["question_id"] in ids]
    submissions = _predictions(annotations)

    def results() -> Iterator[tuple[str, Any, Any]]:
        for name, expected in content["files"].items():
            summary = vqa.summarise(submissions[name], annotations).rounded()
            yield name, {"overall": summary.overall, "perAnswerType": summary.by_answer_type}, expected

    return results()


SECTIONS: Sections = {
    "vqa_med_2021": (),
    "retrieval": (),
    "vqa_rad": (),
    "captions": (),
    "vqa_v2": (_vqa_v2, _vqa_v2_files),
}
