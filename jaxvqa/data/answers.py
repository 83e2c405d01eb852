"""Answers: normalisation, the answer list and training targets (docs/originals/rwsan.md, sections 4.6 to 4.8).

The rules are those of the official VQA evaluation script as RWSAN's public code carries them, with their oddities
(docs/originals/rwsan.md, section 9, quirks 10 to 14): trained models and published accuracies depend on them.
`jaxvqa.metrics.vqa` uses the same two steps, `process_punctuation` and `process_words`.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Float

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_HAS_PUNCTUATION = re.compile(f"[{re.escape(_PUNCTUATION)}]")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The script means to keep a period that has a digit on either side, but its look-behind is mistyped and always holds.
_LOOSE_PERIOD = re.compile(r"\.(?!\d)")
# The script passes the flag re.UNICODE, which is 32, where `sub` takes the number of replacements.
_MAX_PERIODS = 32

_NUMBER_WORDS = {"none": "0"} | {
    word: str(i)
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_ARTICLES = frozenset({"a", "an", "the"})

# Each form replaces every spelling of it that lacks exactly one apostrophe. The script's entries "Im", "Ive", "Id've"
# and "I'dve" are left out, because words are lower-case when they are looked up.
_CONTRACTED_FORMS = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll might've mightn't must've mustn't needn't not've oughtn't shan't should've shouldn't somebody'll
    somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
    they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
    who's who've why'll why're why's won't would've wouldn't you'd you'll you're you've ma'am o'clock 'twas y'all
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
"""
_CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form
    for form in _CONTRACTED_FORMS.split()
    for i, character in enumerate(form)
    if character == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round in the script

_SOFT_SCORES = np.array([0.0, 0.3, 0.6, 0.9, 1.0], np.float32)
_USUAL_ANNOTATORS = 10
FEW = 4
"""Of fewer annotators than these, no other three can agree with one."""

ANSWER_RULES = ("soft", "counts", "exact")
"""`config.data.answers.rule`: how annotated answers become training targets, see `AnswerList`, and how predictions are scored.

`soft` and `counts` score by VQA accuracy (`jaxvqa.metrics.vqa`), `exact` by comparison with each annotated answer.
"""


def process_punctuation(text: str) -> str:
    """Removes punctuation (docs/originals/rwsan.md, section 4.6, step 1).

    Each of ``; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !`` is deleted where the text has it next to a space anywhere, or
    has a comma between two digits anywhere; otherwise it becomes a space. Then at most 32 periods that no digit
    follows are deleted.
    """
    if _HAS_PUNCTUATION.search(text):
        delete_all = _COMMA_IN_NUMBER.search(text) is not None
        text = text.translate(
            {ord(p): "" if delete_all or f"{p} " in text or f" {p}" in text else " " for p in _PUNCTUATION if p in text}
        )
    return _LOOSE_PERIOD.sub("", text, count=_MAX_PERIODS) if "." in text else text


def process_words(text: str) -> str:
    """Lower-cases, maps number words to digits, drops articles and mends contractions.

    docs/originals/rwsan.md, section 4.6, step 2.
    """
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@functools.lru_cache(maxsize=1 << 17)
def normalise_answer(raw: str) -> str:
    """Brings an annotator's answer into the form that the answer list and the training targets use.

    docs/originals/rwsan.md, section 4.6.

    The result may be the empty string ("the" -> ""), which is an answer like any other.
    """
    return process_words(process_punctuation(raw)).replace(",", "")


_List = TypeVar("_List", bound="AnswerList")


@dataclass(frozen=True)
class AnswerList:
    """The A answers that a model chooses from, in the order of its outputs.

    What differs between data sets is the `form` in which they list answers, and the original's file.

    Raises:
        DataError: an answer occurs twice.
    """

    answers: tuple[str, ...]
    what: ClassVar[str] = "answer list"
    file: ClassVar[str] = "answer_dict.json"

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))
        if len(self.index) != len(self.answers):
            twice = sorted({answer for i, answer in enumerate(self.answers) if self.index[answer] != i})
            raise DataError(f"The {self.what} holds {len(twice)} answer(s) more than once: {twice[:20]}.")

    @staticmethod
    def form(raw: str | int) -> str:
        """Brings an annotator's answer, which some files hold as a number, into the form of the list."""
        return normalise_answer(str(raw))

    @classmethod
    def build(cls: type[_List], answers: Iterable[str | int], min_count: int = 1) -> _List:
        """Keeps the answers that occur at least `min_count` times, in order of first appearance.

        docs/originals/rwsan.md, section 4.7.

        RWSAN passes the raw `multiple_choice_answer` of all train, then all val annotations, with a `min_count` of 9.
        """
        counts = Counter(map(cls.form, answers))
        return cls(tuple(answer for answer, count in counts.items() if count >= min_count))

    @classmethod
    def from_file(cls: type[_List], path: str | Path) -> _List:
        """Reads a JSON file: a list of answers, or the original's.

        `answer_dict.json`: two maps, docs/originals/rwsan.md, section 4.7.

        A converted checkpoint needs the original's file, since the order of its outputs is that of the file.

        Raises:
            DataError: the file is missing, is not JSON, or is neither of the two forms.
        """
        content = read_json(path, f"the original's {cls.file}, or a list of answers")
        if isinstance(content, list) and content and all(isinstance(answer, str) for answer in content):
            return cls(tuple(content))
        return cls(cls.answers_of(content, path))

    @staticmethod
    def answers_of(content: object, path: str | Path) -> tuple[str, ...]:
        """Returns the answers of [{answer: index}, {"index": answer}] by index, after checking that both maps agree."""
        expected = f"{path}: expected a list of answers, or two maps (answer to index, index to answer)"
        if not (isinstance(content, list) and len(content) == 2 and all(isinstance(m, dict) for m in content)):
            raise DataError(f"{expected}; found {type(content).__name__} of another form.")
        to_index, to_answer = content
        answers = tuple(to_answer.get(str(i)) for i in range(len(to_answer)))
        if not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"{expected}; the second map's indices are not 0 to {len(to_answer) - 1}.")
        if to_index != {answer: i for i, answer in enumerate(answers)}:
            raise DataError(f"{expected}; the two maps do not agree.")
        return answers

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Answer to its position."""
        return {answer: i for i, answer in enumerate(self.answers)}

    def __len__(self) -> int:
        return len(self.answers)

    def label(self, answer: str | int) -> int:
        """Returns the position of a raw answer, -1 if it is not in the list."""
        return self.index.get(self.form(answer), -1)

    def soft_scores(self, human: Sequence[str]) -> Float[np.ndarray, " A"]:
        """Returns float32[A]: 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more annotators (docs/originals/rwsan.md, section 4.8).

        The annotators' raw answers are brought into the list's form first; those outside the list are ignored.
        """
        return self._scores(human, lambda count: _SOFT_SCORES[min(count, len(_SOFT_SCORES) - 1)])

    def exact_scores(self, human: Sequence[str]) -> Float[np.ndarray, " A"]:
        """Returns float32[A] with 1 for each given answer: the target where one annotated answer is the whole truth."""
        return self._scores(human, lambda _: 1.0)

    def scores(self, human: Sequence[str], rule: str) -> Float[np.ndarray, " A"]:
        """Returns the training target float32[A] of a question by one of `ANSWER_RULES`.

        `soft`: each answer's own VQA accuracy, with k of ten annotators 0, 0.3, 0.6, 0.9, 1 for k = 0, 1, 2, 3, 4 and more, and
        with fewer than four the share who gave it. `counts`: those five numbers by k alone, however many annotators there are:
        RWSAN's Visual Genome questions have one annotator, and a target of 0.3. `exact`: 1 for each annotated answer.
        """
        if rule == "exact":
            return self.exact_scores(human)
        if rule == "counts" or len(human) >= _USUAL_ANNOTATORS:
            return self.soft_scores(human)
        return self._scores(human, lambda count: expected_agreement(count, len(human)))

    def _scores(self, human: Sequence[str], score: Callable[[int], float]) -> Float[np.ndarray, " A"]:
        scores = np.zeros(len(self), np.float32)
        for label, count in Counter(map(self.label, human)).items():
            if label >= 0:
                scores[label] = score(count)
        return scores


class VerbatimList(AnswerList):
    """Answers as they stand, "yes" and "no" among them: MLMI's classes of VQA-Med (docs/originals/flamingo.md, section 13)."""

    @staticmethod
    def form(raw: str | int) -> str:
        """An answer as it stands."""
        return str(raw)


def expected_agreement(count: int, annotators: int) -> float:
    """The VQA accuracy of an answer that `count` of the annotators gave: the mean over each of them left out, in [0, 1].

    Three matches among the others count in full. Of fewer than four annotators no other three can match, and it is the share.
    """
    if annotators < FEW:
        return count / annotators
    # Those who gave the answer leave one match less behind when they are left out.
    return (count * min(1.0, (count - 1) / 3) + (annotators - count) * min(1.0, count / 3)) / annotators
