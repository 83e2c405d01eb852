"""Written answers, captions and reports over a split: exact match, BLEU, and the nearest answer by its states."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from jaxvqa.data.prompts import asked_and_true
from jaxvqa.evaluators import vqa
from jaxvqa.evaluators.answers import GROUPS, AnswersEvaluator, Question, Scoring, by_group, mean
from jaxvqa.evaluators.context import Context, Row
from jaxvqa.metrics import text
from jaxvqa.metrics.score import Score, Scores, share
from jaxvqa.report.tables import Table, Values, cell
from jaxvqa.tasks.predictions import Prediction
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


def evaluator(context: Context) -> AnswersEvaluator:
    """Writes to each prompt of a split exactly once, and scores what was written.

    Yields in percent, with intervals: of answers `accuracy` by the data set's rule, and `exact`, the share that is the
    annotated answer to the letter, both by group too; `bleu`, the mean of BLEU-1. Of captions `bleu` too, and `bleu_1` to
    `bleu_4` of all texts together, `rouge_l`, and `cider`, from 0 to 10; with `plain_words`, a field of the row, of their words
    in lower case without punctuation, as captions are usually compared. Where the predict function is `embeddings`, `nearest`
    is the share of texts whose mean state is nearest to that of their own answer, or of one that contains it or is contained
    (docs/originals/flamingo.md, section 15).
    """
    captions = len(context.source) > 0 and "question" not in context.source.read_records([0])[0]
    scoring = _captions(context.config.get("plain_words", False)) if captions else _answers(context)
    return AnswersEvaluator(context, replace(scoring, of_outputs=functools.partial(_nearest, context)))


def _answers(context: Context) -> Scoring:
    accuracy = vqa.scoring(context, context.predict.choices)

    def fields(question: Question, prediction: Prediction, row: Row) -> Row:
        truth = question["multiple_choice_answer"]
        return accuracy.fields(question, prediction, row) | {
            "truth": truth,
            "exact": text.exact_match(row["answer"], truth),
            "bleu": round(text.bleu1(row["answer"], [truth]), 6),
        }

    def scores(rows: Sequence[Row]) -> Scores:
        yield from accuracy.scores(rows)
        yield from (mean(name, rows) for name in ("exact", "bleu"))
        yield from ((f"exact/{group}", score) for group, score in by_group("exact", rows, GROUPS))

    return replace(accuracy, fields=fields, scores=scores)


def _captions(plain_words: bool) -> Scoring:
    """No rule of answers: no two people describe an image in the same words."""
    form = text.plain_words if plain_words else str

    def forms(row: Row) -> tuple[str, list[str]]:
        return form(row["answer"]), [form(true) for true in row["annotators"]]

    def fields(question: Question, prediction: Prediction, row: Row) -> Row:
        return {"bleu": round(text.bleu1(*forms(row)), 6)}

    def scores(rows: Sequence[Row]) -> Scores:
        yield mean("bleu", rows)
        written, true = zip(*map(forms, rows), strict=True) if rows else ((), ())
        for order, value in enumerate(text.corpus_bleu(written, true), start=1):
            yield f"bleu_{order}", Score(100 * value, n=len(rows))
        pairs = zip(written, true, strict=True)
        yield "rouge_l", Score(share([text.rouge_l(*pair) for pair in pairs]), n=len(rows))
        yield "cider", Score(float(np.mean(text.cider(written, true))), n=len(rows))

    return Scoring(fields, scores)


def _nearest(context: Context, predictions: Sequence[Prediction]) -> Scores:
    """`nearest`, where the predict function gives the mean states of the `written` and the `true` texts."""
    if not predictions or "written" not in predictions[0].outputs:
        return
    written, true = (np.stack([prediction.outputs[name] for prediction in predictions]) for name in ("written", "true"))
    answers = [asked_and_true(record)[1] for record in context.source.all_records()]
    known, table = text.embeddings_by_answer(true, answers)
    pairs = zip(text.nearest_answers(written, table), answers, strict=True)
    yield "nearest", Score.mean([text.contains(known[found], answer) for found, answer in pairs], context.images)


def tables(name: str, config: Config, values: Values) -> Iterator[Table]:
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
