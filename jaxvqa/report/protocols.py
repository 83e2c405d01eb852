"""The report's tables for data sets whose literature counts in several ways, for controls, and for runs that vote."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxvqa import checkpoints
from jaxvqa.metrics.vqa_rad import PROTOCOLS
from jaxvqa.report.numbers import percent, points

if TYPE_CHECKING:
    from jaxvqa.report import Run

TEXT_WORDS = {
    "accuracy": "answers by the data set's rule",
    "exact": "answers that are the annotated one to the letter",
    "exact/open_closed/closed": "of those whose question names the possible answers, or asks for yes or no",
    "exact/open_closed/open": "of the others",
    "exact/answer_type/CLOSED": "of closed questions",
    "exact/answer_type/OPEN": "of open questions",
    "nearest": "texts whose states are nearest to those of their own answer",
    "bleu": "BLEU-1 of each text, the mean",
    "bleu_1": "BLEU-1 of all texts together",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L of each text, the mean",
    "word_accuracy": "words of the true texts that are the most probable where they stand",
}
"""Measures of texts, in percent."""

PROTOCOL_WORDS = {
    "original_308": "free-form questions; CMSA's own script (its 68.8)",
    "strict_308": "free-form questions; an answer outside the list is wrong",
    "original_451": "free-form and paraphrased; CMSA's own script (its 73.2)",
    "strict_451": "free-form and paraphrased; an answer outside the list is wrong",
}

STANDARD_SPLIT = "vqa_rad/questions"
"""The questions that the protocols are named after: 308 of them free-form, 451 in all."""

CONTROL_WORDS = {
    "ceiling": "the most that the answer list allows",
    "same_image_and_type": "the most frequent train answer to the same image and question type: the split's leak",
    "question_only": "a linear classifier of the question's words, which sees no picture",
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
    data, title = run.config["data"], "Accuracy by protocol"
    if data["examples"] != STANDARD_SPLIT or data["limit"]:
        title += ": not the 308 and 451 questions of the literature, whose numbers do not compare"
    return {"title": title, "columns": columns, "rows": rows} if rows else None


def rule_table(run: "Run", name: str) -> dict[str, Any] | None:
    """VQA accuracy by the two rules that the official script has had (`jaxvqa.metrics.vqa`)."""
    last = _last(run, f"{name}/accuracy_since_2021")
    rows = [
        (rule, words, [_with_interval(last, f"{name}/{key}")])
        for rule, words, key in (
            ("2015 to March 2021", "the rule of MCAN's and RWSAN's numbers, and of this report", "accuracy"),
            (
                "since March 2021",
                "nothing is normalised where all annotators agree, both sides in full otherwise",
                "accuracy_since_2021",
            ),
        )
    ]
    title = "VQA accuracy by the official script's two rules"
    return {"title": title, "columns": ("rule", "what it is", "accuracy"), "rows": rows} if last else None


def control_table(run: "Run", name: str) -> dict[str, Any] | None:
    """The model beside a black picture and beside answers that are only counted, all questions; VQA-RAD by the strict rule."""
    last = _last(run, f"{name}/controls/majority") or _last(run, f"{name}/controls/ceiling")
    if not last:
        return None
    rows = [("this model", "", [_with_interval(last, f"{name}/accuracy")])]
    for other, row in run.config.get("evals", {}).items():
        if row.get("predict") == "answers_blank" and row.get("split") == run.config["evals"][name].get("split"):
            values = _last(run, f"{other}/accuracy")
            if values:
                rows.append((other, "this model, shown a black picture", [_with_interval(values, f"{other}/accuracy")]))
    found = {key: last.get(f"{name}/controls/{key}") for key in CONTROL_WORDS}
    rows += [(key, CONTROL_WORDS[key], [percent(value)]) for key, value in found.items() if value is not None]
    return {"title": "Beside answers that need no picture", "columns": ("", "what it is", "accuracy"), "rows": rows}


def member_table(run: "Run", name: str) -> dict[str, Any] | None:
    """Runs that answer together beside each of them alone, the best first."""
    last = _last(run, f"{name}/over_best_member")
    if not last:
        return None
    prefix, measures = f"{name}/members/", [m for m in ("accuracy", "bleu") if f"{name}/{m}" in last]
    members = {key.removeprefix(prefix).rpartition("/")[0] for key in last if key.startswith(prefix)}
    low, high = (points(last[f"{name}/over_best_member/{end}"]) for end in ("low", "high"))
    gain = f"{points(last[f'{name}/over_best_member'])} points over the best ({low} to {high}, paired)"
    rows = [("all together", gain, [_with_interval(last, f"{name}/{m}") for m in measures])]
    for member in sorted(members, key=lambda member: -last[f"{prefix}{member}/accuracy"]):
        rows.append((member, "", [percent(last[f"{prefix}{member}/{m}"]) for m in measures]))
    agreement = (
        f"{percent(last[f'{name}/agreement'])} of all votes are for the answer" if f"{name}/agreement" in last else ""
    )
    return {"title": "Beside its members", "columns": ("", agreement, *measures), "rows": rows}


def text_table(run: "Run", name: str) -> dict[str, Any] | None:
    """What was written, by every measure, beside what is written to a black picture; and how probable the true texts are."""
    evals = run.config.get("evals", {})
    own = evals.get(name, {})
    of_texts = [
        other
        for other, row in evals.items()
        if row.get("type") in ("generation", "likelihood") and row.get("split") == own.get("split")
    ]
    rows = []
    for measure, words in TEXT_WORDS.items():
        cells = [_with_interval(_last(run, f"{other}/{measure}"), f"{other}/{measure}") for other in of_texts]
        if set(cells) - {"–"}:
            rows.append((measure.rpartition("/")[2], words, cells))
    for measure, words in (("cider", "CIDEr, from 0 to 10"), ("perplexity", "of the true texts' words"), ("loss", "")):
        values = [_last(run, f"{other}/{measure}").get(f"{other}/{measure}") for other in of_texts]
        if any(value is not None for value in values):
            rows.append((measure, words, ["–" if value is None else f"{value:.3g}" for value in values]))
    return {"title": "Texts", "columns": ("measure", "what it is", *of_texts), "rows": rows} if rows else None


def tables(run: "Run", name: str) -> Sequence[dict[str, Any]]:
    """The tables that the evaluation `name` has numbers for: `title`, `columns`, `rows` of (label, words, cells)."""
    made = (make(run, name) for make in (member_table, rule_table, protocol_table, text_table, control_table))
    return [table for table in made if table]


def missing_starts(run: "Run") -> list[str]:
    """A sentence for each reason why parts of the model should have come from other runs, and did not."""
    reasons: dict[str, list[str]] = {}
    rows = {name: row for name, row in run.config.get("init_from", {}).items() if isinstance(row, Mapping)}
    for name, without in checkpoints.missing_starts(rows).items():
        reasons.setdefault(without, []).append(f"config.init_from.{name}")
    return [f"Not given: {', '.join(names)}. {reason[0].upper()}{reason[1:]}" for reason, names in reasons.items()]


def _last(run: "Run", key: str) -> Mapping[str, Any]:
    return next((row for row in reversed(run.rows) if key in row), {})


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return "–"
    low, high = row.get(f"{key}/low"), row.get(f"{key}/high")
    return percent(row[key]) if low is None else f"{percent(row[key])} ({low:.1f} to {high:.1f})"
