"""Splits the caption of a compound figure into the texts of its panels, by rules.

A caption names its panels by marks: "(A) … (B) …", "a) …", "A. …", "A: …", "(C)-(E)", "(a, b)", a bold letter, a capital
at the start of sentences, or "left" and "right". A mark may stand before its text ("(A) seed length and (B) seed
weight") or behind it ("asynchronous (a) and synchronous (b)"), and the same mark inside a sentence may only refer to a
panel ("the planes in (A)"). So marks of one form are read as a chain a, b, c, …: each letter once, in order; whatever is
left over refers.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""First character, and the one behind the last."""

MOST_CHARACTERS = 100_000
"""A longer caption is not one: `split_caption` leaves it whole."""

_LETTER = r"(?:[A-Za-z])(?:['′]|\d)?"
_JOIN = r"\s*(?:[-–—−~‐‑]|\bto\b|,?\s*\band\b|,?\s*&|[,;/])\s*"
_LIST = rf"{_LETTER}(?:{_JOIN}{_LETTER}(?![A-Za-z])){{0,25}}"
_RANGE = re.compile(r"\s*(?:[-–—−~‐‑]|\bto\b)\s*")
_LETTERS = re.compile(rf"(?<![A-Za-z]){_LETTER}(?![A-Za-z])")

# Form of a mark -> where it stands. The group "list" holds the letters.
_FORMS = {
    "round": re.compile(rf"[(\[]\s*(?P<list>{_LIST})\s*[)\]]"),
    "half": re.compile(rf"(?<![\w(\[])(?P<list>{_LIST})\)"),
    "point": re.compile(
        rf"(?:(?<![\w(\[.\-'’])|(?<=[a-z])(?=[A-Z]\.\s))(?P<list>{_LIST})\s?(?:[.:](?=\s|$)|[.:](?=[A-Z][a-z]))"
    ),
    "comma": re.compile(rf"(?:^|(?<=[.;:!?]\s))(?P<list>{_LIST})\s?[,—–=](?=\s)"),
    "panel": re.compile(rf"(?:^|(?<=[.;:!?,]\s))[Pp]anels?\s+(?P<list>{_LIST})(?:\s?[:.,)—–-]|(?=\s))"),
    "bare": re.compile(
        r"(?:^|(?<=[.;:!?]\s))(?P<list>[A-Z](?:\s?[-–]\s?[A-Z])?(?=\s+[A-Z0-9])|[a-z](?:\s?[-–]\s?[a-z])?(?=\s+[\w(]))"
    ),
}
_ALONE = ("round", "half")
"""Forms of which one mark, at the start of a sentence, is enough: half of a figure is captioned."""
_SIDES = ("left", "right", "top", "bottom", "upper", "lower", "middle", "centre", "center")
_SIDE = "|".join(_SIDES)
_SIDE_FORMS = {
    "round": re.compile(rf"\(\s*(?P<list>{_SIDE})(?:\s+(?:panel|image|side|row|column|figure))?\s*\)", re.I),
    "point": re.compile(
        rf"(?:^|(?<=[.;,]\s))(?P<list>{_SIDE})(?:\s+(?:panel|image|side|row|column|figure))?\s?[:,](?=\s)", re.I
    ),
    "panel": re.compile(rf"(?:^|(?<=[.;]\s))(?:the\s+)?(?P<list>{_SIDE})\s+(?:panel|image)s?(?=\s)", re.I),
}
_OPPOSITE = [{"left", "right"}, {"top", "bottom"}, {"upper", "lower"}]

_BOUNDARY = re.compile(r"(?:^|[.;:!?\n])[\s\"”’)]*$")
_REFERS = re.compile(
    r"\b(?:in|of|from|see|panels?|shown|as|to|than|with|figs?\.?|figures?|by|groups?|points?|cases?|axes|axis|arrows?"
    r"|lines?|types?|phases?|levels?|vitamins?|patients?|areas?|regions?|part|stage)\s*$",
    re.I,
)
_JOINS = re.compile(r"[\s,;]*(?:\b(?:and|or|versus|vs\.?|with|while|whereas)\b)?[\s,;]*$", re.I)
_LEADS = re.compile(r"^[\s,;:.\-–—]*(?:\b(?:and|or|versus|vs\.?|but)\b)?[\s,;:]*", re.I)
_BEHIND = re.compile(r"^\s*(?:[,;.]|$|\b(?:and|or|while|whereas|versus|vs)\b)", re.I)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z(\[]|\s*$)|(?<=[a-z)\]])\.(?=[A-Z(])")
_CLAUSE_END = re.compile(_SENTENCE_END.pattern + r"|:(?=\s+[A-Z])")


@dataclasses.dataclass(frozen=True)
class Mark:
    """A place in a caption that names panels.

    Attributes:
      span: Where it stands.
      labels: The panels it names, as printed: ("C", "D", "E") for "(C)-(E)".
      starts: Whether a sentence, or a part of it, starts here.
      refers: Whether the words before say that it refers to a panel.
    """

    span: Span
    labels: tuple[str, ...]
    starts: bool
    refers: bool


@dataclasses.dataclass(frozen=True)
class Split:
    """A caption in its parts.

    Attributes:
      caption: The whole text.
      parts: Label, as printed -> where its own text stands, in order. Panels of a range share one text. Empty: no panels.
      common: Where text for all panels stands: before the first mark, and behind the last where labels follow their texts.
      behind: Whether labels follow their texts.
    """

    caption: str
    parts: dict[str, Span]
    common: tuple[Span, ...]
    behind: bool = False

    @property
    def texts(self) -> dict[str, str]:
        """Label -> its text."""
        return {label: self.caption[start:stop] for label, (start, stop) in self.parts.items()}

    @property
    def preamble(self) -> str:
        """The text for all panels."""
        return " ".join(self.caption[start:stop] for start, stop in self.common if stop > start)


def split_caption(caption: str, bold: Iterable[Span] = ()) -> Split:
    """Splits a caption into sub-captions.

    Args:
      caption: The text, without mark-up.
      bold: Where it is printed bold: a bold letter is a mark by itself.

    Returns:
      Its parts; none where no panel is named.
    """
    whole = Split(caption, {}, ())
    if len(caption) > MOST_CHARACTERS:
        return whole
    found = [_chain(_merged(caption, marks), form) for form, marks in _candidates(caption, bold)]
    best = max(found, key=lambda chain: chain[0], default=(0.0, []))
    marks = best[1] or _sides(caption)
    split = _parts(caption, marks) if marks else whole
    return split if all(split.texts.values()) else whole


def _candidates(caption: str, bold: Iterable[Span]) -> Iterable[tuple[str, list[Mark]]]:
    """Yields the marks of each form."""
    for form, pattern in _FORMS.items():
        marks = [_mark(caption, match, form) for match in pattern.finditer(caption)]
        yield form, [mark for mark in marks if mark.labels]
    printed = []
    for start, stop in bold:
        text = caption[start:stop]
        match = re.fullmatch(rf"\s*\(?({_LIST})[).,:]*\s*", text)
        if match:
            printed.append(Mark((start, stop), _labels(match[1]), _starts(caption, start), False))
    yield "bold", printed


def _starts(caption: str, at: int) -> bool:
    return bool(_BOUNDARY.search(caption[max(0, at - 20) : at]) if at else True)


def _mark(caption: str, match: re.Match[str], form: str) -> Mark:
    start = match.start()
    before = caption[max(0, start - 20) : start]
    labels = _labels(match["list"])
    refers = bool(_REFERS.search(before))
    glued = form == "point" and before[-1:].islower() and labels[:1] == ("A",)  # "… tumourA. Axial": a line end lost
    starts = _starts(caption, start) or glued or (match.group().endswith(":") and before.rstrip().endswith((",", ")")))
    after = caption[match.end() :].lstrip()
    if (
        form == "point"
        and not starts
        and (len(labels) > 1 or not (after[:1].isupper() or before.rstrip().endswith(")")))
    ):
        labels = ()  # an initial, a species, the end of a sentence
    if form == "half" and caption.rfind("(", 0, start) > caption.rfind(")", 0, start):
        labels = ()  # the end of "(arrow A)"
    return Mark(match.span(), labels, starts, refers and not starts)


def _labels(text: str) -> tuple[str, ...]:
    """Returns the labels of a list or range, or () if they are not in order."""
    letters = list(_LETTERS.finditer(text))
    labels = [match.group() for match in letters[:1]]
    for previous, match in itertools.pairwise(letters):
        gap, letter = text[previous.end() : match.start()], match.group()
        if _RANGE.fullmatch(gap):
            lowest, highest = ord(labels[-1][0]), ord(letter[0])
            if not lowest < highest <= lowest + 25 or labels[-1][0].isupper() != letter[0].isupper():
                return ()
            labels += [chr(code) for code in range(lowest + 1, highest)]
        labels.append(letter)
    return tuple(labels) if labels == sorted(labels) and len(set(labels)) == len(labels) else ()


def _merged(caption: str, marks: Sequence[Mark]) -> list[Mark]:
    """Joins marks with nothing but "-" or "and" between them: "(C)-(E)", "(A) and (B)" before one text."""
    merged: list[Mark] = []
    for mark in marks:
        last = merged[-1] if merged else None
        gap = caption[last.span[1] : mark.span[0]] if last else ""
        if (last and re.fullmatch(_JOIN, gap)) or (last and gap == ""):
            text = f"{last.labels[-1]}{gap if _RANGE.fullmatch(gap) else ','}{mark.labels[0]}"
            labels = _labels(text)
            if labels:
                labels = last.labels[:-1] + labels + mark.labels[1:]
                merged[-1] = Mark((last.span[0], mark.span[1]), labels, last.starts, last.refers)
                continue
        merged.append(mark)
    return merged


def _chain(marks: Sequence[Mark], form: str) -> tuple[float, list[Mark]]:
    """Returns the best chain of marks a, b, c, … with its score; an empty one when there is none to believe."""
    best: list[tuple[float, list[Mark]]] = []
    for i, mark in enumerate(marks):
        own = len(mark.labels) + (0.5 if mark.starts else 0.0) - (0.6 if mark.refers else 0.0)
        first = mark.labels[0].lower()[0] == "a"
        options = [(own + (1.0 if first else -1.0), [mark])]
        for j in range(i):
            score, chain = best[j]
            if _follows(chain[-1].labels[-1], mark.labels[0]):
                options.append((score + own, [*chain, mark]))
        best.append(max(options, key=lambda option: option[0]))
    for score, chain in sorted(best, key=lambda option: -option[0]):
        labels = [label for mark in chain for label in mark.labels]
        starts, from_a = chain[0].starts, labels[0].lower()[0] == "a"
        if form in _ALONE:
            believed = (from_a and len(labels) >= 2) or (starts and labels[0].lower() <= "h")
        else:
            believed = from_a and starts and len(labels) >= 2
        if believed:
            return score, chain
    return 0.0, []


def _follows(before: str, after: str) -> bool:
    """Whether label `after` comes next: B after A, A2 after A1, B1 after A2."""
    if before[0].isupper() != after[0].isupper():
        return False
    if before[0] == after[0]:
        return (
            len(after) == 2 and after[1:].isdigit() and before[1:].isdigit() and int(after[1:]) == int(before[1:]) + 1
        )
    return ord(after[0]) == ord(before[0]) + 1 and after[1:] in ("", "1", before[1:])


def _sides(caption: str) -> list[Mark]:
    """Returns marks "left" and "right", "top" and "bottom", where both stand."""
    for pattern in _SIDE_FORMS.values():
        marks: list[Mark] = []
        for match in pattern.finditer(caption):
            label = match["list"].lower()
            if all(label not in mark.labels for mark in marks):
                marks.append(Mark(match.span(), (label,), _starts(caption, match.start()), False))
        named = {mark.labels[0] for mark in marks}
        if any(pair <= named for pair in _OPPOSITE):
            inside = not marks[0].starts and not _BEHIND.match(caption[marks[0].span[1] :])
            return [] if inside else marks  # "from the proximal (right) to the distal (left)"
    return []


def _parts(caption: str, marks: Sequence[Mark]) -> Split:
    """Gives each mark its text, before or behind it."""
    behind = _labels_follow(caption, marks)
    parts: dict[str, Span] = {}
    common: list[Span] = []
    stops = [mark.span[1] for mark in marks]
    if behind:
        for mark, before in zip(marks, [0, *stops], strict=False):
            start = max([before, *(m.end() for m in _CLAUSE_END.finditer(caption, before, mark.span[0]))])
            parts |= dict.fromkeys(mark.labels, _trimmed(caption, start, mark.span[0]))
            common.append(_trimmed(caption, before, start))
        common.append(_trimmed(caption, stops[-1], len(caption)))
    else:
        common.append(_trimmed(caption, 0, marks[0].span[0], ends=False))
        ends = [mark.span[0] for mark in marks[1:]] + [_last_end(caption, marks)]
        for mark, end in zip(marks, ends, strict=True):
            parts |= dict.fromkeys(mark.labels, _trimmed(caption, mark.span[1], end))
        common.append(_trimmed(caption, ends[-1], len(caption)))
    return Split(caption, parts, tuple(span for span in common if span[1] > span[0]), behind)


def _labels_follow(caption: str, marks: Sequence[Mark]) -> bool:
    """Whether labels stand behind their texts."""
    if marks[0].starts or not _trimmed(caption, 0, marks[0].span[0]):
        return False
    votes = [bool(_BEHIND.match(caption[mark.span[1] :])) for mark in marks]
    return votes[0] or sum(votes) * 2 > len(votes) or not caption[marks[-1].span[1] :].strip(" .;,")


def _last_end(caption: str, marks: Sequence[Mark]) -> int:
    """Where the text of the last mark ends: with its sentence, if marks stand inside one sentence."""
    if any(mark.starts for mark in marks):
        return len(caption)
    match = _SENTENCE_END.search(caption, marks[-1].span[1])
    return match.end() if match else len(caption)


def _trimmed(caption: str, start: int, stop: int, ends: bool = True) -> Span:
    """Narrows a span to its text, without joining words and commas around it."""
    text = caption[start:stop]
    lead = _LEADS.match(text)
    start += lead.end() if lead else 0
    text = caption[start:stop]
    tail = _JOINS.search(text) if ends else re.search(r"\s*$", text)
    return start, max(start, stop - (len(text) - tail.start() if tail else 0))
