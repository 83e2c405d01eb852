"""The report's tables for data sets whose literature counts in several ways, and for controls."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxvqa.metrics.vqa_rad import PROTOCOLS
from jaxvqa.report.numbers import percent

if TYPE_CHECKING:
    from jaxvqa.report import Run

PROTOCOL_WORDS = {
    "original_308": "free-form questions; CMSA's own script (its 68.8)",
    "strict_308": "free-form questions; an answer outside the list is wrong",
    "original_451": "free-form and paraphrased; CMSA's own script (its 73.2)",
    "strict_451": "free-form and paraphrased; an answer outside the list is wrong",
}

CONTROL_WORDS = {
    "ceiling": "the most that the answer list allows",
    "same_image_and_type": "the most frequent train answer to the same image and question type: the split's leak",
    "same_question": "the most frequent train answer to the same question, else to its type",
    "majority_of_type": "the most frequent train answer to the question's type",
    "majority": "the most frequent train answer",
}


def protocol_table(run: "Run", name: str) -> dict[str, Any] | None:
    """Accuracy by every protocol of VQA-RAD that the evaluation gives: all, closed and open questions with intervals."""
    last = _last(run, f"{name}/{next(iter(PROTOCOLS))}") or _last(run, f"{name}/strict_451")
    rows = []
    for protocol in PROTOCOLS:
        if f"{name}/{protocol}" in last:
            cells = [_with_interval(last, f"{name}/{protocol}{part}") for part in ("", "/closed", "/open")]
            rows.append((protocol, PROTOCOL_WORDS[protocol], cells))
    columns = ("protocol", "what counts", "all", "closed", "open")
    return {"title": "Accuracy by protocol", "columns": columns, "rows": rows} if rows else None


def control_table(run: "Run", name: str) -> dict[str, Any] | None:
    """The model beside a black picture and beside answers that are only counted, all questions, strict rule."""
    last = _last(run, f"{name}/controls/ceiling")
    if not last:
        return None
    rows = [("this model", "", [_with_interval(last, f"{name}/accuracy")])]
    for other, row in run.config.get("evals", {}).items():
        if row.get("predict") == "answers_blank" and row.get("split") == run.config["evals"][name].get("split"):
            values = _last(run, f"{other}/accuracy")
            if values:
                rows.append((other, "this model, shown a black picture", [_with_interval(values, f"{other}/accuracy")]))
    rows += [(key, words, [percent(last[f"{name}/controls/{key}"])]) for key, words in CONTROL_WORDS.items()]
    return {"title": "Beside what needs no model", "columns": ("", "what it is", "accuracy"), "rows": rows}


def tables(run: "Run", name: str) -> Sequence[dict[str, Any]]:
    """The tables that the evaluation `name` has numbers for: `title`, `columns`, `rows` of (label, words, cells)."""
    return [table for table in (protocol_table(run, name), control_table(run, name)) if table]


def missing_starts(run: "Run") -> list[str]:
    """A sentence for each reason why parts of the model should have come from other runs, and did not."""
    reasons: dict[str, list[str]] = {}
    for name, row in run.config.get("init_from", {}).items():
        if isinstance(row, Mapping) and row.get("without") and not row.get("workdir"):
            reasons.setdefault(row["without"], []).append(f"config.init_from.{name}")
    return [f"Not given: {', '.join(names)}. {reason[0].upper()}{reason[1:]}" for reason, names in reasons.items()]


def _last(run: "Run", key: str) -> Mapping[str, Any]:
    return next((row for row in reversed(run.rows) if key in row), {})


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return "–"
    low, high = row.get(f"{key}/low"), row.get(f"{key}/high")
    return percent(row[key]) if low is None else f"{percent(row[key])} ({low:.1f} to {high:.1f})"
