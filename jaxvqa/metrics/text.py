"""Scores of generated text (docs/originals/flamingo.md, section 15). NumPy and plain Python only.

Words are what white space separates. The published scores of captions and reports cut texts with the Penn Treebank's
tokenizer first, which lowers them and drops punctuation; it is a Java program and not part of this module: give texts in the
form that is to be compared, or in `plain_words`. On texts in the same form the numbers are those of NLTK (`bleu1`) and
pycocoevalcap (`corpus_bleu`, `rouge_l`, `cider`).
"""

import collections
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxvqa.errors import DataError

MAX_ORDER = 4
"""Longest word sequences that BLEU and CIDEr count; each order weighs a quarter."""

ROUGE_BETA = 1.2
"""How much more ROUGE-L weighs recall than precision."""

CIDER_SIGMA = 6.0
"""Width of CIDEr's penalty for a difference in length."""

# pycocoevalcap's guards against 0 / 0; a missing order costs much, but does not make BLEU 0.
_TINY, _SMALL = 1e-15, 1e-9

Sequences = collections.Counter[tuple[str, ...]]
"""Word sequence -> how often it occurs."""


def word_sequences(words: Sequence[str], order: int) -> Sequences:
    """Counts the sequences of `order` words in a text."""
    return collections.Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def brevity_penalty(ours: int, theirs: int) -> float:
    """Returns BLEU's factor for a text of `ours` > 0 words beside a reference of `theirs`: 1, or less if it is shorter."""
    return math.exp(min(0.0, 1 - theirs / ours))


# One text.


def plain_words(text: str) -> str:
    """A text's runs of letters and digits, in lower case, by single spaces: "T1-weighted." and "t1 - weighted" are one."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def exact_match(answer: str, truth: str) -> float:
    """Returns 1.0 if two texts are the same but for blanks around them, else 0.0. Case counts."""
    return float(answer.strip() == truth.strip())


def contains(answer: str, truth: str) -> float:
    """Returns 1.0 if one of two texts contains the other, lower-cased and stripped, else 0.0."""
    ours, theirs = answer.strip().lower(), truth.strip().lower()
    return float(ours in theirs or theirs in ours)


def bleu1(answer: str, references: Sequence[str]) -> float:
    """Returns the sentence BLEU-1 of a text in [0, 1]: the share of its words that a reference has, for short texts less.

    A word counts as often as the reference that has it most often. The reference next in length, of two the shorter one,
    sets the penalty. A text without words, or without a word of a reference, scores 0.
    """
    ours, theirs = answer.split(), [reference.split() for reference in references]
    matches = _matches(ours, theirs, 1)
    if not matches:
        return 0.0
    return matches / len(ours) * brevity_penalty(len(ours), _nearest_length(len(ours), theirs))


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Returns the ROUGE-L of a text in [0, 1]: F of the longest common subsequence of words, beta 1.2.

    Precision and recall are each the best over the references.
    """
    ours = answer.split() or [""]  # a text without words equals another one
    pairs = [(_common_subsequence(ours, words), len(words)) for words in (r.split() or [""] for r in references)]
    precision = max(common for common, _ in pairs) / len(ours)
    recall = max(common / length for common, length in pairs)
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        above = row
        row = [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if word == other else max(row[j], above[j + 1]))
    return row[-1]


def _matches(ours: Sequence[str], theirs: Sequence[Sequence[str]], order: int) -> int:
    most: Sequences = collections.Counter()
    for words in theirs:
        most |= word_sequences(words, order)
    return (word_sequences(ours, order) & most).total()


def _nearest_length(length: int, texts: Sequence[Sequence[str]]) -> int:
    return min((len(words) for words in texts), key=lambda other: (abs(other - length), other))


# Many texts.


def corpus_bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Returns BLEU-1 to BLEU-4 of a set of texts, each in [0, 1].

    Matches, words and lengths are summed over the texts first, so that long texts weigh more.

    Args:
      answers: The texts.
      references: The right texts of each, at least one.

    Raises:
      DataError: There are no texts, or not as many as references.
    """
    _check(answers, references)
    matches, counts = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    length = wanted = 0
    for answer, texts in zip(answers, references, strict=True):
        ours, theirs = answer.split(), [text.split() for text in texts]
        length += len(ours)
        wanted += _nearest_length(len(ours), theirs)
        for order in range(1, MAX_ORDER + 1):
            matches[order - 1] += _matches(ours, theirs, order)
            counts[order - 1] += max(0, len(ours) - order + 1)
    precisions = np.cumprod((matches + _TINY) / (counts + _SMALL)) ** (1 / np.arange(1, MAX_ORDER + 1))
    brevity = math.exp(min(0.0, 1 - (wanted + _SMALL) / (length + _TINY)))
    return tuple((precisions * brevity).tolist())


def cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns the CIDEr (CIDEr-D) of each text of a set, from 0 to 10; that of the set is their mean.

    The cosine of two texts' counts of 1 to 4 words, clipped at the reference's, each count times the logarithm of the inverse
    share of examples in whose references it occurs; times a Gaussian of the difference in length. A set of one scores 0.

    Args:
      answers: The texts.
      references: The right texts of each, at least one.

    Raises:
      DataError: There are no texts, or not as many as references.
    """
    _check(answers, references)
    counted = [[_all_sequences(text) for text in texts] for texts in references]
    frequencies = collections.Counter(key for texts in counted for key in set().union(*texts))

    def weigh(counts: Sequences) -> list[dict[tuple[str, ...], float]]:
        """The weighted counts of each order."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for key, count in counts.items():
            weights[len(key) - 1][key] = count * math.log(len(answers) / max(1, frequencies[key]))
        return weights

    scores = []
    for answer, texts in zip(answers, counted, strict=True):
        counts = _all_sequences(answer)
        ours, length = weigh(counts), _pairs(counts)
        total = 0.0
        for text in texts:
            penalty = math.exp(-((length - _pairs(text)) ** 2) / (2 * CIDER_SIGMA**2))
            total += penalty * sum(map(_clipped_cosine, ours, weigh(text)))
        scores.append(10 * total / MAX_ORDER / len(texts))
    return scores


def _all_sequences(text: str) -> Sequences:
    words = text.split()
    counts: Sequences = collections.Counter()
    for order in range(1, MAX_ORDER + 1):
        counts += word_sequences(words, order)
    return counts


def _pairs(counts: Sequences) -> int:
    """What CIDEr's published code takes for the length of a text: its number of word pairs."""
    return sum(count for key, count in counts.items() if len(key) == 2)


def _clipped_cosine(ours: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    both = sum(min(weight, theirs[key]) * theirs[key] for key, weight in ours.items() if key in theirs)
    return both / norms if norms else 0.0


def _check(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    without = [i for i, texts in enumerate(references) if not texts]
    if not answers or len(answers) != len(references) or without:
        raise DataError(
            f"Texts are scored beside at least one reference each; got {len(answers)} texts and {len(references)} lists of "
            f"references, of which {len(without)} are empty"
            + (f", the first for text {without[0]}." if without else ".")
        )


def perplexity(loss: float, tokens: float | int) -> float:
    """Returns exp(loss / tokens).

    Args:
      loss: Sum of the tokens' negative log-likelihoods, natural logarithms, over all batches and devices.
      tokens: Their number.

    Raises:
      DataError: There are no tokens.
    """
    if tokens <= 0:
        raise DataError(f"Perplexity is a mean over tokens; there are {tokens:g}.")
    return float(np.exp(np.float64(loss) / tokens)) if loss / tokens < 709 else math.inf  # 710 is too much for float64


# Answers by their embeddings.


def embeddings_by_answer(
    vectors: Float[np.ndarray, "B D"], answers: Iterable[str]
) -> tuple[tuple[str, ...], Float[np.ndarray, "A D"]]:
    """Averages the vectors of texts with the same answer.

    Args:
      vectors: One a text.
      answers: Their answers.

    Returns:
      The distinct answers in order of first appearance, and the mean vector of each, float64.
    """
    numbers: dict[str, int] = {}
    rows = np.asarray([numbers.setdefault(answer, len(numbers)) for answer in answers], np.int64)
    sums = np.zeros((len(numbers), vectors.shape[1]))
    np.add.at(sums, rows, vectors)
    return tuple(numbers), sums / np.bincount(rows)[:, None]


def nearest_answers(vectors: Float[np.ndarray, "B D"], table: Float[np.ndarray, "A D"]) -> Int[np.ndarray, " B"]:
    """Returns the row of `table` with the largest cosine to each vector, the first of equals; that of zeros is 0."""
    return np.argmax(_unit(vectors) @ _unit(table).T, axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
