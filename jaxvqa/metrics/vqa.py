"""The official VQA accuracy, by the two rules that its script has had. NumPy only.

A prediction is right as far as annotators agree with it: each annotator is left out in turn, and three matches among the
others count in full. The rules differ in what is normalised:

====================== ================================================ ==========================================
rule                   prediction                                       annotators
====================== ================================================ ==========================================
2015 to March 2021     in full                                          punctuation, unless they are unanimous
since March 2021       in full, unless the annotators are unanimous     in full, unless they are unanimous
====================== ================================================ ==========================================

`question_accuracy` is the first, which MCAN's and RWSAN's published numbers are by (docs/originals/rwsan.md, section 6 and
quirk 15 of section 9): `config.data.answers.rule = "soft"`. `question_accuracy_since_2021` is the second; evaluations give it
beside the first. Both are the scripts to the letter, and give at most 0, 1/3 and 2/3 with one, two and three annotators:
evaluations therefore take `fair_to_few` of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxvqa.data.answers import FEW, process_punctuation, process_words
from jaxvqa.errors import DataError

Annotator = str | Mapping[str, Any]
"""One annotator's answer: the text, or a record of the official files with at least the field `answer`."""


@functools.lru_cache(maxsize=1 << 16)
def normalise_prediction(answer: str) -> str:
    """Brings a predicted answer into the form that is compared: punctuation, case, number words, articles."""
    return process_words(process_punctuation(_one_line(answer)))


@functools.lru_cache(maxsize=1 << 17)
def normalise_human(answer: str) -> str:
    """Brings an annotator's answer into the form that is compared when the annotators differ: punctuation only."""
    return process_punctuation(answer)


def question_accuracy(prediction: str, annotators: Sequence[Annotator]) -> float:
    """Returns the accuracy of one predicted answer by the rule of 2015 to March 2021, in [0, 1].

    The mean over the annotators of min(1, matches among the others / 3). With k of ten agreeing: 0, 0.3, 0.6, 0.9, 1
    for k = 0, 1, 2, 3, 4 and more.

    Args:
        prediction: the raw predicted answer.
        annotators: at least one answer. Texts are of different people, even if equal. Records are "the others" of a
            record only if they differ from it in some field after normalisation: without an `answer_id`, equal records
            exclude one another (quirk 16).

    Raises:
        DataError: there is no annotator.
    """
    texts = _texts(annotators)
    if len(set(texts)) > 1:
        texts = [normalise_human(text) for text in texts]
    return _agreement(normalise_prediction(prediction), texts, annotators)


def question_accuracy_since_2021(prediction: str, annotators: Sequence[Annotator]) -> float:
    """Returns the accuracy of one predicted answer by the rule since March 2021, in [0, 1]; see `question_accuracy`.

    Where all annotators agree to the letter, the prediction has to be their answer to the letter too, capitals included.
    """
    texts = [_one_line(text) for text in _texts(annotators)]
    predicted = _one_line(prediction)
    if len(set(texts)) > 1:
        predicted, *texts = map(normalise_prediction, (predicted, *texts))
    return _agreement(predicted, texts, annotators)


def fair_to_few(rule: Callable[[str, Sequence[Annotator]], float]) -> Callable[[str, Sequence[Annotator]], float]:
    """The same rule where it can give 1; of fewer than four annotators, the share who gave the answer, all normalised in full.

    Of four annotators both rules give the share too: no other three can match one of fewer.
    """

    @functools.wraps(rule)
    def fair(prediction: str, annotators: Sequence[Annotator]) -> float:
        if not 0 < len(annotators) < FEW:
            return rule(prediction, annotators)
        given = [normalise_prediction(text) for text in _texts(annotators)]
        return given.count(normalise_prediction(prediction)) / len(given)

    return fair


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _texts(annotators: Sequence[Annotator]) -> list[str]:
    if not annotators:
        raise DataError("VQA accuracy needs at least one annotated answer; this question has none (a test split?).")
    return [annotator if isinstance(annotator, str) else annotator["answer"] for annotator in annotators]


def _agreement(predicted: str, texts: Sequence[str], annotators: Sequence[Annotator]) -> float:
    """The accuracy of a normalised prediction; `texts` are the annotators', as they are compared."""
    if all(isinstance(annotator, str) for annotator in annotators):
        count = texts.count(predicted)
        others = [count - (text == predicted) for text in texts]
    else:
        records = [
            (i, text) if isinstance(annotator, str) else {**annotator, "answer": text}
            for i, (annotator, text) in enumerate(zip(annotators, texts, strict=True))
        ]
        matching = [record for record, text in zip(records, texts, strict=True) if text == predicted]
        others = [sum(record != other for other in matching) for record in records]
    return sum(min(1.0, matches / 3) for matches in others) / len(others)


@dataclass(frozen=True)
class Summary:
    """VQA accuracy of a result set, in percent.

    Attributes:
        overall: mean over all questions.
        by_answer_type: mean over the questions of each answer type, as "yes/no", "number", "other".
        by_question_type: the same by question type, the question's first words.
        per_question: question id to accuracy, in the order of the annotations.
    """

    overall: float
    by_answer_type: dict[str, float]
    by_question_type: dict[str, float]
    per_question: dict[int, float]

    def rounded(self, decimals: int = 2) -> "Summary":
        """Returns the percentages as the official script reports them: each rounded on its own, at the end."""

        def each(values: dict[Any, float]) -> dict[Any, float]:
            return {key: round(value, decimals) for key, value in values.items()}

        by_types = each(self.by_answer_type), each(self.by_question_type)
        return Summary(round(self.overall, decimals), *by_types, each(self.per_question))


def summarise(predictions: Mapping[int, str], annotations: Sequence[Mapping[str, Any]]) -> Summary:
    """Computes the accuracy of a whole result set by the rule of 2015 to March 2021, overall and by type.

    Args:
        predictions: question id to raw predicted answer; exactly the annotated questions, in any order.
        annotations: `question_id`, `answers` (see `question_accuracy`), `question_type` and `answer_type` of each
            question, as in the official files.

    Returns:
        The percentages, not rounded; `Summary.rounded` gives the official figures.

    Raises:
        DataError: question ids are missing from the predictions, are too many, or are annotated twice.
    """
    _check_ids(predictions, [annotation["question_id"] for annotation in annotations])
    accuracies = {a["question_id"]: question_accuracy(predictions[a["question_id"]], a["answers"]) for a in annotations}

    def by(field: str) -> dict[str, float]:
        groups: dict[str, list[float]] = {}
        for annotation in annotations:
            groups.setdefault(annotation[field], []).append(accuracies[annotation["question_id"]])
        return {name: _percent(group) for name, group in groups.items()}

    per_question = {number: 100 * accuracy for number, accuracy in accuracies.items()}
    return Summary(_percent(list(accuracies.values())), by("answer_type"), by("question_type"), per_question)


def eval_ai_results(predictions: Mapping[int, str]) -> list[dict[str, Any]]:
    """Returns the rows of the result file that the EvalAI server takes, in the order of `predictions`.

    The original writes them in the order of the question file, so pass the predictions in that order.
    """
    return [{"answer": answer, "question_id": int(question_id)} for question_id, answer in predictions.items()]


def _percent(values: list[float]) -> float:
    return 100 * float(sum(values)) / len(values)


def _check_ids(predictions: Mapping[int, str], annotated: list[int]) -> None:
    """Raises unless the predicted question ids are exactly the annotated ones, each annotated once."""
    known = set(annotated)
    missing = sorted(known - set(predictions))
    extra = sorted(set(predictions) - known)
    faults = [
        f"{len(ids)} {what} (first: {', '.join(map(str, ids[:10]))})"
        for ids, what in (
            (missing, "annotated question(s) without a prediction"),
            (extra, "predicted question(s) without an annotation"),
        )
        if ids
    ]
    if len(known) != len(annotated):
        faults.append(f"{len(annotated) - len(known)} question(s) annotated more than once")
    if not annotated:
        faults.append("no annotations at all")
    if faults:
        raise DataError("The predictions do not fit the annotations: " + "; ".join(faults) + ".")
