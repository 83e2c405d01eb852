"""Ten questions on a scene, each with the answers of ten imagined annotators."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from tfds_builders.phantom_vqa.scenes import (
    ABNORMALITIES,
    BODY_PARTS,
    MODALITIES,
    PLANES,
    VIEWS,
    Scene,
    kinds_seen,
    make_scene,
    plural,
    random_stream,
)

QUESTION_TYPES = ("modality", "plane", "organ", "presence", "position", "size", "count", "abnormality")
QUESTIONS_PER_IMAGE = 10
ANNOTATORS = 10

TEMPLATES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # (family, question type, paraphrases); a template's id is its place in the list of all paraphrases.
    ("modality", "modality", (
        "what imaging modality is shown?",
        "which modality was used to acquire this image?",
        "how was this image taken?",
        "what type of scan is this?",
    )),
    ("modality_closed", "modality", (
        "is this {a_modality}?",
        "does the image look like {a_modality}?",
    )),
    ("plane", "plane", (
        "what is the plane of this image?",
        "in which plane was this image taken?",
        "which view is shown?",
    )),
    ("plane_closed", "plane", (
        "is this {a_plane} image?",
        "does the image show {a_plane} view?",
    )),
    ("part", "organ", (
        "what part of the body is shown?",
        "which body part does this image show?",
        "what is being imaged here?",
    )),
    ("part_closed", "organ", (
        "is this an image of the {part}?",
        "does the image show the {part}?",
    )),
    ("host", "organ", (
        "which organ is affected?",
        "in which organ is the abnormality?",
        "what organ contains the largest lesion?",
    )),
    ("normal", "presence", (
        "is this image normal?",
        "is this a normal study?",
        "does everything look normal here?",
    )),
    ("abnormal", "presence", (
        "is there any abnormality?",
        "does the image show a lesion?",
        "are there any abnormal findings?",
    )),
    ("kind_present", "presence", (
        "is there {a_kind}?",
        "is {a_kind} visible in the image?",
        "does the image show evidence of {a_kind}?",
    )),
    ("side_present", "presence", (
        "is there a lesion on the {side} side?",
        "is anything abnormal on the patient's {side}?",
    )),
    ("place", "position", (
        "where is the {target}?",
        "where is the {target} located?",
        "in which region does the {target} lie?",
    )),
    ("side", "position", (
        "is the {target} on the left or on the right?",
        "on which side is the {target}, left or right?",
        "which side of the patient is the {target} on?",
    )),
    ("size", "size", (
        "is the {target} small or large?",
        "how large is the {target}?",
        "what is the size of the {target}?",
    )),
    ("size_closed", "size", (
        "is the {target} large?",
        "is the {target} a small one?",
    )),
    ("count", "count", (
        "how many lesions are there?",
        "how many lesions can be seen?",
        "what is the number of abnormalities?",
    )),
    ("kind_count", "count", (
        "how many {kinds} are there?",
        "how many {kinds} does the image show?",
    )),
    ("kind", "abnormality", (
        "what abnormality is seen in the image?",
        "what is the most alarming finding?",
        "what is the diagnosis?",
        "what kind of lesion is this?",
    )),
    ("kind_choice", "abnormality", (
        "is the finding {a_kind} or {other_kind}?",
        "does the image show {a_kind} or {other_kind}?",
    )),
)  # fmt: skip

_FIRST_ID = {}
_TEXTS: list[str] = []
for _family, _type, _paraphrases in TEMPLATES:
    _FIRST_ID[_family] = len(_TEXTS)
    _TEXTS += _paraphrases
_BY_FAMILY = {family: (question_type, paraphrases) for family, question_type, paraphrases in TEMPLATES}

_SYNONYMS = {
    "ct": ("ct scan", "computed tomography"),
    "t1 mri": ("mri", "t1"),
    "t2 mri": ("mri", "t2"),
    "radiograph": ("xray", "plain film"),
    "axial": ("transverse",),
    "frontal": ("pa", "front"),
    "sagittal": ("lateral",),
    "coronal": ("frontal",),
    "brain": ("head",),
    "chest": ("thorax", "lungs"),
    "abdomen": ("belly",),
    "lung": ("lungs",),
    "hemorrhage": ("bleeding", "hematoma"),
    "mass": ("tumor", "lesion"),
    "cyst": ("fluid",),
    "infarct": ("stroke", "ischemia"),
    "calcification": ("calcium", "stone"),
    "nodule": ("mass", "lesion"),
    "consolidation": ("pneumonia", "opacity"),
    "effusion": ("fluid", "pleural effusion"),
    "normal": ("nothing", "no abnormality"),
    "small": ("tiny", "little"),
    "large": ("big", "huge"),
}
_CONFUSED = {
    "yes": ("no",),
    "no": ("yes",),
    "small": ("large", "medium"),
    "large": ("small", "medium"),
    "left": ("right", "left side"),
    "right": ("left", "right side"),
    "t1 mri": ("t2 mri",),
    "t2 mri": ("t1 mri",),
    "liver": ("kidney", "spleen"),
    "kidney": ("liver", "spleen"),
    "spleen": ("kidney", "stomach"),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question with its answers.

    Attributes:
      question_id: Unique over the data set.
      image_id: The image it asks about.
      text: The question.
      truth: The right answer by the scene.
      answers: What the ten annotators said.
      question_type: One of `QUESTION_TYPES`.
      answer_type: "yes/no", "number" or "other", as in VQA-v2.
      closed: Whether the question names its possible answers (yes/no questions do).
      template_id: Number of the paraphrase.
    """

    question_id: int
    image_id: int
    text: str
    truth: str
    answers: tuple[str, ...]
    question_type: str
    answer_type: str
    closed: bool
    template_id: int

    @property
    def multiple_choice_answer(self) -> str:
        """The most common answer; the right one among equally common ones, else the first given."""
        counts = collections.Counter(self.answers)
        return max(counts, key=lambda answer: (counts[answer], answer == self.truth))


def _shares() -> dict[str, dict[str, float]]:
    """How often each modality, plane, body part and kind of lesion occurs in scenes."""
    shares: dict[str, dict[str, float]] = {name: {} for name in ("modality", "plane", "part", "kind")}

    def add(what: str, name: str, share: float) -> None:
        shares[what][name] = shares[what].get(name, 0.0) + share

    for view in VIEWS:
        add("plane", view.plane, view.share)
        add("part", view.body_part, view.share)
        for modality, often in view.modalities:
            add("modality", modality, view.share * often)
            kinds = kinds_seen(view, modality)
            for kind, weight in kinds:
                add("kind", kind, view.share * often * weight / sum(w for _, w in kinds))
    return shares


_SHARES = _shares()


def article(noun: str) -> str:
    """A noun behind its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


class _Asker:
    """Writes the questions of one scene. Wrong alternatives are drawn as often as they are right elsewhere, so that
    the text of a question does not give its answer away."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.random = random_stream(scene.image_id, 4)

    def chance(self, probability: float) -> bool:
        return self.random.random_sample() < probability

    def other(self, what: str, truth: str) -> str:
        """Draws a wrong value of "modality", "plane", "part" or "kind" by its share."""
        names = [name for name in _SHARES[what] if name != truth]
        weights = np.cumsum([_SHARES[what][name] for name in names])
        return names[int(np.searchsorted(weights, self.random.random_sample() * weights[-1], side="right"))]

    def target_words(self) -> str:
        """How a question names the lesion it asks about."""
        if len(self.scene.lesions) == 1 and self.chance(0.5):
            return "lesion" if self.chance(0.5) else self.scene.abnormality
        return "largest lesion"

    # Each returns (words to fill in, right answer), or None where the question cannot be asked.

    def modality(self):
        return {}, self.scene.modality

    def _closed(self, what: str, truth: str):
        named, answer = (truth, "yes") if self.chance(0.5) else (self.other(what, truth), "no")
        return {what: named, f"a_{what}": article(named)}, answer

    def modality_closed(self):
        return self._closed("modality", self.scene.modality)

    def plane(self):
        return {}, self.scene.view.plane

    def plane_closed(self):
        return self._closed("plane", self.scene.view.plane)

    def part(self):
        return {}, self.scene.view.body_part

    def part_closed(self):
        return self._closed("part", self.scene.view.body_part)

    def host(self):
        return ({}, self.scene.target.organ) if self.scene.target else None

    def normal(self):
        # Normal images are few: asked about them always, about the others now and then, both answers are as common.
        if self.scene.lesions and not self.chance(0.25):
            return None
        return {}, "no" if self.scene.lesions else "yes"

    def abnormal(self):
        if self.scene.lesions and not self.chance(0.25):
            return None
        return {}, "yes" if self.scene.lesions else "no"

    def kind_present(self):
        truth = self.scene.abnormality
        if truth != "normal" and self.chance(0.68):
            return {"a_kind": article(truth)}, "yes"
        return {"a_kind": article(self.other("kind", truth))}, "no"

    def side_present(self):
        sides = {self.scene.side(lesion) for lesion in self.scene.lesions}
        if "" in sides or not sides:
            return None
        # Lesions on both sides allow "yes" only; "no" is tried first so that both answers are as common.
        present = len(sides) == 2 or self.chance(0.2)
        if len(sides) == 2 and not self.chance(0.6):
            return None
        options = [side for side in ("left", "right") if (side in sides) == present]
        if not options:
            return None
        return {"side": options[self.random.randint(len(options))]}, "yes" if present else "no"

    def place(self):
        target = self.scene.target
        return ({"target": self.target_words()}, self.scene.place(target)) if target else None

    def side(self):
        target = self.scene.target
        if not target or not self.scene.side(target):
            return None
        return {"target": self.target_words()}, self.scene.side(target)

    def size(self):
        if not self.scene.lesions:
            return None
        large = any(lesion.size == "large" for lesion in self.scene.lesions)
        return {"target": self.target_words()}, "large" if large else "small"

    def size_closed(self):
        return self.size()

    def count(self):
        return {}, str(len(self.scene.lesions))

    def kind_count(self):
        truth = self.scene.abnormality
        if truth != "normal" and self.chance(0.8):
            return {"kinds": plural(truth)}, str(len(self.scene.lesions))
        return {"kinds": plural(self.other("kind", truth))}, "0"

    def kind(self):
        return {}, self.scene.abnormality

    def kind_choice(self):
        truth = self.scene.abnormality
        if truth == "normal":
            return None
        pair = [article(truth), article(self.other("kind", truth))]
        if self.chance(0.5):
            pair.reverse()
        return {"a_kind": pair[0], "other_kind": pair[1]}, truth


# Families in the order of the ten questions, each with what is asked instead where it cannot be.
_SLOTS = (
    (("modality", 0.85), ("modality_closed", 0.15)),
    (("plane", 0.85), ("plane_closed", 0.15)),
    (("part", 0.8), ("part_closed", 0.2)),
    (("kind_present", 0.5), ("normal", 0.25), ("abnormal", 0.25)),
    (("place", 0.65), ("side", 0.35)),
    (("size", 0.75), ("size_closed", 0.25)),
    (("count", 0.6), ("kind_count", 0.4)),
    (("kind", 0.75), ("kind_choice", 0.25)),
    (("host", 0.5), ("side_present", 0.35), ("kind_present", 0.15)),
    (("side", 0.5), ("place", 0.3), ("count", 0.1), ("kind", 0.1)),
)
_INSTEAD = ("kind", "kind_count", "count", "place", "kind_present", "modality", "plane")


def _annotators(random: np.random.RandomState, truth: str, answer_type: str) -> tuple[str, ...]:
    """Ten answers: most agree, some use other words, few are wrong or unsure; some questions divide them more."""
    doubt = (0.06, 0.2, 0.45)[int(np.searchsorted((0.75, 0.95, 1.0), random.random_sample()))]
    answers = []
    for _ in range(ANNOTATORS):
        if random.random_sample() >= doubt:
            answers.append(truth)
            continue
        other = random.random_sample()
        synonyms = _SYNONYMS.get(truth, ())
        if answer_type == "number":
            near = int(truth) + (1 if random.random_sample() < 0.5 or truth == "0" else -1)
            answers.append(str(near) if other < 0.65 else "unclear")
        elif synonyms and other < 0.6:
            answers.append(synonyms[random.randint(len(synonyms))])
        elif truth in _CONFUSED and other < 0.6:
            options = _CONFUSED[truth]
            answers.append(options[random.randint(len(options))])
        elif truth in ABNORMALITIES and other < 0.85:
            answers.append(ABNORMALITIES[random.randint(len(ABNORMALITIES))])
        elif " " in truth and truth not in MODALITIES and other < 0.85:
            answers.append(truth.split()[random.randint(2)])  # "left" for "left upper"
        elif truth in PLANES + BODY_PARTS + MODALITIES and other < 0.75:
            group = next(names for names in (PLANES, BODY_PARTS, MODALITIES) if truth in names)
            answers.append(group[random.randint(len(group))])
        else:
            answers.append("unclear")
    return tuple(answers)


def make_questions(image_id: int) -> list[Question]:
    """Returns the ten questions on an image; the same id gives the same questions always.

    Args:
      image_id: Any integer from 0.
    """
    scene = make_scene(image_id)
    asker = _Asker(scene)
    random = random_stream(image_id, 5)
    questions: list[Question] = []
    texts: set[str] = set()

    def ask(family: str) -> bool:
        make: Callable = getattr(asker, family)
        asked = make()
        if asked is None:
            return False
        words, truth = asked
        question_type, paraphrases = _BY_FAMILY[family]
        number = random.randint(len(paraphrases))
        text = paraphrases[number].format(**words)
        if text in texts:
            return False
        closed = family in ("side", "size", "kind_choice")
        if family == "size_closed":
            truth = "yes" if (truth == "large") == (number == 0) else "no"
        if truth in ("yes", "no"):
            answer_type, closed = "yes/no", True
        else:
            answer_type = "number" if truth.isdigit() else "other"
        texts.add(text)
        question = Question(
            question_id=image_id * QUESTIONS_PER_IMAGE + len(questions),
            image_id=image_id,
            text=text,
            truth=truth,
            answers=_annotators(random, truth, answer_type),
            question_type=question_type,
            answer_type=answer_type,
            closed=closed,
            template_id=_FIRST_ID[family] + number,
        )
        questions.append(question)
        return True

    for slot in _SLOTS:
        names, weights = zip(*slot, strict=True)
        first = int(np.searchsorted(np.cumsum(weights), random.random_sample() * sum(weights), side="right"))
        order = [names[first], *(name for name in names if name != names[first])]
        if not any(ask(name) for name in order):
            start = random.randint(len(_INSTEAD))
            tries = [_INSTEAD[(start + i) % len(_INSTEAD)] for i in range(5 * len(_INSTEAD))]
            if not any(ask(name) for name in tries):
                raise AssertionError(f"image {image_id}: no question left to ask")
    return questions
