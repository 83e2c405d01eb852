"""BLIP's captions, questions and answers: cleaning, image ids, answer weights.

docs/originals/blip.md, sections 7, 13 and 16.5.
"""

import re
from collections.abc import Sequence

_MARKS = re.compile(r'[.!"()*#:;~]')
_MORE_MARKS = re.compile(r"[,.'!?\"()*#:;~]")
_GAP = re.compile(r"\s{2,}")

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
