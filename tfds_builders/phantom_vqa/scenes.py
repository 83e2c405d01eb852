"""What a phantom shows: the view, and lesions with kind, size, place; drawn from the image's id alone.

Everything a question or a caption can ask about is decided here, without a pixel, so questions need no rendering.

Coordinates are those of the body: x to the right of the picture, y down, the body's outline within [-1, 1]. Pictures
follow the radiological convention: the picture's left is the patient's right; axial slices have the front on top,
sagittal slices the front on the left.
"""

import dataclasses

import numpy as np

MODALITIES = ("ct", "t1 mri", "t2 mri", "radiograph")
PLANES = ("axial", "coronal", "sagittal", "frontal")
BODY_PARTS = ("brain", "chest", "abdomen")
ABNORMALITIES = (
    "normal",
    "hemorrhage",
    "mass",
    "cyst",
    "infarct",
    "calcification",
    "nodule",
    "consolidation",
    "effusion",
)
"""Classes of the abnormality family of questions, closed; "normal" where there is no lesion."""

SMALL_RADIUS = (0.062, 0.078)
LARGE_RADIUS = (0.135, 0.165)
"""Lesion radii in body units, drawn between these; nothing lies in the gap between small and large."""
SIDE_MARGIN = 0.13
"""Least distance of a lesion's centre from the lines that part left from right and upper from lower, body units."""

_SEED = 2_022_007


def random_stream(image_id: int, stream: int) -> np.random.RandomState:
    """Returns the random numbers of one image for one purpose.

    RandomState over PCG64, because NumPy guarantees RandomState's numbers over versions and Generator's not.

    Args:
      image_id: The image.
      stream: Number of the purpose, so that a change in one leaves the others alone.
    """
    return np.random.RandomState(np.random.PCG64([_SEED, image_id, stream]))


@dataclasses.dataclass(frozen=True)
class Host:
    """An ellipse inside an organ in which a lesion's centre may lie, body units."""

    organ: str
    x: float
    y: float
    a: float
    b: float


@dataclasses.dataclass(frozen=True)
class View:
    """One way of looking at one body part: how often, by which modalities, with which lesions where."""

    body_part: str
    plane: str
    share: float
    modalities: tuple[tuple[str, float], ...]
    kinds: tuple[tuple[str, float], ...]
    hosts: tuple[Host, ...]
    middle: float = 0.0  # y of the line between upper and lower (or anterior and posterior)


_HEAD = (("hemorrhage", 0.24), ("mass", 0.2), ("cyst", 0.17), ("infarct", 0.27), ("calcification", 0.36))
_CHEST = (("nodule", 0.37), ("consolidation", 0.36), ("effusion", 0.27))
_BELLY = (("cyst", 0.28), ("mass", 0.28), ("calcification", 0.46), ("hemorrhage", 0.22))

VIEWS = (
    View(
        "brain",
        "axial",
        0.13,
        (("ct", 0.40), ("t1 mri", 0.30), ("t2 mri", 0.30)),
        _HEAD,
        (Host("brain", 0.0, 0.0, 0.46, 0.62),),
    ),
    View(
        "brain",
        "coronal",
        0.12,
        (("ct", 0.30), ("t1 mri", 0.35), ("t2 mri", 0.35)),
        _HEAD,
        (Host("brain", 0.0, -0.12, 0.52, 0.46),),
        -0.12,
    ),
    View(
        "brain",
        "sagittal",
        0.16,
        (("t1 mri", 0.5), ("t2 mri", 0.5)),
        _HEAD,
        (Host("brain", -0.02, -0.26, 0.6, 0.32),),
        -0.26,
    ),
    View(
        "chest",
        "frontal",
        0.19,
        (("radiograph", 1.0),),
        _CHEST,
        (Host("lung", -0.42, -0.08, 0.19, 0.40), Host("lung", 0.44, -0.08, 0.17, 0.40)),
        -0.08,
    ),
    View(
        "chest",
        "axial",
        0.11,
        (("ct", 1.0),),
        _CHEST,
        (Host("lung", -0.48, 0.0, 0.19, 0.36), Host("lung", 0.54, 0.04, 0.15, 0.34)),
    ),
    View(
        "abdomen",
        "axial",
        0.14,
        (("ct", 0.4), ("t1 mri", 0.3), ("t2 mri", 0.3)),
        _BELLY,
        (
            Host("liver", -0.44, -0.08, 0.26, 0.30),
            Host("spleen", 0.64, 0.13, 0.08, 0.12),
            Host("kidney", -0.36, 0.33, 0.06, 0.05),
            Host("kidney", 0.36, 0.33, 0.06, 0.05),
        ),
    ),
    View(
        "abdomen",
        "coronal",
        0.15,
        (("ct", 0.6), ("t1 mri", 0.2), ("t2 mri", 0.2)),
        _BELLY,
        (
            Host("liver", -0.38, -0.42, 0.2, 0.16),
            Host("spleen", 0.52, -0.43, 0.06, 0.11),
            Host("kidney", -0.34, 0.16, 0.05, 0.1),
            Host("kidney", 0.34, 0.16, 0.05, 0.1),
        ),
        -0.14,
    ),
)

_COUNTS = {"effusion": (0.62, 0.38)}
_OTHER_COUNTS = (0.38, 0.24, 0.20, 0.18)
_NORMAL_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Lesion:
    """One lesion: what, where (body units), how large."""

    kind: str
    organ: str
    x: float
    y: float
    radius: float
    size: str  # "small" or "large"


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that is decided about an image before it is rendered. All lesions of an image are of one kind."""

    image_id: int
    view: View
    modality: str
    lesions: tuple[Lesion, ...]

    @property
    def abnormality(self) -> str:
        """One of `ABNORMALITIES`."""
        return self.lesions[0].kind if self.lesions else "normal"

    @property
    def target(self) -> Lesion | None:
        """The lesion that "the largest lesion" names: the only one, or the only large one; None if undecided."""
        if len(self.lesions) == 1:
            return self.lesions[0]
        large = [lesion for lesion in self.lesions if lesion.size == "large"]
        return large[0] if len(large) == 1 else None

    def side(self, lesion: Lesion) -> str:
        """The patient's side a lesion is on, "left" or "right"; "" in a sagittal slice, which has none."""
        if self.view.plane == "sagittal":
            return ""
        return "left" if lesion.x > 0 else "right"

    def place(self, lesion: Lesion) -> str:
        """Where a lesion is, in two words: "left anterior" (axial), "right upper", "posterior lower" (sagittal)."""
        below = lesion.y > self.view.middle
        if self.view.plane == "sagittal":
            return f"{'posterior' if lesion.x > 0 else 'anterior'} {'lower' if below else 'upper'}"
        if self.view.plane == "axial":
            return f"{self.side(lesion)} {'posterior' if below else 'anterior'}"
        return f"{self.side(lesion)} {'lower' if below else 'upper'}"


def kinds_seen(view: View, modality: str) -> tuple[tuple[str, float], ...]:
    """Returns the lesion kinds, with weights, of a view in a modality: calcium shows in CT only."""
    return tuple((kind, share) for kind, share in view.kinds if kind != "calcification" or modality == "ct")


def _pick(random: np.random.RandomState, weighted: tuple[tuple[str, float], ...]) -> str:
    """Draws a name by its weight."""
    names, weights = zip(*weighted, strict=True)
    return names[int(np.searchsorted(np.cumsum(weights), random.random_sample() * sum(weights), side="right"))]


def _effusions(random: np.random.RandomState, view: View, count: int, sizes: list[str]) -> tuple[Lesion, ...]:
    """Fluid at the lowest place of one lung or of both."""
    sides = [-1, 1] if random.random_sample() < 0.5 else [1, -1]
    lesions = []
    for sign, size in zip(sides[:count], sizes, strict=True):
        low, high = LARGE_RADIUS if size == "large" else SMALL_RADIUS
        y = 0.42 if view.plane == "frontal" else 0.36
        lesions.append(Lesion("effusion", "lung", sign * 0.46, y, random.uniform(low, high), size))
    return tuple(lesions)


def _spread(random: np.random.RandomState, view: View, kind: str, sizes: list[str]) -> tuple[Lesion, ...]:
    """Lesions inside the view's hosts, apart from each other and from the dividing lines.

    Places are drawn until they fit; when a large lesion early on leaves no room, all are drawn again.
    """
    areas = np.sqrt([host.a * host.b for host in view.hosts])
    while True:
        lesions: list[Lesion] = []
        for _ in range(400):
            if len(lesions) == len(sizes):
                return tuple(lesions)
            size = sizes[len(lesions)]
            host = view.hosts[int(np.searchsorted(np.cumsum(areas), random.random_sample() * areas.sum()))]
            radius = random.uniform(*(LARGE_RADIUS if size == "large" else SMALL_RADIUS))
            angle, distance = random.uniform(0, 2 * np.pi), np.sqrt(random.random_sample())
            x = host.x + host.a * distance * np.cos(angle)
            y = host.y + host.b * distance * np.sin(angle)
            clear = abs(x) > SIDE_MARGIN and abs(y - view.middle) > SIDE_MARGIN
            apart = all(np.hypot(x - o.x, y - o.y) > 1.25 * (radius + o.radius) + 0.08 for o in lesions)
            if clear and apart:
                lesions.append(Lesion(kind, host.organ, float(x), float(y), float(radius), size))


def make_scene(image_id: int) -> Scene:
    """Draws the scene of an image; the same id gives the same scene always.

    Args:
      image_id: Any integer from 0.
    """
    random = random_stream(image_id, 0)
    shares = np.cumsum([view.share for view in VIEWS])
    view = VIEWS[int(np.searchsorted(shares, random.random_sample() * shares[-1], side="right"))]
    modality = _pick(random, view.modalities)
    if random.random_sample() < _NORMAL_SHARE:
        return Scene(image_id, view, modality, ())
    kind = _pick(random, kinds_seen(view, modality))
    counts = _COUNTS.get(kind, _OTHER_COUNTS)
    count = 1 + int(np.searchsorted(np.cumsum(counts), random.random_sample() * sum(counts), side="right"))
    # One large lesion at most: "the largest lesion" is then decided, and half of the images have none.
    sizes = ["small"] * count
    if random.random_sample() < 0.5:
        sizes[0] = "large"
    make = _effusions(random, view, count, sizes) if kind == "effusion" else _spread(random, view, kind, sizes)
    return Scene(image_id, view, modality, make)


_COUNT_WORDS = ("no", "a", "two", "three", "four")
_MODALITY_WORDS = {
    "ct": ("CT", "Computed tomography"),
    "t1 mri": ("T1-weighted MRI", "T1-weighted MR image"),
    "t2 mri": ("T2-weighted MRI", "T2-weighted MR image"),
    "radiograph": ("radiograph", "plain film"),
}


def plural(kind: str, count: int = 2) -> str:
    """Returns a lesion kind as a noun in the number of `count`: "cyst", "masses"."""
    if count == 1:
        return kind
    return {"mass": "masses"}.get(kind, kind + "s")


def caption(scene: Scene) -> str:
    """Returns one or two sentences on the scene in the manner of a radiology report."""
    random = random_stream(scene.image_id, 1)
    scan = _MODALITY_WORDS[scene.modality][random.randint(2)]
    plane, part = scene.view.plane.capitalize(), scene.view.body_part
    opening = (f"{plane} {scan} of the {part}", f"{plane} view of the {part}, {scan}")[random.randint(2)]
    if not scene.lesions:
        endings = ("No focal abnormality.", "Normal study.", "Unremarkable appearance.")
        return f"{opening}. {endings[random.randint(3)]}"
    target, count = scene.target, len(scene.lesions)
    noun = plural(scene.abnormality, count)
    organs = sorted({lesion.organ for lesion in scene.lesions})
    verb = ("shows", "demonstrates", "reveals")[random.randint(3)]
    if count == 1 and target:
        article = "an" if target.size[0] in "aeiou" else "a"
        return f"{opening} {verb} {article} {target.size} {noun} of the {target.organ}, {scene.place(target)}."
    text = f"{opening} {verb} {_COUNT_WORDS[count]} {noun} of the {' and '.join(organs)}."
    if target:
        return f"{text} The largest is {scene.place(target)}."
    return f"{text} All of them are small."
