"""Composes figures of several panels from single pictures, with what a reader takes of them: boxes, letters, sub-captions.

Everything is drawn from one seed: layout, gutters, letters, caption and JPEG quality.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSans-Oblique", "STIXGeneral",
    "STIXGeneralBol", "cmss10", "cmr10",
)  # fmt: skip
_FINDINGS = (
    "mass",
    "haemorrhage",
    "cyst",
    "abscess",
    "infarct",
    "nodule",
    "effusion",
    "fracture",
    "oedema",
    "aneurysm",
)
_VIEWS = ("Axial", "Coronal", "Sagittal", "Contrast-enhanced", "Unenhanced", "Follow-up", "Magnified", "Preoperative")
_KINDS = ("CT", "T1-weighted MRI", "T2-weighted MRI", "FLAIR image", "radiograph", "angiogram", "DWI", "ultrasound")
_PLACES = (
    "left frontal lobe",
    "right thalamus",
    "cerebellum",
    "left kidney",
    "right lower lobe",
    "liver",
    "basal ganglia",
)


@dataclasses.dataclass(frozen=True)
class Composed:
    """A figure and what is in it.

    Attributes:
      jpeg: The picture's bytes.
      boxes: Each panel's box, in the order of its letters.
      labels: Each panel's label; letters, or sides ("left").
      printed: Where the labels are printed in the picture, in order; none if they are not.
      caption: The caption.
      texts: Label -> its sub-caption.
    """

    jpeg: bytes
    boxes: tuple[Box, ...]
    labels: tuple[str, ...]
    printed: tuple[Box, ...]
    caption: str
    texts: dict[str, str]


def single_pictures(folder: Path) -> list[Path]:
    """Returns the pictures under a folder, by name; of radiology data sets, each is one panel."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def compose(seed: int, pictures: Sequence[Path]) -> Composed:
    """Makes the figure of a seed.

    Args:
      seed: Any number.
      pictures: Files to draw panels from.
    """
    rng = np.random.default_rng(seed)
    cells, width, height = _layout(rng)
    gutter = int(rng.integers(0, 13))
    ground = int(rng.choice([255, 0], p=[0.75, 0.25]))
    margin = gutter if rng.random() < 0.3 else 0
    outside = ground == 255 and rng.random() < 0.12
    letter_height = max(12, round(float(rng.uniform(0.07, 0.16)) * min(c[3] - c[1] for c in cells)))
    head = round(letter_height * 1.5) if outside else 0
    columns = sorted({c[0] for c in cells} | {width})
    rows = sorted({c[1] for c in cells})
    canvas = Image.new("RGB", (width + 2 * margin, height + 2 * margin + head * len(rows)), (ground,) * 3)
    boxes = []
    for x0, y0, x1, y1 in cells:
        # Half a gutter is taken off each inner edge.
        left = x0 + (gutter // 2 if x0 else 0)
        right = x1 - (gutter - gutter // 2 if x1 != columns[-1] else 0)
        top = y0 + (gutter // 2 if y0 else 0)
        bottom = y1 - (gutter - gutter // 2 if y1 != height else 0)
        down = head * (sum(row <= y0 for row in rows)) + margin
        box = (left + margin, top + down, right + margin, bottom + head * (sum(row < y1 for row in rows)) + margin)
        picture = _cut(Image.open(pictures[int(rng.integers(len(pictures)))]), box[2] - box[0], box[3] - box[1], rng)
        canvas.paste(picture, box[:2])
        boxes.append(box)
    order = sorted(range(len(boxes)), key=lambda i: (cells[i][1], cells[i][0]))
    if rng.random() < 0.1:
        order = sorted(range(len(boxes)), key=lambda i: (cells[i][0], cells[i][1]))
    boxes = [boxes[i] for i in order]
    upper = rng.random() < 0.6
    labels = [chr((65 if upper else 97) + i) for i in range(len(boxes))]
    sides = {(True, False): ("left", "right"), (False, True): ("top", "bottom")}
    key = (len(boxes) == 2 and boxes[0][1] == boxes[1][1], len(boxes) == 2 and boxes[0][0] == boxes[1][0])
    printed: list[Box] = []
    if key in sides and rng.random() < 0.3:
        labels = list(sides[key])
    else:
        printed = _print_letters(canvas, boxes, labels, letter_height, outside, rng)
    caption, texts = _caption(labels, rng)
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=int(rng.integers(60, 96)))
    return Composed(file.getvalue(), tuple(boxes), tuple(labels), tuple(printed), caption, texts)


def _layout(rng: np.random.Generator) -> tuple[list[Box], int, int]:
    """Returns the cells of a figure, its width and height: a grid, or rows or columns of unequal parts."""
    width, height = int(rng.integers(450, 1100)), 0
    kind = rng.choice(["row", "column", "grid", "uneven rows", "big"], p=[0.3, 0.1, 0.3, 0.15, 0.15])
    if kind == "row":
        n = int(rng.integers(2, 5))
        height = round(width / n * rng.uniform(0.8, 1.25))
        return [(width * i // n, 0, width * (i + 1) // n, height) for i in range(n)], width, height
    if kind == "column":
        n, width = int(rng.integers(2, 4)), int(rng.integers(250, 450))
        each = round(width * rng.uniform(0.7, 1.1))
        return [(0, each * i, width, each * (i + 1)) for i in range(n)], width, each * n
    if kind == "grid":
        across, down = [(2, 2), (3, 2), (2, 3), (3, 3), (4, 2)][int(rng.integers(5))]
        each = round(width / across * rng.uniform(0.8, 1.2))
        cells = [
            (width * i // across, each * j, width * (i + 1) // across, each * (j + 1))
            for j in range(down)
            for i in range(across)
        ]
        return cells, width, each * down
    if kind == "uneven rows":
        cells = []
        for n in rng.permutation([2, 3])[: int(rng.integers(1, 3))]:
            each = round(width / n * rng.uniform(0.8, 1.1))
            parts = np.cumsum([0, *rng.uniform(0.8, 1.25, n)])
            edges = [round(width * part / parts[-1]) for part in parts]
            cells += [(edges[i], height, edges[i + 1], height + each) for i in range(n)]
            height += each
        return cells, width, height
    n, big = int(rng.integers(2, 4)), round(width * rng.uniform(0.5, 0.65))
    each = round((width - big) * rng.uniform(0.8, 1.1))
    cells = [(0, 0, big, each * n)] + [(big, each * i, width, each * (i + 1)) for i in range(n)]
    if rng.random() < 0.4:
        cells = [(width - x1, y0, width - x0, y1) for x0, y0, x1, y1 in cells]
    return cells, width, each * n


def _cut(picture: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Scales a picture so that it covers a cell, and cuts what stands out."""
    picture = picture.convert("RGB")
    scale = max(width / picture.width, height / picture.height)
    picture = picture.resize((max(width, round(picture.width * scale)), max(height, round(picture.height * scale))))
    x, y = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((x, y, x + width, y + height))


def _print_letters(
    canvas: Image.Image, boxes: Sequence[Box], labels: Sequence[str], size: int, outside: bool, rng: np.random.Generator
) -> list[Box]:
    """Prints each label into a corner of its panel, or above it; returns where."""
    places = []
    name = str(rng.choice(FONTS))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf", f"{name}.ttf")), round(size * 1.3))
    form = str(rng.choice(["{}", "({})", "{})", "{}."], p=[0.7, 0.14, 0.08, 0.08]))
    corner = str(rng.choice(["top left", "bottom left", "top right", "bottom right"], p=[0.55, 0.2, 0.15, 0.1]))
    manner = str(rng.choice(["contrast", "plate", "colour"], p=[0.65, 0.2, 0.15]))
    colour = [(255, 255, 0), (255, 60, 60), (90, 200, 255)][int(rng.integers(3))]
    inset = int(rng.integers(2, 10))
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        text = form.format(label)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        w, h = right - left, bottom - top
        x = x0 + inset if "left" in corner else x1 - inset - w
        y = y0 + inset if "top" in corner else y1 - inset - h
        if outside:
            x, y = x0, y0 - h - 3
        under = np.asarray(canvas.crop((x, y, x + w, y + h)).convert("L"), np.float32)
        dark = under.size == 0 or under.mean() < 110
        fill = (0, 0, 0) if outside else (255, 255, 255) if dark else (0, 0, 0)
        if manner == "plate" and not outside:
            white = rng.random() < 0.5
            draw.rectangle((x - 3, y - 3, x + w + 3, y + h + 3), fill=(255,) * 3 if white else (0,) * 3)
            fill = (0, 0, 0) if white else (255, 255, 255)
        elif manner == "colour" and not outside and dark:
            fill = colour
        draw.text((x - left, y - top), text, font=font, fill=fill)
        places.append((round(x), round(y), round(x + w), round(y + h)))
    return places


def _text(rng: np.random.Generator) -> str:
    return f"{rng.choice(_VIEWS)} {rng.choice(_KINDS)} shows a {rng.choice(_FINDINGS)} in the {rng.choice(_PLACES)}"


def _short(rng: np.random.Generator) -> str:
    return f"{rng.choice(_VIEWS).lower()} {rng.choice(_KINDS)}"


def _caption(labels: Sequence[str], rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """Returns a caption in one of the ways in which captions name panels, and each label's own text."""
    if labels[0] in ("left", "top"):
        texts = {label: _text(rng) for label in labels}
        if rng.random() < 0.5:
            return " ".join(f"{label.capitalize()}: {text}." for label, text in texts.items()), {
                k: f"{v}." for k, v in texts.items()
            }
        a, b = labels
        short = {label: _short(rng).capitalize() if label == a else _short(rng) for label in labels}
        return f"{short[a]} ({a}) and {short[b]} ({b}).", short
    style = rng.choice(["round", "half", "point", "colon", "comma", "behind", "inside", "ranges", "refers"])
    lead = f"A {rng.integers(3, 90)}-year-old {rng.choice(['man', 'woman'])} with a {rng.choice(_FINDINGS)}."
    lead = lead if rng.random() < 0.7 else ""
    texts = {label: _text(rng) for label in labels}
    if style in ("behind", "inside"):
        texts = {label: _short(rng) for label in labels}
        texts[labels[0]] = texts[labels[0]].capitalize() if style == "behind" else texts[labels[0]]
        form = "{text} ({label})" if style == "behind" else "({label}) {text}"
        items = [form.format(text=text, label=label) for label, text in texts.items()]
        body = ", ".join(items[:-1]) + f" and {items[-1]}"
        if style == "behind":
            return f"{lead} {body}.".strip(), texts
        return f"{lead} Images obtained with {body}.".strip(), texts | {labels[-1]: f"{texts[labels[-1]]}."}
    texts = {label: f"{text}." for label, text in texts.items()}
    if style == "ranges" and len(labels) > 2:
        texts |= dict.fromkeys(labels[:2], texts[labels[0]])
        join = str(rng.choice(["–", ", ", "-", " and "]))
        items = [
            f"({labels[0]}{join}{labels[1]}) {texts[labels[0]]}",
            *(f"({label}) {texts[label]}" for label in labels[2:]),
        ]
        return f"{lead} {' '.join(items)}".strip(), texts
    if style == "refers":
        texts[labels[1]] = texts[labels[1]][:-1] + f", as in ({labels[0]})."
    form = {"half": "{}) ", "point": "{}. ", "colon": "{}: ", "comma": "{}, "}.get(str(style), "({}) ")
    return f"{lead} {' '.join(form.format(label) + text for label, text in texts.items())}".strip(), texts
