"""The report's tables for data sets whose literature counts in several ways, for controls, and for runs that vote."""

from collections.abc import Iterator

from jaxvqa.metrics.vqa_rad import PROTOCOLS
from jaxvqa.report.numbers import percent
from jaxvqa.report.tables import Table, Values, cell
from jaxvqa.types import Config

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
    "question_only": "a linear classifier of the question's words, which reads no image",
    "same_question": "the most frequent train answer to the same question, else to its type",
    "majority_of_type": "the most frequent train answer to the question's type",
    "majority": "the most frequent train answer",
}


def protocol_table(name: str, config: Config, values: Values) -> Iterator[Table]:
    """Accuracy by every protocol of VQA-RAD that the evaluation gives: all, closed and open questions with intervals."""
    rows = [
        (
            protocol,
            PROTOCOL_WORDS[protocol],
            *(cell(values, f"{name}/{protocol}{part}") for part in ("", "/closed", "/open")),
        )
        for protocol in PROTOCOLS
        if f"{name}/{protocol}" in values
    ]
    title = "Accuracy by protocol"
    if config["data"]["examples"] != STANDARD_SPLIT or config["data"]["limit"]:
        title += ": not the 308 and 451 questions of the literature, whose numbers do not compare"
    if rows:
        yield Table(title, ("protocol", "what counts", "all", "closed", "open"), rows)


def rule_table(name: str, config: Config, values: Values) -> Iterator[Table]:
    """VQA accuracy by the two rules that the official script has had (`jaxvqa.metrics.vqa`)."""
    if f"{name}/accuracy_since_2021" not in values:
        return
    old = "the rule of MCAN's and RWSAN's numbers, and of this report"
    new = "nothing is normalised where all annotators agree, both sides in full otherwise"
    rows = (
        ("2015 to March 2021", old, cell(values, f"{name}/accuracy")),
        ("since March 2021", new, cell(values, f"{name}/accuracy_since_2021")),
    )
    yield Table("VQA accuracy by the official script's two rules", ("rule", "what it is", "accuracy"), rows)


def control_table(name: str, config: Config, values: Values) -> Iterator[Table]:
    """The model beside a black image and beside answers that are only counted, all questions; VQA-RAD by the strict rule."""
    found = {key: values[f"{name}/controls/{key}"] for key in CONTROL_WORDS if f"{name}/controls/{key}" in values}
    if not found:
        return
    rows = [("this model", "", cell(values, f"{name}/accuracy"))]
    for other, row in config["evals"].items():
        same_split = row.get("split") == config["evals"][name].get("split")
        if row.get("predict") == "answers_blank" and same_split and f"{other}/accuracy" in values:
            rows.append((other, "this model, shown a black image", cell(values, f"{other}/accuracy")))
    rows += [(key, CONTROL_WORDS[key], percent(value)) for key, value in found.items()]
    yield Table("Beside answers that need no image", ("", "what it is", "accuracy"), rows)


def text_table(name: str, config: Config, values: Values) -> Iterator[Table]:
    """What was written, by every measure, beside what is written to a black image; and how probable the true texts are."""
    evals = config["evals"]
    of_texts = [
        other
        for other, row in evals.items()
        if row.get("type") in ("generation", "likelihood") and row.get("split") == evals[name].get("split")
    ]
    rows = []
    for measure, words in TEXT_WORDS.items():
        cells = [cell(values, f"{other}/{measure}") for other in of_texts]
        if set(cells) - {"–"}:
            rows.append((measure.rpartition("/")[2], words, *cells))
    for measure, words in (("cider", "CIDEr, from 0 to 10"), ("perplexity", "of the true texts' words"), ("loss", "")):
        found = [values.get(f"{other}/{measure}") for other in of_texts]
        if any(value is not None for value in found):
            rows.append((measure, words, *("–" if value is None else f"{value:.3g}" for value in found)))
    if rows:
        yield Table("Texts", ("measure", "what it is", *of_texts), rows)


def tables(name: str, config: Config, values: Values) -> Iterator[Table]:
    """The tables that the evaluation `name` has numbers for."""
    for make in (rule_table, protocol_table, text_table, control_table):
        yield from make(name, config, values)
