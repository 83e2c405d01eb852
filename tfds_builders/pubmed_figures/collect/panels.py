"""Finds the panels of a compound figure: the figure is cut along its gutters, again and again, strongest cut first.

A cut runs through the whole part it divides. It is believed for one of three reasons:

- a band of one colour with pictures on both sides, which end there in a straight line; one pixel is enough;
- a band of one colour, wide for the figure: between plots and drawings, which have no straight edges;
- no band, but a jump of grey values along a straight line: pictures that touch.

Where dark pictures stand on black, a band says little about where one ends; there a cut is believed at halves, thirds and
quarters.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""

FLAT = 40
"""Grey levels that a band of one colour may span: what JPEG does to it."""
WHITE, BLACK = 215, 45
JUMP = 22
"""Grey levels between neighbours that count as an edge."""
LEAST_SIDE = 32
LEAST_SHARE = 0.1
"""A panel's shorter side at the least, in pixels and as a share of the figure's."""
OTHER_GROUND = 0.25
"""What a cut loses whose ground is not that of the figure's first: one figure has gutters of one kind."""
BELIEVED, BELIEVED_IF_EXPECTED = 0.5, 0.15
"""Strength from which a cut is made; less is enough while the caption names more panels than were found."""
MOST_PANELS = 40


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place to divide a part of the figure.

    Attributes:
      strength: How much it is believed, 0 to 1.
      across: Whether it runs from top to bottom (between left and right).
      first: Where the band begins, in pixels of the figure.
      last: The pixel behind it; the same for a cut without a band.
      ground: "white", "dark" or "none": what it runs through.
    """

    strength: float
    across: bool
    first: int
    last: int
    ground: str


def panel_boxes(grey: np.ndarray, expected: int | None = None, letters: Sequence[Box] = ()) -> list[Box]:
    """Returns the panels' boxes, row by row.

    Args:
      grey: uint8 [H, W].
      expected: How many panels the caption names; None if it names none.
      letters: Where the panels' letters stand, if they were found: a cut divides them, so that each panel keeps one.
    """
    height, width = grey.shape
    least = max(LEAST_SIDE, round(LEAST_SHARE * min(height, width)))
    parts = [_without_margin(grey, (0, 0, width, height))]
    cuts = [_best_cut(grey, parts[0], least, letters, "")]
    ground = ""
    while len(parts) < MOST_PANELS:
        at = max(range(len(parts)), key=lambda i: getattr(cuts[i], "strength", 0.0))
        cut = cuts[at]
        enough = expected is not None and len(parts) >= expected
        if cut is None or enough or cut.strength < (BELIEVED if expected is None else BELIEVED_IF_EXPECTED):
            break
        if not ground and cut.strength >= 0.7:
            ground = cut.ground
        x0, y0, x1, y1 = parts[at]
        stop, start = cut.first, cut.last
        two = ((x0, y0, stop, y1), (start, y0, x1, y1)) if cut.across else ((x0, y0, x1, stop), (x0, start, x1, y1))
        parts[at : at + 1] = [_without_margin(grey, part) for part in two]
        cuts[at : at + 1] = [_best_cut(grey, part, least, letters, ground) for part in parts[at : at + 2]]
    return in_rows(parts)


def in_rows(boxes: list[Box]) -> list[Box]:
    """Returns boxes in reading order: rows from the top, each from the left.

    Boxes are of one row when one's middle lies within the other's height.
    """
    rest, ordered = sorted(boxes, key=lambda box: (box[1], box[0])), []
    while rest:
        top = rest[0]
        row = [box for box in rest if box[1] < (top[1] + top[3]) / 2 and top[1] <= (box[1] + box[3]) / 2]
        # A tall panel beside a stack is read first or last, the stack from its top.
        row = [box for box in row if box[1] - top[1] < 0.3 * min(box[3] - box[1], top[3] - top[1]) or box is top]
        row.sort()
        ordered += row
        rest = [box for box in rest if box not in row]
    return ordered


def _without_margin(grey: np.ndarray, part: Box) -> Box:
    """Takes white margins off a picture; a drawing keeps its paper."""
    x0, y0, x1, y1 = part
    ink = grey[y0:y1, x0:x1] < WHITE
    if ink.mean() < 0.3:
        return part
    rows, columns = np.flatnonzero(ink.mean(1) > 0.002), np.flatnonzero(ink.mean(0) > 0.002)
    if not len(rows) or not len(columns):
        return part
    return x0 + int(columns[0]), y0 + int(rows[0]), x0 + int(columns[-1]) + 1, y0 + int(rows[-1]) + 1


def _best_cut(grey: np.ndarray, part: Box, least: int, letters: Sequence[Box], ground: str) -> Cut | None:
    """Returns the strongest cut through a part; None if there is none."""
    x0, y0, x1, y1 = part
    region = grey[y0:y1, x0:x1]
    found = []
    for across, lines, start in ((True, region, x0), (False, region.T, y0)):
        if lines.shape[1] >= 2 * least and lines.shape[0] >= least:
            figure = grey.shape[1] if across else grey.shape[0]
            cuts = _cuts(lines.astype(np.int16), least, figure)
            found += [Cut(s, across, start + a, start + b, kind) for s, a, b, kind in cuts]
    if ground:
        found = [
            cut if cut.ground == ground else dataclasses.replace(cut, strength=cut.strength - OTHER_GROUND)
            for cut in found
        ]
    if letters:
        found = [dataclasses.replace(cut, strength=cut.strength + _divides(cut, part, letters)) for cut in found]
    return max(found, key=lambda cut: cut.strength, default=None)


def _divides(cut: Cut, part: Box, letters: Sequence[Box]) -> float:
    """Says what letters tell of a cut: it should leave some on either side, and begin shortly before the next."""
    x0, y0, x1, y1 = part
    centres = [((a + c) / 2, (b + d) / 2) for a, b, c, d in letters]
    places = [x if cut.across else y for x, y in centres if x0 <= x < x1 and y0 <= y < y1]
    middle = (cut.first + cut.last) / 2
    before, behind = [p for p in places if p < middle], [p for p in places if p >= middle]
    if not before or not behind:
        return -0.4
    size = x1 - x0 if cut.across else y1 - y0
    gap = min(min(behind) - middle, middle - max(before)) / size
    return 0.35 - min(0.3, gap)


def _cuts(lines: np.ndarray, least: int, figure: int) -> Iterator[tuple[float, int, int, str]]:
    """Yields strength, first and last column, and ground of cuts between the columns of a part.

    Args:
      lines: int16 [L, S], cuts run along the first axis.
      least: Columns to leave on either side.
      figure: Columns of the whole figure.
    """
    length, size = lines.shape
    ordered = np.sort(lines, axis=0)
    low, middle, high = (ordered[min(length - 1, round(q * length))] for q in (0.03, 0.5, 0.97))
    flat = (high - low) <= FLAT
    drawing = bool((lines >= WHITE).mean() > 0.5)
    if drawing:  # an axis crosses what else looks like a gutter
        flat &= (ordered[0] >= WHITE - 60) | (middle < WHITE)
    white: list[tuple[float, int, int]] = []
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(np.int8), [0]])))
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        # A band may hold steps from one colour to the next: the lightest or darkest stretch is the gutter.
        a, b = _core(middle, int(a), int(b))
        if a < least or size - b < least:
            continue
        colour = int(np.median(middle[a:b]))
        beside = [np.abs(lines[:, max(0, a - 4) : max(0, a - 1)] - colour), np.abs(lines[:, b + 1 : b + 4] - colour)]
        dense = [np.abs(lines[:, max(0, a - 24) : max(0, a - 1)] - colour), np.abs(lines[:, b + 1 : b + 24] - colour)]
        # A picture begins at once and goes on; an axis begins at once, and behind it there is paper.
        left, right = (
            float((side.max(1) > 30).mean()) * min(1.0, 2.0 * float((block > 30).mean())) if side.size else 0.0
            for side, block in zip(beside, dense, strict=True)
        )
        strength = _band_strength(min(left, right), max(left, right), colour, (a + b) / 2 / size, (b - a) / figure)
        if colour >= WHITE:
            white.append((strength, a, b))
        else:
            # Where dark pictures stand on black, nobody sees where the gutter begins.
            yield (strength, a, b, "dark") if min(left, right) > 0.5 else (strength, (a + b) // 2, (a + b) // 2, "dark")
    for strength, a, b in _without_lines_of_text(white, figure):
        yield strength, a, b, "white"
    for strength, a, b in _touching(lines, least):
        yield strength, a, b, "none"


def _without_lines_of_text(bands: list[tuple[float, int, int]], figure: int) -> list[tuple[float, int, int]]:
    """Leaves, of two bands with a line of text between them, the one that divides: text belongs to what is closer."""
    kept = list(bands)
    for i in range(len(kept) - 1):
        (upper, a, b), (lower, c, d) = kept[i], kept[i + 1]
        if c - b <= min(40, 0.06 * figure):
            both = max(upper, lower)
            above = b - a <= 1.5 * (d - c)
            kept[i], kept[i + 1] = (
                ((min(upper, both - 0.1), a, b), (both, c, d))
                if above
                else ((both, a, b), (min(lower, both - 0.1), c, d))
            )
    return kept


def _core(middle: np.ndarray, a: int, b: int) -> tuple[int, int]:
    """Narrows a run of even columns to those of one colour."""
    if b - a < 2:
        return a, b
    values = middle[a:b]
    colour = max(
        (float(values.max()), float(values.min())), key=lambda c: (c >= WHITE, (np.abs(values - c) <= 30).sum())
    )
    same = np.flatnonzero(np.abs(values - colour) <= 30)
    runs = np.split(same, np.flatnonzero(np.diff(same) > 1) + 1)
    run = max(runs, key=len)
    return a + int(run[0]), a + int(run[-1]) + 1


def _band_strength(weaker: float, stronger: float, colour: int, place: float, share: float) -> float:
    """Says how much a band is believed.

    Args:
      weaker: Share of the length along which something begins at once beside the band, on the emptier side.
      stronger: The same on the other side.
      colour: Grey level of the band.
      place: Where it is, 0 to 1.
      share: Its width, as a share of the figure's.
    """
    even = min(abs(place * k - round(place * k)) / k for k in (2, 3, 4)) < 0.012
    if colour >= WHITE:
        sharp = 0.55 + 0.45 * weaker if weaker > 0.3 else 0.0
        onesided = 0.45 + 0.2 * stronger if stronger > 0.6 else 0.0
        return max(sharp, onesided, min(0.6, share / 0.08 * 0.6) + 0.05 * even)
    if weaker > 0.5 and share < 0.06:
        return 0.5 + 0.45 * weaker
    if colour < BLACK:
        return 0.3 + 0.25 * even + 0.2 * stronger + 0.1 * weaker + min(0.1, share)
    return 0.35 * stronger


def _touching(lines: np.ndarray, least: int) -> Iterator[tuple[float, int, int]]:
    """Yields cuts where pictures touch: jumps along a straight line, where hardly any are beside it."""
    if (lines >= WHITE).mean() > 0.5:
        return  # a plot or a drawing: its lines are axes
    # A line has the same on both sides; where pictures meet, grey values change and stay changed.
    padded = np.pad(lines, ((0, 0), (2, 2)), mode="edge")
    wide = [padded[:, k : k + lines.shape[1] - 1] for k in range(5)]
    stays = (
        np.abs(wide[0] + wide[1] + wide[2] - wide[3] - wide[4] - np.pad(lines, ((0, 0), (0, 3)), mode="edge")[:, 3:-1])
        > 2 * JUMP
    )
    jumps = (np.abs(np.diff(lines, axis=1)) > JUMP) & stays
    share = jumps.mean(0)
    around = np.stack([np.roll(share, k) for k in (-6, -5, -4, -3, 3, 4, 5, 6)])
    prominence = share - np.median(around, axis=0)
    content = np.any([np.roll(lines > BLACK, k, axis=1) for k in (-4, -2, 0, 2, 4)], axis=0)[:, 1:].mean(0)
    of_content = share / np.maximum(content, 0.05)
    size = lines.shape[1]
    for x in np.argsort(-prominence)[:4]:
        x = int(x)
        if x + 1 < least or size - x - 1 < least or prominence[x] < 0.15:
            continue
        place = (x + 1) / size
        even = min(abs(place * k - round(place * k)) / k for k in (2, 3, 4)) < 0.012
        strength = min(0.95, 0.15 + 0.75 * float(prominence[x]) + 0.15 * even + 0.15 * min(1.0, float(of_content[x])))
        yield strength, x + 1, x + 1
