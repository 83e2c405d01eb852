"""Example answers of a run: which are shown, and with what."""

import base64
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxvqa.errors import DataError, UserError
from jaxvqa.explain import overlay
from jaxvqa.explain.attention import explain, show
from jaxvqa.explain.explanation import Explanation, question_spans
from jaxvqa.report.results import GROUP_TITLES, Row
from jaxvqa.report.run import Record

EXAMPLES = 12
WRONG_EXAMPLES = 4
"""Of the examples, how many are wrong answers where there are enough: mistakes teach more than their share."""
MISTAKES = 6

LARGEST = (640, 320)
"""Pixels of an image's longer side: beside one map, and where there is a map for each word. Radiographs have thousands."""

_APART = "Each answer has a probability of its own: they need not add up to 100 %."
_TOGETHER = "The probabilities of all answers add up to 100 %; the most probable are shown."
_OF_TEXTS = "A text's probability is the product of those of its tokens: longer texts have smaller ones."
PROBABILITIES = {
    "answer_classification": _APART,
    "radiology_vqa": _APART,
    "image_classification": _TOGETHER,
    "image_pairs": _TOGETHER,
    "text_generation": _OF_TEXTS,
}
"""What the probabilities of a task's answers are: sigmoids, a softmax, or those of tokens."""


def probability_words(record: Record, name: str) -> str:
    """What the probabilities of an evaluation's answers are, in a sentence; an ensemble's members are classifiers of images."""
    predict = record.evals.get(name, {}).get("predict", "")
    if record.run.members or predict.startswith(("classes", "ranked")):
        return _TOGETHER
    return PROBABILITIES.get(record.config.get("task", ""), "")


def choose_examples(rows: Sequence[Row], count: int = EXAMPLES, wrong: int = WRONG_EXAMPLES) -> list[Row]:
    """A fixed random choice across question types, of right and wrong answers, each on another image if possible."""
    if not rows:
        return []
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    missed = [row for row in shuffled if row.get("accuracy", 1) < 0.5]
    hit = [row for row in shuffled if row.get("accuracy", 1) >= 0.5]
    n_missed = min(len(missed), max(wrong, count - len(hit)))
    chosen: list[Row] = []
    for pool, n in ((missed, n_missed), (hit, count - n_missed)):
        chosen += _across_types(pool, n, {row["image_id"] for row in chosen})
    return sorted(chosen, key=lambda row: (row.get("question_type") or row.get("answer_type") or "", row["id"]))


def _across_types(rows: Sequence[Row], count: int, used: set[int]) -> list[Row]:
    """Takes rows type by type in turn, those on unused images first."""
    by_type = defaultdict(list)
    for row in rows:
        by_type[row.get("question_type") or row.get("answer_type") or ""].append(row)
    fresh: list[Row] = []
    repeated: list[Row] = []
    for row in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*by_type.values()))):
        (repeated if row["image_id"] in used else fresh).append(row)
        used.add(row["image_id"])
        if len(fresh) == count:
            break
    return (fresh + repeated)[:count]


def confident_mistakes(scored: Sequence[Row], count: int = MISTAKES) -> list[Row]:
    """The answers that no annotator gave, most probable first."""
    return sorted((row for row in scored if row["accuracy"] == 0), key=lambda row: (-row["probability"], row["id"]))[
        :count
    ]


def explanations(record: Record, name: str, wanted: Sequence[Row]) -> tuple[dict[int, Explanation], str]:
    """Explanations of an evaluation's predictions by question id, and why there are none where that is so."""
    if not wanted:
        return {}, ""
    if jax.process_count() > 1:
        return {}, "The images are left out in a job of several processes; write the report again in one process."
    # Predictions are written in the split's order, so a row's place is the question's.
    places = {row["id"]: place for place, row in enumerate(record.run.predictions(name)[1])}
    ids = list(dict.fromkeys(row["id"] for row in wanted))
    split, positions = record.evals.get(name, {}).get("split", name), [places[i] for i in ids]
    try:  # an ensemble's answer is not one model's: then the images without attention
        found = (show if record.run.members else explain)(record.run, split=split, positions=positions)
    except UserError as error:
        return {}, f"The images cannot be shown. {error}"
    if [e.id for e in found] != ids:
        return {}, "The images cannot be shown: the data set has changed since the predictions were written."
    return {e.id: e for e in found}, ""


def card(row: Row, explanation: Explanation | None) -> dict[str, Any]:
    """What the template shows of one question."""
    verdicts = {None: "", 0: "wrong", 1: "right"}
    shown: dict[str, Any] = {
        "row": row,
        "verdict": verdicts.get(row.get("accuracy"), "partly right"),
        "type": " · ".join(str(row[group]) for group in GROUP_TITLES if row.get(group)),
        "annotators": overlay.most_common(row.get("annotators", [])),
        "spans": [(row["question"], None)],
        "answers": [(row["answer"], row["probability"])],
        "image": None,
        "maps": [],
        "fault": "",
    }
    if explanation is None:
        return shown
    spans = question_spans(explanation.question, explanation.words, explanation.word_attention)
    top = max((weight for _, weight in spans if weight), default=0.0)
    shown["spans"] = [(text, None if w is None else (w, w / top if top else 0.0)) for text, w in spans]
    shown["answers"] = explanation.answers or shown["answers"]
    try:
        image, maps = overlay.drawn_maps(explanation, LARGEST[len(explanation.maps) > 1])
    except DataError as error:
        return shown | {"fault": str(error)}
    if image is None:
        return shown
    number = explanation.image_id
    described = f"Image {number} of the data set."
    if not explanation.image:
        described = f"Empty canvas in the size of image {number}, which is not in the data set."
    return shown | {
        "image": (_data_url(image), described, ""),
        "maps": [
            (_data_url(drawn), _described(explanation.maps[i].weights, label), label)
            for i, (label, drawn) in enumerate(maps)
        ],
    }


def _described(weights: np.ndarray, label: str) -> str:
    strongest = ", ".join(f"{100 * w:.0f} %" for w in sorted(weights, reverse=True)[:3])
    of = f" of {label}" if label else ""
    return f"The same image with the attention{of} over {len(weights)} regions; the strongest: {strongest}."


def _data_url(image: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(overlay.encode(image, "JPEG")).decode()
