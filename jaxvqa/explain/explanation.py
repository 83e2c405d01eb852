"""What explains an answer: the question, the image, and how much the model reads from each word and each part of the image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class AttentionMap:
    """How much a model reads from each box of an image.

    Attributes:
      weights: float32[R], the weight of each box; they add up to 1, or are all 0.
      label: what reads, such as a word; empty for the only map of an answer.
      smooth: whether the boxes are the cells of a square grid, drawn without edges (`jaxvqa.explain.gradcam`).
    """

    weights: Float[np.ndarray, " R"]
    label: str = ""
    smooth: bool = False


@dataclass(frozen=True)
class Explanation:
    """One question, its answers, and where the attention went.

    Attributes:
      id: the question's id.
      image_id: the image's id.
      question: the question as it was asked.
      words: what the model reads of it, in order; words behind `config.data.max_tokens` are left out.
      word_attention: float32[T], the weight of each word; they add up to 1.
      answers: the best answers with their probabilities, best first.
      annotators: the annotated answers; empty for a split without.
      boxes: float32[R, 4], x1, y1, x2, y2 in pixels of `size`. Empty for a model without attention over it.
      maps: the attention over the boxes: one map for the answer, or one for each word; none without attention.
      image: the encoded image (PNG or JPEG), or empty when the data set holds none.
      size: width and height of the image that the boxes lie on, in pixels; (0, 0) when nothing is known of it.
      blind: whether the model answers without the image.
    """

    id: int
    image_id: int
    question: str
    words: tuple[str, ...]
    word_attention: Float[np.ndarray, " T"]
    answers: tuple[tuple[str, float], ...]
    annotators: tuple[str, ...]
    boxes: Float[np.ndarray, "R 4"]
    maps: tuple[AttentionMap, ...]
    image: bytes
    size: tuple[int, int]
    blind: bool = False


def question_spans(
    question: str, words: Sequence[str], word_attention: Float[np.ndarray, " T"]
) -> list[tuple[str, float | None]]:
    """Cuts a question into pieces of text, each with the weight of the word in it.

    Joined, the pieces are the question again, with its punctuation and capitals. Pieces between words, and words that the
    model did not read, have None.
    """
    spans: list[tuple[str, float | None]] = []
    # Tokenizers drop, keep or split at punctuation, each in its own way; letters and digits they leave in their order.
    waiting = [
        ("".join(filter(str.isalnum, word.lower())), float(w)) for word, w in zip(words, word_attention, strict=True)
    ]
    for piece in filter(None, re.split(r"([\s/-]+)", question)):
        letters, weight = "".join(filter(str.isalnum, piece.lower())), None
        while letters and waiting:
            word, share = waiting[0]
            if letters.startswith(word):
                letters = letters[len(word) :]
                waiting.pop(0)
            elif word.startswith(letters):  # a word of two pieces, as "x-ray": both carry its weight
                waiting[0] = word[len(letters) :], share
                letters = ""
            else:
                waiting.clear()  # the model reads something else from here on
                break
            weight = (weight or 0.0) + share
        spans.append((piece, weight))
    return spans
