"""Eight sentences about two scenes, half of them true, in the manner of NLVR2.

In a sentence "left" and "right" mean the images alone, never a side of the patient: images that change places, and these words
with them, leave it as true as it was.
"""

import dataclasses

import numpy as np

from tfds_builders.phantom_vqa.questions import article
from tfds_builders.phantom_vqa.scenes import Scene, make_scene, random_stream

SENTENCES_PER_PAIR = 8

FAMILIES = ("side", "contrast", "both", "one", "more")
"""What a sentence says: a fact of one image; of it and not of the other; of both; of one alone; which has more lesions."""

_SIDES = ("left", "right")
_NUMBERS = ("no lesion", "one lesion", "two lesions", "three lesions", "four lesions")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
      sentence_id: Unique over the data set.
      text: The sentence.
      truth: "true" or "false".
      family: One of `FAMILIES`.
    """

    sentence_id: int
    text: str
    truth: str
    family: str


def shown(scene: Scene) -> tuple[str, ...]:
    """What an image shows, in words that follow "shows"."""
    kind = () if scene.abnormality == "normal" else (article(scene.abnormality),)
    sizes = dict.fromkeys(f"a {lesion.size} lesion" for lesion in scene.lesions)
    view = (f"the {scene.view.body_part}", article(scene.modality), f"{article(scene.view.plane)} view")
    return (*view, *kind, *sizes, _NUMBERS[len(scene.lesions)])


class _Writer:
    """Writes the sentences about a pair, each of the truth that is asked for; None where a family has none.

    What a false sentence says of an image is true of the other wherever that can be, so that its words alone give little away.
    """

    def __init__(self, first: Scene, second: Scene):
        self.random = random_stream(first.image_id, 7)
        self.facts = shown(first), shown(second)
        self.lesions = len(first.lesions), len(second.lesions)

    def pick(self, options: list[str]) -> str | None:
        return options[self.random.randint(len(options))] if options else None

    def only(self, side: int) -> list[str]:
        """What one image shows and the other does not."""
        return [fact for fact in self.facts[side] if fact not in self.facts[1 - side]]

    def shared(self) -> list[str]:
        return [fact for fact in self.facts[0] if fact in self.facts[1]]

    def side(self, truth: bool) -> str | None:
        side = self.random.randint(2)
        fact = self.pick(list(self.facts[side]) if truth else self.only(1 - side))
        return fact and f"the {_SIDES[side]} image shows {fact}"

    def contrast(self, truth: bool) -> str | None:
        side = self.random.randint(2)
        fact = self.pick(self.only(side if truth else 1 - side))
        return fact and f"the {_SIDES[side]} image shows {fact} and the {_SIDES[1 - side]} image does not"

    def both(self, truth: bool) -> str | None:
        fact = self.pick(self.shared() if truth else [*self.only(0), *self.only(1)])
        return fact and f"both images show {fact}"

    def one(self, truth: bool) -> str | None:
        fact = self.pick([*self.only(0), *self.only(1)] if truth else self.shared())
        return fact and f"only one of the images shows {fact}"

    def more(self, truth: bool) -> str | None:
        if self.lesions[0] == self.lesions[1]:
            return None
        more = int(np.argmax(self.lesions))
        side, word = (more, "more") if self.random.randint(2) else (1 - more, "fewer")
        side = side if truth else 1 - side
        return f"there are {word} lesions in the {_SIDES[side]} image than in the {_SIDES[1 - side]} image"


def make_sentences(image_id: int) -> list[Sentence]:
    """Returns the sentences about an image and the one behind it; the same id gives the same sentences always.

    Args:
      image_id: Any even integer from 0.
    """
    writer = _Writer(make_scene(image_id), make_scene(image_id + 1))
    truths = writer.random.permutation(np.arange(SENTENCES_PER_PAIR) % 2 == 0)
    found: dict[str, Sentence] = {}
    while len(found) < SENTENCES_PER_PAIR:
        truth = bool(truths[len(found)])
        family = FAMILIES[writer.random.randint(len(FAMILIES))]
        if (text := getattr(writer, family)(truth)) and text not in found:
            number = image_id // 2 * SENTENCES_PER_PAIR + len(found)
            found[text] = Sentence(number, text, "true" if truth else "false", family)
    return list(found.values())
