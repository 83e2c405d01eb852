"""Draws a scene as a grey picture, with its label maps and boxes. NumPy only; 128 x 128 pixels."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from tfds_builders.phantom_vqa.scenes import Lesion, Scene, random_stream

SIZE = 128
"""Height and width of a picture in pixels."""

ORGANS = (
    "background",
    "body",
    "bone",
    "brain",
    "ventricles",
    "cerebellum",
    "brainstem",
    "right lung",
    "left lung",
    "heart",
    "liver",
    "spleen",
    "right kidney",
    "left kidney",
    "stomach",
    "aorta",
)
"""Names of the values in the organ map; right and left are the patient's."""

Field = np.ndarray  # float32 [SIZE, SIZE]: body-unit distance to a shape's edge, positive inside


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered scene.

    Attributes:
      image: uint8 [SIZE, SIZE].
      organ_map: uint8 [SIZE, SIZE], index into `ORGANS`.
      lesion_map: uint8 [SIZE, SIZE], 0 none, i + 1 the scene's lesion i.
      lesion_boxes: float32 [lesions, 4], x1, y1, x2, y2 in pixels.
    """

    image: np.ndarray
    organ_map: np.ndarray
    lesion_map: np.ndarray
    lesion_boxes: np.ndarray


@functools.cache
def _upsampler(points: int) -> np.ndarray:
    """Cubic B-spline weights from `points` control values to SIZE samples, float32 [SIZE, points]."""
    position = np.linspace(1.0, points - 2.0, SIZE)[:, None] - np.arange(points)
    distance = np.abs(position)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _smooth_noise(random: np.random.RandomState, points: int) -> Field:
    """Returns smooth noise of about unit spread, with `points` bumps along a side."""
    weights = _upsampler(points)
    values = random.standard_normal((points, points)).astype(np.float32)
    return np.einsum("hi,iw->hw", weights, np.einsum("ij,wj->iw", values, weights)) * np.float32(2.0)


class Canvas:
    """A picture being painted in body coordinates that lie shifted, scaled, turned and warped on the pixels."""

    def __init__(self, scene: Scene, random: np.random.RandomState):
        self.random = random
        steps = np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2
        px, py = np.meshgrid(steps, steps)
        px, py = px - random.uniform(-5, 5), py - random.uniform(-5, 5)
        scale = random.uniform(0.84, 0.99) * SIZE / 2
        angle = math.radians(random.uniform(-7, 7))
        stretch = random.uniform(0.95, 1.05)
        warp = 0.022
        self.x = (math.cos(angle) * px + math.sin(angle) * py) / (scale * stretch) + warp * _smooth_noise(random, 6)
        self.y = (math.cos(angle) * py - math.sin(angle) * px) / (scale / stretch) + warp * _smooth_noise(random, 6)
        self.folds = _smooth_noise(random, 26)  # for gyri, bowel, and patchy lesions
        self.clouds = _smooth_noise(random, 12)
        self.image = np.zeros((SIZE, SIZE), np.float32)
        self.organs = np.zeros((SIZE, SIZE), np.uint8)
        self.scene = scene
        self.lungs: dict[int, Field] = {}  # by the sign of x, for what fills a lung

    def jitter(self, value: float, share: float = 0.06) -> float:
        """Returns a value changed at random by up to `share` of itself."""
        return value * (1 + self.random.uniform(-share, share))

    def ellipse(self, x: float, y: float, a: float, b: float, degrees: float = 0.0, power: float = 2.0) -> Field:
        """An ellipse (or superellipse) with half axes a, b, turned clockwise by `degrees`."""
        dx, dy = self.x - x, self.y - y
        if degrees:
            c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        if power == 2.0:
            radius = np.sqrt((dx * (1 / a)) ** 2 + (dy * (1 / b)) ** 2)
        else:
            radius = (np.abs(dx / a) ** power + np.abs(dy / b) ** power) ** (1 / power)
        return (1 - radius) * min(a, b)

    def stroke(self, distance: Field, width: float) -> Field:
        """A line of the given half width around the zero of a distance."""
        return width - np.abs(distance)

    def paint(
        self, field: Field, value: float | Field, organ: str = "", soft: float = 0.03, add: bool = False
    ) -> Field:
        """Fills a shape with a grey value (or adds it, as X-ray absorption adds) and returns how far it covers."""
        cover = np.clip(field * (1 / soft) + 0.5, 0, 1)
        self.image += cover * value if add else cover * (value - self.image)
        if organ:
            self.organs[field > 0] = ORGANS.index(organ)
        return cover


# Grey values by modality.
_TISSUE = {
    "ct": {"air": 0.0, "skin": 0.36, "fat": 0.22, "muscle": 0.46, "bone": 0.97, "marrow": 0.72, "fluid": 0.24,
           "grey": 0.50, "white": 0.43, "liver": 0.58, "spleen": 0.60, "kidney": 0.68, "medulla": 0.54, "bowel": 0.42,
           "vessel": 0.70, "heart": 0.58, "lung": 0.07, "gas": 0.02},
    "t1 mri": {"air": 0.02, "skin": 0.72, "fat": 0.82, "muscle": 0.36, "bone": 0.06, "marrow": 0.62, "fluid": 0.12,
               "grey": 0.44, "white": 0.62, "liver": 0.54, "spleen": 0.36, "kidney": 0.46, "medulla": 0.30,
               "bowel": 0.32, "vessel": 0.10, "heart": 0.30, "lung": 0.04, "gas": 0.03},
    "t2 mri": {"air": 0.02, "skin": 0.50, "fat": 0.60, "muscle": 0.20, "bone": 0.05, "marrow": 0.40, "fluid": 0.96,
               "grey": 0.56, "white": 0.40, "liver": 0.28, "spleen": 0.50, "kidney": 0.58, "medulla": 0.74,
               "bowel": 0.52, "vessel": 0.06, "heart": 0.30, "lung": 0.04, "gas": 0.03},
}  # fmt: skip


def _head_layers(c: Canvas, t: dict[str, float], outline: Field) -> Field:
    """Scalp, skull, fluid and folded cortex inside an outline; returns the brain's field."""
    c.paint(outline, t["skin"], "body")
    skull = outline - 0.055
    c.paint(skull, t["bone"], "bone")
    c.paint(skull - 0.03, t["marrow"], soft=0.02)
    c.paint(skull - 0.05, t["bone"], soft=0.02)
    inner = outline - 0.125
    c.paint(inner, t["fluid"], "body")
    brain = inner - 0.02 - 0.016 * np.clip(c.folds, -1, 2)
    c.paint(brain, t["grey"], "brain")
    white = brain - 0.075 - 0.035 * np.abs(c.folds)
    c.paint(white, t["white"], soft=0.05)
    # Sulci: thin lines of fluid from the surface inwards, where the noise changes sign.
    sulci = np.minimum(_lines(c.folds, 0.16), np.minimum(brain + 0.03, 0.11 - brain))
    c.paint(sulci, t["fluid"] * 0.6 + t["grey"] * 0.4, soft=0.05)
    return brain


def _lines(noise: Field, width: float) -> Field:
    """The zero lines of a noise field as thin shapes."""
    return (width - np.abs(noise)) * 0.25


def _brain_axial(c: Canvas, t: dict[str, float]) -> None:
    outline = c.ellipse(0, 0, c.jitter(0.78, 0.04), c.jitter(0.96, 0.03))
    brain = _head_layers(c, t, outline)
    c.paint(np.minimum(c.stroke(c.x, 0.012), np.minimum(brain, np.abs(c.y) - 0.3)), t["fluid"], soft=0.02)
    width, length = c.jitter(0.075, 0.25), c.jitter(0.2, 0.12)
    for sign in (-1, 1):
        c.paint(c.ellipse(sign * 0.19, 0.06, 0.075, 0.15, sign * -12), t["grey"], soft=0.04)  # basal ganglia
        front = c.ellipse(sign * 0.09, -0.2, width * 0.75, length * 0.75, sign * -22)
        back = c.ellipse(sign * 0.14, 0.24, width * 0.85, length, sign * 24)
        c.paint(np.maximum(front, back), t["fluid"], "ventricles")
    c.paint(c.ellipse(0, 0.06, 0.022, 0.09), t["fluid"], "ventricles", soft=0.02)


def _brain_coronal(c: Canvas, t: dict[str, float]) -> None:
    width = 0.34 + 0.3 * np.clip(0.75 - c.y, 0, 1)
    neck = np.minimum(width - np.abs(c.x), c.y - 0.2)
    c.paint(neck, t["skin"], "body", soft=0.06)
    c.paint(neck - 0.07, t["muscle"] + 0.04 * c.folds, soft=0.06)
    for i in range(3):
        c.paint(c.ellipse(0, 0.62 + 0.15 * i, 0.12, 0.058, power=4), t["marrow"], "bone")
    outline = c.ellipse(0, -0.12, c.jitter(0.82, 0.04), c.jitter(0.8, 0.03), power=2.3)
    brain = _head_layers(c, t, outline)
    c.paint(np.minimum(c.stroke(c.x, 0.012), np.minimum(brain, -0.35 - c.y)), t["fluid"], soft=0.02)
    for sign in (-1, 1):
        # Sylvian fissure above the temporal lobe, and a lateral ventricle with its falling wing.
        fissure = np.minimum(c.stroke(c.y - 0.08 + 0.3 * (sign * c.x - 0.45), 0.02), 0.2 - np.abs(sign * c.x - 0.52))
        c.paint(np.minimum(fissure, brain + 0.02), t["fluid"], soft=0.03)
        c.paint(c.ellipse(sign * 0.2, 0.02, 0.1, 0.12, sign * 15), t["grey"], soft=0.04)
        c.paint(c.ellipse(sign * 0.11, -0.17, c.jitter(0.05, 0.2), 0.13, sign * 32), t["fluid"], "ventricles")
        c.paint(c.ellipse(sign * 0.22, 0.42, 0.24, 0.14, sign * -8), t["grey"], "cerebellum")
        leaves = np.minimum(c.ellipse(sign * 0.22, 0.42, 0.22, 0.12, sign * -8), 0.02 * np.sin(c.y * 60))
        c.paint(leaves, t["white"], soft=0.03)
    c.paint(c.ellipse(0, 0.05, 0.022, 0.1), t["fluid"], "ventricles", soft=0.02)
    c.paint(c.ellipse(0, 0.4, 0.085, 0.3, power=3), t["white"], "brainstem")


def _brain_sagittal(c: Canvas, t: dict[str, float]) -> None:
    face = np.maximum(c.ellipse(-0.5, 0.42, 0.36, 0.5, 14), c.ellipse(-0.84, 0.3, 0.1, 0.17, -28))
    face = np.maximum(face, c.ellipse(-0.66, 0.74, 0.14, 0.14))
    neck = np.minimum(c.ellipse(0.2, 0.95, 0.4, 0.8, 6, power=4), c.y)
    c.paint(np.maximum(face, neck), t["skin"], "body")
    c.paint(np.maximum(face, neck) - 0.05, 0.6 * t["muscle"] + 0.4 * t["skin"] + 0.05 * c.folds)
    c.paint(c.ellipse(-0.55, 0.36, 0.2, 0.055, 14), t["gas"])  # nasal cavity
    c.paint(c.ellipse(-0.5, 0.47, 0.24, 0.03, 14), t["marrow"])  # palate
    c.paint(c.ellipse(-0.46, 0.62, 0.2, 0.1, 20), t["muscle"] * 1.5, soft=0.06)  # tongue
    c.paint(np.minimum(c.ellipse(-0.18, 0.8, 0.045, 0.5, 4), c.y - 0.36), t["gas"])  # airway
    outline = c.ellipse(-0.0, -0.2, c.jitter(0.92, 0.03), c.jitter(0.72, 0.03), 4)
    _head_layers(c, t, outline)
    # Corpus callosum: an arch of white matter over the ventricle.
    arch = np.minimum(c.stroke(c.ellipse(0.0, -0.06, 0.32, 0.21), 0.035), -0.06 - c.y)
    c.paint(np.minimum(c.ellipse(0.0, -0.06, 0.29, 0.18), -0.02 - c.y), t["fluid"], "ventricles")
    c.paint(arch, t["white"] * 1.12, soft=0.025)
    c.paint(c.ellipse(-0.02, 0.0, 0.16, 0.1, -10), t["grey"], soft=0.04)
    cerebellum = c.ellipse(0.46, 0.27, 0.27, 0.19, -18)
    c.paint(cerebellum + 0.02, t["fluid"])
    c.paint(cerebellum, t["grey"], "cerebellum")
    angle = np.arctan2(c.y - 0.27, c.x - 0.24)
    c.paint(np.minimum(cerebellum - 0.02, 0.02 * np.sin(angle * 16)), t["white"], soft=0.03)
    stem = np.maximum(c.ellipse(0.1, 0.2, 0.1, 0.16, -14), c.ellipse(0.2, 0.68, 0.06, 0.48, -8, power=3))
    c.paint(stem + 0.02, t["fluid"], soft=0.02)
    c.paint(stem, t["white"], "brainstem")
    for i in range(4):  # vertebrae behind the airway
        c.paint(c.ellipse(0.03 + 0.01 * i, 0.55 + 0.15 * i, 0.07, 0.058, power=4), t["marrow"], "bone")


def _chest_frontal(c: Canvas, _: dict[str, float]) -> None:
    torso = c.ellipse(0, 0.55, c.jitter(0.9, 0.03), 1.25, power=3)
    slope = c.y + 0.74 - 0.42 * np.clip(np.abs(c.x) - 0.12, 0, 2) ** 1.4  # shoulders fall from the neck
    shoulders = np.minimum(np.maximum(torso, c.ellipse(0, 0.0, 1.12, 0.9, power=3)), slope)
    neck = np.minimum(0.2 - np.abs(c.x) + 0.05 * np.clip(c.y + 0.9, 0, 1), -0.5 - c.y)
    c.paint(np.maximum(shoulders, neck), 0.5 + 0.02 * c.clouds * (c.y > 0.5), "body", soft=0.1)
    enlarged = c.random.uniform(0.92, 1.08)
    for sign, organ in ((-1, "right lung"), (1, "left lung")):
        dome = 0.5 + 0.04 * (sign > 0) - 0.9 * np.clip(np.abs(c.x - sign * 0.44), 0, 0.32) ** 2 * 2.2
        lung = np.minimum(c.ellipse(sign * 0.43, 0.02, c.jitter(0.345, 0.04), 0.72, sign * 5, power=2.4), dome - c.y)
        c.lungs[sign] = lung
        c.paint(lung, -0.36, organ, soft=0.07, add=True)
        # Vessels spread from the hilum and fade outwards.
        distance = np.hypot(c.x - sign * 0.16, c.y + 0.04)
        hilum = np.clip(1 - distance / 0.55, 0, 1) * (lung > 0)
        c.image += hilum * (0.10 * np.clip(c.folds + 0.2, 0, 2) + 0.05)
    c.paint(np.minimum(c.ellipse(0.02, 0.0, 0.15, 0.72, power=3), 0.62 - c.y), 0.1, soft=0.1, add=True)
    heart = c.ellipse(0.15, 0.26, 0.31 * enlarged, 0.25 * enlarged, 28)
    c.paint(np.minimum(heart, 0.5 - c.y), 0.24, "heart", soft=0.07, add=True)
    c.paint(c.ellipse(0.1, -0.26, 0.1, 0.1), 0.12, soft=0.05, add=True)  # aortic knob
    c.paint(np.minimum(c.stroke(c.x, 0.035), -0.14 - c.y), -0.12, soft=0.04, add=True)  # trachea
    spine = 0.075 - np.abs(c.x)
    c.paint(np.minimum(spine, c.y + 1.2), 0.05 + 0.03 * np.sin(c.y * 42), soft=0.04, add=True)
    for sign in (-1, 1):
        fall = 0.62 * np.clip(sign * c.x - 0.08, 0, 2) ** 1.6
        span = np.minimum(np.minimum(sign * c.x - 0.1, 0.83 - sign * c.x), 0.62 - c.y)
        for i in range(9):  # ribs fall outwards behind and come back in front
            rib = c.stroke(c.y - (-0.72 + 0.145 * i) - fall, 0.024)
            c.paint(np.minimum(rib, span), 0.085, soft=0.035, add=True)
        clavicle = c.stroke(c.y + 0.6 - 0.18 * (sign * c.x - 0.4), 0.03)
        c.paint(np.minimum(clavicle, 0.3 - np.abs(sign * c.x - 0.38)), 0.14, "", soft=0.03, add=True)
    c.paint(c.ellipse(c.jitter(0.4, 0.1), 0.7, 0.14, 0.075), -0.16, "stomach", soft=0.06, add=True)
    c.organs[(np.abs(c.x) < 0.07) & (c.organs == 1)] = ORGANS.index("bone")


def _chest_axial(c: Canvas, t: dict[str, float]) -> None:
    body = c.ellipse(0, 0, 0.99, c.jitter(0.74, 0.03), power=2.4)
    c.paint(body, t["skin"], "body")
    c.paint(body - 0.03, t["fat"])
    wall = c.ellipse(0, 0.0, 0.88, 0.64, power=2.4)
    c.paint(wall, t["muscle"], soft=0.04)
    cage = wall - 0.06
    angle = np.arctan2(c.y, c.x)
    c.paint(np.minimum(c.stroke(cage, 0.028), 0.1 * np.sin(angle * 14 + c.random.uniform(0, 6))), t["bone"], "bone")
    c.paint(c.ellipse(0, -0.6, 0.16, 0.04), t["bone"], "bone")
    c.paint(cage - 0.03, t["fat"] * 1.2)
    for sign, organ in ((-1, "right lung"), (1, "left lung")):
        lung = np.minimum(c.ellipse(sign * 0.46, 0.0, 0.33, 0.51, sign * -4, power=2.5), cage - 0.03)
        if sign > 0:
            lung = np.minimum(lung, -c.ellipse(0.16, -0.14, 0.33, 0.29, 30))
        c.paint(lung, t["lung"], organ)
        c.lungs[sign] = lung
        distance = np.hypot(c.x - sign * 0.2, c.y)
        vessels = np.minimum(0.05 * (np.abs(c.folds) - 0.95), lung - 0.03) - 0.12 * np.clip(distance - 0.1, 0, 1)
        c.paint(vessels, t["lung"] + 0.22, soft=0.05)
    heart = c.ellipse(0.12, -0.14, 0.32, 0.27, 30)
    c.paint(heart, t["heart"], "heart")
    c.paint(c.ellipse(0.2, -0.12, 0.13, 0.09, 30), t["vessel"], soft=0.05)
    c.paint(c.ellipse(0.02, -0.24, 0.1, 0.09), t["vessel"] * 0.97, soft=0.05)
    _spine_axial(c, t, 0.36)
    c.paint(c.ellipse(0.16, 0.25, 0.075, 0.075), t["vessel"], "aorta")


def _spine_axial(c: Canvas, t: dict[str, float], y: float) -> None:
    """A vertebra seen from above: body, canal, arch and processes."""
    c.paint(c.ellipse(0, y + 0.17, 0.2, 0.04), t["bone"], "bone")
    c.paint(c.ellipse(0, y + 0.24, 0.035, 0.12), t["bone"], "bone")
    vertebra = c.ellipse(0, y, 0.15, 0.115, power=2.4)
    c.paint(vertebra, t["bone"], "bone")
    c.paint(vertebra - 0.025, t["marrow"])
    c.paint(c.ellipse(0, y + 0.155, 0.06, 0.05), t["fluid"])


def _abdomen_axial(c: Canvas, t: dict[str, float]) -> None:
    body = c.ellipse(0, 0, 0.99, c.jitter(0.76, 0.04), power=2.3)
    c.paint(body, t["skin"], "body")
    c.paint(body - 0.025, t["fat"])
    wall = c.ellipse(0, 0.0, 0.88, 0.65, power=2.4)
    c.paint(wall, t["muscle"], soft=0.04)
    c.paint(wall - 0.06, t["fat"], soft=0.05)
    angle = np.arctan2(c.y, c.x)
    c.paint(np.minimum(c.stroke(wall - 0.045, 0.022), 0.1 * np.sin(angle * 13 + 1)), t["bone"], "bone")
    inside = wall - 0.075
    for sign in (-1, 1):
        c.paint(c.ellipse(sign * 0.3, 0.55, 0.2, 0.1, sign * -10), t["muscle"])
    for x, y, r in ((0.16, -0.36, 0.11), (0.36, -0.02, 0.10), (0.12, -0.05, 0.09), (0.6, -0.12, 0.07)):
        loop = c.ellipse(c.jitter(x), c.jitter(y), c.jitter(r, 0.2), c.jitter(r * 0.8, 0.2), c.random.uniform(0, 180))
        c.paint(loop, t["bowel"] * 1.1)
        c.paint(loop - 0.03, t["bowel"] * 0.8, soft=0.04)
    stomach = np.minimum(c.ellipse(0.4, -0.28, 0.3, 0.16, 18), inside)
    c.paint(stomach, t["bowel"] * 1.15, "stomach")
    c.paint(stomach - 0.035, t["fluid"] * 0.5 + t["bowel"] * 0.5)
    c.paint(np.minimum(stomach - 0.035, -0.31 - c.y), t["gas"], soft=0.02)
    liver = np.maximum(c.ellipse(-0.47, -0.1, 0.36, 0.44, 8, power=2.3), c.ellipse(-0.14, -0.33, 0.3, 0.16, 12))
    liver = np.minimum(liver, inside)
    c.paint(liver, t["liver"], "liver")
    vessels = np.minimum(_lines(c.clouds, 0.07), liver - 0.05)
    c.paint(vessels, t["vessel"] * 0.6 + t["liver"] * 0.4, soft=0.05)
    c.paint(np.minimum(c.ellipse(0.65, 0.13, 0.15, 0.24, 18), inside), t["spleen"], "spleen")
    _spine_axial(c, t, 0.3)
    c.paint(c.ellipse(0.1, 0.13, 0.065, 0.065), t["vessel"], "aorta")
    c.paint(c.ellipse(-0.12, 0.13, 0.075, 0.055), t["vessel"] * 0.95)
    for sign, organ in ((-1, "right kidney"), (1, "left kidney")):
        kidney = c.ellipse(sign * 0.36, 0.33, 0.14, 0.125, sign * 25)
        c.paint(kidney, t["kidney"], organ)
        c.paint(c.ellipse(sign * 0.3, 0.31, 0.07, 0.04, sign * 25), t["medulla"], soft=0.04)


def _abdomen_coronal(c: Canvas, t: dict[str, float]) -> None:
    body = np.minimum(c.ellipse(0, 0, c.jitter(0.8, 0.04), 1.2, power=4), 0.99 - np.abs(c.y))
    body = body - 0.09 * np.exp(-(((c.y - 0.2) / 0.25) ** 2))  # waist
    c.paint(body, t["skin"], "body")
    c.paint(body - 0.025, t["fat"])
    wall = body - 0.085
    c.paint(wall, t["muscle"])
    c.paint(wall - 0.05, t["fat"], soft=0.05)
    inside = wall - 0.055
    for sign, organ in ((-1, "right lung"), (1, "left lung")):
        dome = -0.66 - 1.1 * np.clip(np.abs(c.x - sign * 0.36), 0, 0.4) ** 2 * -1.6
        lung = np.minimum(np.minimum(inside, dome - c.y), sign * c.x - 0.13)
        c.paint(lung, t["lung"], organ)
    for sign in (-1, 1):
        for i in range(4):  # cut ribs along the flank
            c.paint(c.ellipse(sign * (0.67 - 0.015 * i), -0.78 + 0.2 * i, 0.03, 0.05), t["bone"], "bone", soft=0.02)
        c.paint(c.ellipse(sign * 0.2, 0.42, 0.085, 0.34, sign * -14), t["muscle"])  # psoas
        wing = c.ellipse(sign * 0.48, 0.72, 0.075, 0.27, sign * 32)
        c.paint(wing, t["bone"], "bone")
        c.paint(wing - 0.025, t["marrow"])
    for x, y, r in ((-0.42, 0.5, 0.1), (0.44, 0.48, 0.1), (-0.14, 0.74, 0.1), (0.14, 0.72, 0.11), (0.0, 0.88, 0.09)):
        loop = c.ellipse(c.jitter(x), c.jitter(y), c.jitter(r, 0.2), c.jitter(r * 0.8, 0.2), c.random.uniform(0, 180))
        c.paint(loop, t["bowel"] * 1.1)
        c.paint(loop - 0.03, t["bowel"] * 0.75, soft=0.04)
    stomach = np.minimum(c.ellipse(0.27, -0.42, 0.16, 0.2, 25), inside)
    c.paint(stomach, t["bowel"] * 1.15, "stomach")
    c.paint(stomach - 0.035, t["fluid"] * 0.5 + t["bowel"] * 0.5)
    liver = np.minimum(c.ellipse(-0.36, -0.42, 0.36, 0.33, 10, power=2.2), -0.12 - 0.35 * c.x - c.y + 0.1)
    liver = np.minimum(np.minimum(liver, inside), c.y + 0.68 - 1.3 * np.clip(np.abs(c.x + 0.36), 0, 0.4) ** 2)
    c.paint(liver, t["liver"], "liver")
    c.paint(np.minimum(_lines(c.clouds, 0.07), liver - 0.05), t["vessel"] * 0.6 + t["liver"] * 0.4, soft=0.05)
    c.paint(np.minimum(c.ellipse(0.52, -0.43, 0.12, 0.2, -12), inside), t["spleen"], "spleen")
    for i in range(8):  # vertebral bodies with discs between
        vertebra = c.ellipse(0, -0.84 + 0.235 * i, 0.1, 0.095, power=4)
        c.paint(vertebra, t["bone"], "bone", soft=0.02)
        c.paint(vertebra - 0.02, t["marrow"], soft=0.02)
    for sign, organ in ((-1, "right kidney"), (1, "left kidney")):
        kidney = c.ellipse(sign * 0.34, 0.16, 0.12, 0.2, sign * -10)
        c.paint(kidney, t["kidney"], organ)
        c.paint(c.ellipse(sign * 0.3, 0.16, 0.045, 0.1, sign * -10), t["medulla"], soft=0.04)


_DRAW = {
    ("brain", "axial"): _brain_axial,
    ("brain", "coronal"): _brain_coronal,
    ("brain", "sagittal"): _brain_sagittal,
    ("chest", "frontal"): _chest_frontal,
    ("chest", "axial"): _chest_axial,
    ("abdomen", "axial"): _abdomen_axial,
    ("abdomen", "coronal"): _abdomen_coronal,
}

# Grey values of lesions by modality. Hemorrhage: core, swelling; mass: rim, core, swelling.
_LESION: dict[str, dict[str, Any]] = {
    "hemorrhage": {"ct": (0.84, 0.16), "t1 mri": (1.0, 0.16), "t2 mri": (0.02, 0.96)},
    "cyst": {"ct": 0.06, "t1 mri": 0.0, "t2 mri": 1.1},
    "infarct": {"ct": 0.20, "t1 mri": 0.22, "t2 mri": 0.84},
    "calcification": {"ct": 1.15},
    "mass": {"ct": (0.85, 0.30, 0.34), "t1 mri": (1.0, 0.22, 0.34), "t2 mri": (0.10, 0.92, 0.76)},
}


def _lobed(c: Canvas, lesion: Lesion, lobes: float) -> Field:
    """A round shape whose radius varies with the angle, in two to four lobes."""
    offset = (c.x - lesion.x) + np.complex64(1j) * (c.y - lesion.y)
    distance = np.abs(offset)
    turn = offset / np.maximum(distance, 1e-6)  # exp(i angle): its powers give the waves
    wave, power = np.zeros_like(distance), turn
    for phase in c.random.uniform(0, 2 * math.pi, 3):
        power = power * turn
        wave += (power * np.complex64(np.exp(1j * phase))).imag
    return lesion.radius * (1 + lobes / 3 * wave) - distance


def _draw_lesion(c: Canvas, lesion: Lesion) -> Field:
    """Paints a lesion and returns its field."""
    value: Any = _LESION.get(lesion.kind, {}).get(c.scene.modality)
    r = lesion.radius
    if lesion.kind == "hemorrhage":
        core, halo = value
        field = _lobed(c, lesion, 0.25)
        c.paint(field + 0.3 * r + 0.01, halo, soft=0.03)  # swelling around it, of the other shade
        c.paint(field, core, soft=0.03)
    elif lesion.kind == "cyst":
        field = _lobed(c, lesion, 0.03)
        c.paint(field, value, soft=0.02)
    elif lesion.kind == "mass":
        rim, core, halo = value
        field = _lobed(c, lesion, 0.16)
        c.paint(field + 0.35 * r, halo, soft=0.5 * r)
        c.paint(field, rim, soft=0.02)
        c.paint(field - 0.36 * r, core, soft=0.02)
    elif lesion.kind == "infarct":
        # A wedge with its broad side outwards, fuzzy and uneven.
        out = np.arctan2(lesion.y - c.scene.view.middle, lesion.x)
        dx, dy = c.x - lesion.x, c.y - lesion.y
        along, across = dx * np.cos(out) + dy * np.sin(out), dy * np.cos(out) - dx * np.sin(out)
        wedge = np.minimum(1.15 * r - along, (0.5 * along + 0.9 * r) - np.abs(across))
        field = np.minimum(wedge, 1.3 * r - np.hypot(along, across)) + 0.06 * r * c.folds
        c.paint(field, value + 0.09 * c.folds, soft=0.04)
    elif lesion.kind == "calcification":
        # A clump of specks.
        field = np.full((SIZE, SIZE), -1.0, np.float32)
        for i in range(3 if lesion.size == "small" else 9):
            turn, far = 2.4 * i + c.random.uniform(0, 1), r * 1.05 * np.sqrt((i + 0.3) / (3 if r < 0.1 else 9))
            speck = 0.038 - np.hypot(c.x - lesion.x - far * np.cos(turn), c.y - lesion.y - far * np.sin(turn))
            field = np.maximum(field, speck)
        c.paint(field, value, soft=0.02)
    elif lesion.kind == "nodule":
        field = _lobed(c, lesion, 0.06)
        frontal = c.scene.view.plane == "frontal"
        c.paint(field, 0.36 if frontal else 0.62, soft=0.03, add=frontal)
    elif lesion.kind == "consolidation":
        # Cloudy, without an edge, streaked by air.
        field = _lobed(c, lesion, 0.2) + 0.15 * r
        frontal = c.scene.view.plane == "frontal"
        cover = np.clip(field / (0.9 * r) + 0.25, 0, 1) * (0.75 + 0.25 * np.clip(c.folds, -1.6, 1))
        c.image += cover * (0.34 if frontal else 0.50)
        field = field + 0.1 * r
    else:
        field = _draw_effusion(c, lesion)
    return field


def _draw_effusion(c: Canvas, lesion: Lesion) -> Field:
    """Fluid that fills the lung from its lowest place up to a level, rising at the chest wall."""
    sign = 1 if lesion.x > 0 else -1
    frontal = c.scene.view.plane == "frontal"
    depth = 0.12 + 1.7 * (lesion.radius - 0.04)
    rise = 0.5 * np.clip(sign * c.x - 0.42, 0, 1)
    field = np.minimum(c.y - (0.52 - depth - rise), c.lungs[sign] + (0.02 if frontal else 0.0))
    if frontal:
        c.paint(field, 0.37, soft=0.06, add=True)
    else:
        c.paint(field, 0.40, soft=0.03)
    return field


def render(scene: Scene) -> Picture:
    """Draws a scene; the same scene gives the same picture always.

    Args:
      scene: From `make_scene`.
    """
    random = random_stream(scene.image_id, 2)
    canvas = Canvas(scene, random)
    tissue = _TISSUE.get(scene.modality, {})
    if tissue:
        canvas.image += tissue["air"]
    _DRAW[scene.view.body_part, scene.view.plane](canvas, tissue)

    lesion_map = np.zeros((SIZE, SIZE), np.uint8)
    boxes = np.zeros((len(scene.lesions), 4), np.float32)
    for i, lesion in enumerate(scene.lesions):
        inside = _draw_lesion(canvas, lesion) > 0
        lesion_map[inside] = i + 1
        ys, xs = np.nonzero(inside)
        boxes[i] = np.min(xs), np.min(ys), np.max(xs) + 1, np.max(ys) + 1

    image: np.ndarray = canvas.image
    random = random_stream(scene.image_id, 6)  # the same noise whatever has been drawn
    if "mri" in scene.modality:
        image = image * (1 + random.uniform(0, 0.07) * _smooth_noise(random, 4))  # uneven coil sensitivity
    noise = random.standard_normal((SIZE, SIZE)).astype(np.float32)
    grain = noise + 0.6 * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1))  # neighbouring pixels share their noise
    image = np.clip(image, 0, 1.15) ** random.uniform(0.85, 1.2)
    image = image * random.uniform(0.84, 1.0) + random.uniform(0, 0.05)
    image = image + grain * random.uniform(0.008, 0.026)
    grey = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return Picture(grey, canvas.organs, lesion_map, boxes)
