"""Accuracy on VQA-RAD by the rules of its literature, and what no model has to earn. NumPy only.

docs/originals/cmsa.md, section 9.

A row is a mapping with the fields of a question record (`question_id`, `image_id`, `multiple_choice_answer`,
`answer_type`, `question_type`, `phrase_type`, `organ`) and, where predictions are scored, `answer`, the predicted text.
Answers are compared after VQA-RAD's normalisation.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxvqa.data.rad_text import normalise_rad_answer
from jaxvqa.errors import DataError, choose

Row = Mapping[str, Any]

ANSWER_TYPES = ("CLOSED", "OPEN")

QUESTION_TYPES = (
    *("COUNT", "COLOR", "ORGAN", "PRES", "PLANE", "MODALITY", "POS", "ABN", "SIZE", "OTHER", "ATTRIB"),
)  # fmt: skip
"""The types in the order of the original's tables."""

_MISSPELT = {"Other": "OTHER", "ATRIB": "ATTRIB", "PRSE": "PRES"}


@dataclass(frozen=True)
class Protocol:
    """Which questions count, and what counts as right.

    Attributes:
      freeform: Only the questions as clinicians asked them, without their paraphrases: 308 of the 451 test questions.
      first_for_unknown: A question whose answer is not in the answer list counts as right if the first of the list is
        predicted ("yes"), because its target, a row of zeros, has its maximum there. Else such a question is always
        wrong.
    """

    freeform: bool
    first_for_unknown: bool


PROTOCOLS = {
    "original_308": Protocol(freeform=True, first_for_unknown=True),
    "strict_308": Protocol(freeform=True, first_for_unknown=False),
    "original_451": Protocol(freeform=False, first_for_unknown=True),
    "strict_451": Protocol(freeform=False, first_for_unknown=False),
}
"""By name: `original_308` gives the numbers of CMSA's paper; `strict_308` and `strict_451` are those of MEVF's rule."""


@dataclass(frozen=True)
class Counts:
    """Counts of one group of questions.

    Attributes:
      count: Questions.
      right: Those answered rightly.
      answerable: Those whose answer is in the answer list.
    """

    count: int
    right: int
    answerable: int

    @property
    def accuracy(self) -> float:
        """Percent answered rightly; NaN for no questions."""
        return 100 * self.right / self.count if self.count else float("nan")

    @property
    def ceiling(self) -> float:
        """Percent that a perfect choice from the answer list reaches under the strict rule; NaN for no questions."""
        return 100 * self.answerable / self.count if self.count else float("nan")


@dataclass(frozen=True)
class Summary:
    """Scores of a split.

    Attributes:
      overall: All questions.
      by_answer_type: "CLOSED" and "OPEN", as the data set says; the text of the answer plays no part.
      by_question_type: Type -> score; a question of several types counts once for each.
      by_both: Answer type -> question type -> score.
      by_organ: "ABD", "HEAD", "CHEST", where the rows tell it.
      per_question: Question id -> whether it was answered rightly, in the order of the rows.
    """

    overall: Counts
    by_answer_type: dict[str, Counts]
    by_question_type: dict[str, Counts]
    by_both: dict[str, dict[str, Counts]]
    by_organ: dict[str, Counts]
    per_question: dict[int, bool] = field(repr=False)

    def table(self) -> dict[str, float]:
        """Returns accuracies in percent by name, as an evaluator reports them: "accuracy", "closed", "organ/HEAD", ..."""
        groups = {"accuracy": self.overall}
        groups |= {name.lower(): score for name, score in self.by_answer_type.items()}
        groups |= {f"question_type/{name}": score for name, score in self.by_question_type.items()}
        groups |= {f"organ/{name}": score for name, score in self.by_organ.items()}
        return {name: score.accuracy for name, score in groups.items()}


def question_types(text: str) -> tuple[str, ...]:
    """Returns the types of a question: "PRES, ATRIB" -> ("PRES", "ATTRIB").

    The original knows no misspelt types and stops at them; only train questions have them.
    """
    return tuple(dict.fromkeys(_MISSPELT.get(name, name) for name in text.strip().split(", ")))


def is_right(row: Row, answers: Sequence[str] | None, *, first_for_unknown: bool = False) -> bool:
    """Returns whether a row's predicted answer counts as right.

    Args:
      row: The question, with `answer`.
      answers: The answer list, normalised; None for models that write any text, whose answers are all in reach.
      first_for_unknown: See `Protocol`.
    """
    predicted, truth = normalise_rad_answer(row["answer"]), normalise_rad_answer(row["multiple_choice_answer"])
    if answers is None or truth in _members(answers):
        return predicted == truth
    return first_for_unknown and predicted == answers[0]


def summarise(rows: Iterable[Row], answers: Sequence[str] | None, protocol: str | Protocol = "original_308") -> Summary:
    """Scores predicted answers.

    Args:
      rows: Questions with `answer`, each question id once.
      answers: The model's answer list, normalised, as `RadAnswerList.answers`; None for models that write any text.
      protocol: One of `PROTOCOLS`, or another one.

    Raises:
      DataError: The protocol is not known, no question is left to score, or an id occurs twice.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise DataError(f"The protocol is {protocol!r}{choose(protocol, PROTOCOLS)}")
        protocol = PROTOCOLS[protocol]
    kept = [row for row in rows if not protocol.freeform or row["phrase_type"] == "freeform"]
    if not kept:
        raise DataError(
            "There is no question to score" + (" whose phrase type is freeform." if protocol.freeform else ".")
        )
    right = [is_right(row, answers, first_for_unknown=protocol.first_for_unknown) for row in kept]
    per_question = {int(row["question_id"]): result for row, result in zip(kept, right, strict=True)}
    if len(per_question) != len(kept):
        raise DataError(f"{len(kept) - len(per_question)} question id(s) occur more than once.")
    listed = None if answers is None else _members(answers)
    results = [
        (row, result, listed is None or normalise_rad_answer(row["multiple_choice_answer"]) in listed)
        for row, result in zip(kept, right, strict=True)
    ]

    def score(answer_type: str | None = None, question_type: str | None = None, organ: str | None = None) -> Counts:
        group = [
            (result, reachable)
            for row, result, reachable in results
            if answer_type in (None, row["answer_type"].strip())
            and (question_type is None or question_type in question_types(row["question_type"]))
            and organ in (None, row.get("organ"))
        ]
        return Counts(len(group), sum(result for result, _ in group), sum(reachable for _, reachable in group))

    def by_question_type(answer_type: str | None = None) -> dict[str, Counts]:
        found = {name for row in kept for name in question_types(row["question_type"])}
        names = [*QUESTION_TYPES, *sorted(found - set(QUESTION_TYPES))]
        scores = {name: score(answer_type, name) for name in names}
        return {name: each for name, each in scores.items() if each.count}

    organs = sorted({row["organ"] for row in kept if "organ" in row})
    return Summary(
        overall=score(),
        by_answer_type={name: score(name) for name in ANSWER_TYPES},
        by_question_type=by_question_type(),
        by_both={name: by_question_type(name) for name in ANSWER_TYPES},
        by_organ={name: score(organ=name) for name in organs},
        per_question=per_question,
    )


def report(rows: Sequence[Row], answers: Sequence[str] | None) -> dict[str, Summary]:
    """Scores predicted answers by every protocol of `PROTOCOLS` that has questions.

    Args:
      rows: As for `summarise`; the whole test split.
      answers: As for `summarise`.
    """
    freeform = any(row["phrase_type"] == "freeform" for row in rows)
    return {name: summarise(rows, answers, name) for name, p in PROTOCOLS.items() if freeform or not p.freeform}


# What no model has to earn.


def majority_answers(train: Iterable[Row], rows: Iterable[Row], keys: Sequence[Sequence[str]] = ((),)) -> list[str]:
    """Answers each question by the most frequent train answer among those that share the fields of a key.

    Args:
      train: Questions with `multiple_choice_answer`.
      rows: The questions to answer.
      keys: Fields that have to agree, most specific key first; where no train question agrees, the next key is tried,
        and at last all train questions. `((),)` is the majority answer, `IMAGE_AND_TYPE` the leak of VQA-RAD's split.

    Returns:
      One normalised answer a row; among equally frequent ones that which comes first in `train`.

    Raises:
      DataError: There is no train question.
    """
    keys = [tuple(key) for key in (*keys, ())]
    counts: dict[tuple[Any, ...], Counter[str]] = {}
    for row in train:
        answer = normalise_rad_answer(row["multiple_choice_answer"])
        for key in dict.fromkeys(keys):
            counts.setdefault((key, *(row[name] for name in key)), Counter())[answer] += 1
    if not counts:
        raise DataError("A majority answer needs at least one train question.")
    found = (
        next(counts[place] for key in keys if (place := (key, *(row[name] for name in key))) in counts) for row in rows
    )
    return [group.most_common(1)[0][0] for group in found]


TYPE = (("answer_type", "question_type"),)
"""Key for the majority answer of each type: 35.5 % of the literature's 451 test questions under the strict rule."""

IMAGE_AND_TYPE = (("image_id", "question_type"),)
"""Key for the most frequent train answer of the same image and question type.

The literature's split is by question: all test images are in train as well, and many train questions are test questions in
other words. This gives 55.2 % of the 451 without a look at image or words (55.0 % with answers that are only lower-cased).
"""


def with_answers(rows: Iterable[Row], answers: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the rows with predicted answers as their `answer`."""
    return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]


def _members(answers: Sequence[str]) -> frozenset[str]:
    return frozenset(answers)
