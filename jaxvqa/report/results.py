"""The numbers of a run's evaluations: accuracy, other scores, by type, against a baseline, and calibration."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa.evaluators import has_own_measures
from jaxvqa.metrics.score import Score, share
from jaxvqa.report.charts import calibration_chart
from jaxvqa.report.run import Record

Row = dict[str, Any]

BINS = 10
GROUP_TITLES = {
    "question_type": "Question type",
    "answer_type": "Answer type",
    "open_closed": "Open or closed",
    "phrase_type": "Phrase type",
    "organ": "Organ",
}
"""Question features that predictions may carry -> title of their table, in the page's order."""


def result(record: Record, name: str, scored: Sequence[Row]) -> dict[str, Any] | None:
    """The fields of the last accuracy's `Score` and its `step`: from the metrics, else from the predictions."""
    steps, _ = record.series(f"{name}/accuracy")
    if last := Score.of_row(record.values, f"{name}/accuracy"):
        return vars(last) | {"n": len(scored), "step": steps[-1]}
    return vars(_accuracy(scored)) | {"step": record.run.predictions(name)[0]} if scored else None


def _accuracy(rows: Sequence[Row]) -> Score:
    return Score.mean([row["accuracy"] for row in rows], [row["image_id"] for row in rows])


def scores(record: Record, name: str) -> list[tuple[str, dict[str, Any]]]:
    """What an evaluation gives beside an accuracy of answers, such as "test/iou": the last `Score` and its `step`."""
    rows = [row for row in record.run.metrics if any(key.startswith(f"{name}/") for key in row)]
    if not rows or not has_own_measures(record.evals.get(name, {}).get("type")):
        return []
    names = [key for key in rows[-1] if key.count("/") == 1 and key.startswith(f"{name}/")]
    found = ((key, Score.of_row(rows[-1], key)) for key in names)
    return [(key, vars(score) | {"step": rows[-1]["step"]}) for key, score in found if score]


def curves(record: Record, name: str) -> list[str]:
    """Metrics in percent beside the accuracy whose curves are worth drawing: scores, and how well captions are written."""
    found = [score for score, _ in scores(record, name) if score != f"{name}/accuracy"]
    return found or [f"{name}/{measure}" for measure in ("bleu", "bleu_4") if f"{name}/accuracy" not in record.values]


def difference(scored: Sequence[Row], before: Mapping[int, float]) -> Score | None:
    """The mean difference in accuracy on the questions that both answered, in points, with its paired interval."""
    both = [row for row in scored if row["id"] in before]
    gains = [row["accuracy"] - before[row["id"]] for row in both]
    return Score.mean(gains, [row["image_id"] for row in both], paired=True) if both else None


def groups(scored: Sequence[Row], before: Mapping[int, float]) -> Iterator[tuple[str, list[Row]]]:
    """Accuracy by type: (title, rows), a row with the fields of its `Score`, and its name, baseline and difference."""
    for group, title in GROUP_TITLES.items():
        members = defaultdict(list)
        for row in scored:
            if row.get(group):
                members[row[group]].append(row)
        lines = []
        for name, rows in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
            both = [row for row in rows if row["id"] in before]
            base = share([before[row["id"]] for row in both]) if both else None
            gain = None if base is None else share([row["accuracy"] for row in both]) - base
            lines.append(vars(_accuracy(rows)) | {"name": name, "baseline": base, "difference": gain})
        if lines:
            yield title, lines


def groups_from_metrics(record: Record, baseline: Record | None, name: str) -> Iterator[tuple[str, list[Row]]]:
    """The same without predictions: the last accuracies by type that the metrics hold, without counts."""
    for group, title in GROUP_TITLES.items():
        lines = []
        for key in sorted(key for key in record.values if key.startswith(f"{name}/{group}/")):
            ours, base = record.values[key], baseline.values.get(key) if baseline else None
            gain = None if base is None else ours - base
            row = {"name": key.removeprefix(f"{name}/{group}/"), "baseline": base, "difference": gain}
            lines.append(vars(Score(ours)) | row)
        if lines:
            yield title, lines


def calibration(scored: Sequence[Row]) -> dict[str, Any] | None:
    """Probability against accuracy in ten bins, and the expected calibration error (Guo et al. 2017) in points."""
    if not scored:
        return None
    probability = np.array([row["probability"] for row in scored])
    accuracy = np.array([row["accuracy"] for row in scored])
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    bins = []
    for i in range(BINS):
        inside = which == i
        if inside.any():
            bins.append((float(probability[inside].mean()), float(accuracy[inside].mean()), int(inside.sum())))
    error = 100 * sum(n * abs(p - a) for p, a, n in bins) / len(scored)
    excess = 100 * float(probability.mean() - accuracy.mean())
    verdict = "about as sure as it is right" if abs(excess) < 1 else "too sure" if excess > 0 else "not sure enough"
    return {
        "error": error,
        "probability": 100 * float(probability.mean()),
        "accuracy": 100 * float(accuracy.mean()),
        "verdict": verdict,
        "chart": calibration_chart(bins),
    }
