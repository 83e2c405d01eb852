"""Accuracy and BLEU of ImageCLEF VQA-Med as the official evaluator of 2021 gives them. Plain Python.

The evaluator's requirements pin NLTK 3.2.2, and its BLEU is that version's: precisions from the first empty one on are
left out without reweighting the others, so that a perfect answer of one word scores 1. NLTK 3.3 and later score it 1e-231.
The evaluator of 2020 takes the same steps; the rule here serves for all years.
"""

import functools
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxvqa.data.answers import process_punctuation, process_words
from jaxvqa.errors import DataError
from jaxvqa.metrics.snowball import stem
from jaxvqa.metrics.text import MAX_ORDER, brevity_penalty, word_sequences
from jaxvqa.metrics.vqa import normalise_prediction

DECIMALS = 4
"""The evaluator rounds both scores at the end, and only then."""

_STOP_WORDS = """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his himself she
    she's her hers herself it it's its itself they them their theirs themselves what which who whom this that that'll these
    those am is are was were be been being have has had having do does did doing a an the and but if or because as until
    while of at by for with about against between into through during before after above below to from up down in out on off
    over under again further then once here there when where why how all any both each few more most other some such no nor
    not only own same so than too very s t can will just don don't should should've now d ll m o re ve y ain aren aren't
    couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn
    mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn wouldn't
"""

STOP_WORDS = frozenset(_STOP_WORDS.split())
"""The 179 English words that BLEU leaves out; "no", "not" and "with" are among them."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

_FALL_APART = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
"""What the Treebank tokenizer does besides splitting at white space, once no punctuation is left."""

References = Mapping[str, Sequence[str]]
"""Image name -> its right answers, at least one."""


def normalise_reference(answer: str) -> str:
    """Brings a right answer into the form that accuracy compares: as a prediction, but not stripped first."""
    return process_words(process_punctuation(answer))


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 if the normalised prediction equals one of the normalised right answers, else 0.0."""
    predicted = normalise_prediction(prediction)
    return float(any(predicted == normalise_reference(reference) for reference in references))


@functools.lru_cache(maxsize=1 << 16)
def bleu_words(text: str) -> tuple[str, ...]:
    """Returns the stems that BLEU counts: lower case, without ASCII punctuation and stop words."""
    words = (
        part for word in text.lower().translate(_NO_PUNCTUATION).split() for part in _FALL_APART.get(word, (word,))
    )
    return tuple(stem(word) for word in words if word not in STOP_WORDS)


def bleu(prediction: str, references: Sequence[str]) -> float:
    """Returns the BLEU of one answer in [0, 1]: the largest over its right answers.

    The geometric mean of the clipped precisions of 1 to 4 words, each to the power of 1/4, without those from the first
    that is 0 on; times exp(1 - reference length / prediction length) for predictions that are not longer. The order of
    words costs nothing in short answers: "embolism pulmonary" is as good as "pulmonary embolism".
    """
    predicted = bleu_words(prediction)
    return max(_sentence_bleu(predicted, bleu_words(reference)) for reference in references)


def _sentence_bleu(predicted: tuple[str, ...], reference: tuple[str, ...]) -> float:
    if not predicted or not reference:
        return float(predicted == reference)
    logarithm = 0.0
    for order in range(1, MAX_ORDER + 1):
        ours, theirs = word_sequences(predicted, order), word_sequences(reference, order)
        matches = (ours & theirs).total()
        if not matches:
            if order == 1:
                return 0.0
            break
        logarithm += math.log(matches / ours.total()) / MAX_ORDER
    return math.exp(logarithm) * brevity_penalty(len(predicted), len(reference))


# Whole submissions.


@dataclass(frozen=True)
class Summary:
    """Scores of a submission, in [0, 1].

    Attributes:
      accuracy: Mean over the images.
      bleu: Mean over the images.
      per_image: Image -> (accuracy, BLEU), in the order of the references.
    """

    accuracy: float
    bleu: float
    per_image: dict[str, tuple[float, float]] = field(repr=False)

    def rounded(self) -> tuple[float, float]:
        """Returns (accuracy, BLEU) as the evaluator reports them."""
        return round(self.accuracy, DECIMALS), round(self.bleu, DECIMALS)


def summarise(
    predictions: Mapping[str, str], references: References, accuracy_references: References | None = None
) -> Summary:
    """Scores one answer for each image.

    Args:
      predictions: Image -> answer; exactly the images of the references, in any order.
      references: Image -> its right answers.
      accuracy_references: Those of accuracy, for images where they differ: the evaluator of 2021 reads two files.

    Raises:
      DataError: Images are missing or unknown, an answer is blank, or there are no references; all of it in one message.
    """
    _raise(_faults(predictions, references), "The predictions do not fit the references")
    for_accuracy = {**references, **(accuracy_references or {})}
    per_image = {
        image: (accuracy(predictions[image], for_accuracy[image]), bleu(predictions[image], answers))
        for image, answers in references.items()
    }
    first, second = (sum(column) / len(per_image) for column in zip(*per_image.values(), strict=True))
    return Summary(first, second, per_image)


def submission_lines(predictions: Mapping[str, str]) -> list[str]:
    """Returns the lines of a submission, in the order of the predictions; "|" and line ends in answers become blanks."""
    blanks = str.maketrans("|\n\r", "   ")
    return [f"{image}|{answer.translate(blanks)}" for image, answer in predictions.items()]


def _faults(predictions: Mapping[str, str], references: References) -> list[str]:
    missing = [image for image in references if image not in predictions]
    unknown = [image for image in predictions if image not in references]
    blank = [image for image, answer in predictions.items() if not answer.strip()]
    groups = ((missing, "without an answer"), (unknown, "not among the references"), (blank, "with a blank answer"))
    faults = [f"{len(images)} image(s) {what}, such as {', '.join(images[:5])}" for images, what in groups if images]
    return faults + ([] if references else ["there are no references"])


def _raise(faults: Sequence[str], what: str) -> None:
    if faults:
        raise DataError(f"{what}:\n  " + "\n  ".join(faults))
