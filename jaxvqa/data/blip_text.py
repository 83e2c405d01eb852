"""BLIP's captions, questions and answers: cleaning, token ids, image ids, answer weights.

docs/originals/blip.md, sections 2, 7, 13 and 16.5.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvqa.data.tokenizers import BERT_SPECIAL, Tokenizer
from jaxvqa.errors import DataError

DECODE, ENCODE = "[DEC]", "[ENC]"
"""What the decoder's texts begin with, and those that are read with an image."""

ADDED = (DECODE, ENCODE)
"""The special tokens that BERT's vocabulary lacks, in the original's order (docs/originals/blip.md, section 2)."""

_MARKS = re.compile(r'[.!"()*#:;~]')
_MORE_MARKS = re.compile(r"[,.'!?\"()*#:;~]")
_GAP = re.compile(r"\s{2,}")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")

PROMPT = "a picture of "
"""What captions are written on from (docs/originals/blip.md, section 8)."""

VISUAL_GENOME_WEIGHT = 0.2
"""Weight of the one answer of a Visual Genome question."""


def _first_words(text: str, count: int) -> str:
    return " ".join(text.split(" ")[:count])


def pre_caption(caption: str, max_words: int = 50) -> str:
    """Cleans a caption: lower case, each of `. ! " ( ) * # : ; ~` a space, white space once, the first words.

    docs/originals/blip.md, section 13.

    A single line break inside stays; words are what single spaces part.
    """
    caption = _GAP.sub(" ", _MARKS.sub(" ", caption.lower()))
    return _first_words(caption.rstrip("\n").strip(" "), max_words)


def without_tags(caption: str) -> str:
    """A caption without HTML tags, which MedVL's keep (docs/originals/blip.md, section 18, quirk 20)."""
    return _TAG.sub("", caption)


def pre_question(question: str, max_words: int = 50) -> str:
    """Cleans a question: lower case, without `. ! " ( ) * # : ; ~` and spaces at its end, the first words.

    docs/originals/blip.md, section 13.

    Spaces at its start and double ones stay, and count as empty words.
    """
    return _first_words(_MARKS.sub("", question.lower()).rstrip(" "), max_words)


def vis_pre_caption(caption: str, max_words: int = 200) -> str:
    """Cleans a caption for MedVL's attention maps: lower case, without `, . ' ! ? " ( ) * # : ; ~`, `-` and `/` spaces.

    docs/originals/blip.md, section 16.5.
    """
    caption = _MORE_MARKS.sub("", caption.lower()).replace("-", " ").replace("/", " ")
    return _first_words(_GAP.sub(" ", caption).rstrip("\n").strip(" "), max_words)


def coco_image_id(path: str, *, sound: bool = False) -> str:
    """The id of an image in COCO's evaluation of captions: what stands behind the last `_` of its file's name.

    The original strips the characters `.`, `j`, `p` and `g` from both ends of the name, which leaves `.pn` of `.png`
    (docs/originals/blip.md, section 18, quirk 9); if `sound`, it is the name without its extension.
    """
    name = path.rpartition("/")[2]
    name = name.rpartition(".")[0] or name if sound else name.strip(".jpg")
    return name.rpartition("_")[2]


def weighted_answers(answers: str | Sequence[str]) -> tuple[list[str], list[float]]:
    """The answers that a question is trained on, each once in order of first appearance, and their weights.

    docs/originals/blip.md, section 7.

    Of several annotators' answers each counts its share; the one answer of a Visual Genome question, a text, counts 0.2.
    """
    if isinstance(answers, str):
        return [answers], [VISUAL_GENOME_WEIGHT]
    weights: dict[str, float] = {}
    for answer in answers:
        weights[answer] = weights.get(answer, 0.0) + 1 / len(answers)
    return list(weights), list(weights.values())


# Token ids.

_SPACED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"))
_ENDINGS = ("n't", "'m", "'s", "'ve", "'re")


class CaptionTokenizer(Tokenizer):
    """BERT's word pieces with the special tokens of BLIP (docs/originals/blip.md, section 2).

    Attributes:
      padding: id of the token that fills a text.
      begin: id of the token that a text begins with.
      end: id of the token that ends it.
      decode_begin: id that the decoder's texts begin with instead.
      encode_begin: id that texts begin with instead which are read with an image.
    """

    def __init__(self, asset: Mapping[str, Any]):
        """Args: see `Tokenizer`.

        Raises:
          DataError: it lacks special tokens; names them.
        """
        super().__init__(asset, (*BERT_SPECIAL, *ADDED))
        ids = {name: self.token_id(name) for name in ("[PAD]", "[CLS]", "[SEP]", *ADDED)}
        if missing := [name for name, number in ids.items() if number is None]:
            raise DataError(
                f"The tokenizer has no token {', '.join(missing)}: expected BERT's word pieces with {' and '.join(ADDED)}."
            )
        found = (number for number in ids.values() if number is not None)
        self.padding, self.begin, self.end, self.decode_begin, self.encode_begin = found

    def whole(self, text: str, max_tokens: int | None = None, *, spelt: bool = False) -> list[int]:
        """Token ids of `[CLS] text [SEP]`; a longer one is cut to `max_tokens`, with [SEP] last.

        Args:
          text: the text.
          max_tokens: the most ids.
          spelt: whether special tokens that the text spells out are these, as the original reads them, instead of text.
        """
        ids = self._with_spelt(text) if spelt else self.encode(text)
        return [self.begin, *(ids if max_tokens is None else ids[: max(max_tokens - 2, 0)]), self.end]

    def _with_spelt(self, text: str) -> list[int]:
        names = {name: number for number, name in self._special.items()}
        pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        return [i for piece in pieces for i in ([names[piece]] if piece in names else self.encode(piece))]

    def padded(self, text: str, max_tokens: int, *, spelt: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The same, int32[T] filled up with padding, and bool[T], which of them are tokens of the text."""
        ids = self.whole(text, max_tokens, spelt=spelt)
        filled = np.full(max_tokens, self.padding, np.int32)
        filled[: len(ids)] = ids
        return filled, np.arange(max_tokens) < len(ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids without special tokens, marks joined to the word before as the original's tokenizer does."""
        text = super().decode(ids)
        for spaced, close in (*_SPACED, *((f" {ending}", ending) for ending in _ENDINGS)):
            text = text.replace(spaced, close)
        return text
