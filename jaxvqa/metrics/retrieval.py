"""Retrieval: which texts an image finds, and which images a text finds. NumPy only.

docs/originals/blip.md, section 6.

Scores are S[i, t], the higher the better. Which pairs belong together is a relation bool[I, T]: an image may have several
texts, and a text several images. A row's rank is the place of the best of its own, from 0, in descending order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxvqa.metrics.bootstrap import ImageIds
from jaxvqa.metrics.score import Score

FILL = -100.0
"""The score of what was not looked at: below every other."""

CUTS = (1, 5, 10)
"""The k of recall at k."""

_BLOCK = 1 << 22  # scores that are compared at a time


def ranks(scores: Float[np.ndarray, "R C"], own: Bool[np.ndarray, "R C"]) -> Int[np.ndarray, " R"]:
    """The rank of the best of each row's own columns: how many others stand before it.

    The order is that of an ascending stable sort read backwards, so that of equal scores the higher index comes first.

    Args:
      scores: finite numbers.
      own: the right columns of each row.

    Raises:
      ValueError: a row has no right column, or a score is not a number.
    """
    if alone := np.flatnonzero(~own.any(axis=1)).tolist():
        raise ValueError(f"{len(alone)} rows have no right column, such as {alone[:5]}.")
    if bad := np.flatnonzero(np.isnan(scores).any(axis=1)).tolist():
        raise ValueError(f"{len(bad)} rows have scores that are not numbers, such as {bad[:5]}.")
    places = np.arange(scores.shape[1])
    found = np.empty(len(scores), np.int64)
    step = max(1, _BLOCK // max(scores.shape[1], 1))
    for start in range(0, len(scores), step):
        mine = slice(start, start + step)
        part = scores[mine]
        best = np.where(own[mine], part, -np.inf).max(axis=1, keepdims=True)
        # Of equally good ones of its own, the last stands first.
        place = np.where(own[mine] & (part == best), places, -1).max(axis=1, keepdims=True)
        found[mine] = np.count_nonzero((part > best) | ((part == best) & (places > place)), axis=1)
    return found


def candidates(scores: Float[np.ndarray, "R C"], count: int) -> Bool[np.ndarray, "R C"]:
    """The `count` columns of the highest scores of each row; of those that are equal at the cut, the last ones.

    Raises:
      ValueError: there are fewer columns.
    """
    if not 1 <= count <= scores.shape[1]:
        raise ValueError(f"Expected from 1 to {scores.shape[1]} candidates, got {count}.")
    chosen = np.empty(scores.shape, bool)
    step = max(1, _BLOCK // scores.shape[1])
    for start in range(0, len(scores), step):
        part = scores[start : start + step]
        least = np.partition(part, -count, axis=1)[:, -count, None]
        above, equal = part > least, part == least
        left = count - above.sum(axis=1, keepdims=True)
        last = np.cumsum(equal[:, ::-1], axis=1)[:, ::-1] <= left
        chosen[start : start + step] = above | (equal & last)
    return chosen


def relation(shape: tuple[int, int], pairs: Int[np.ndarray, "P 2"]) -> Bool[np.ndarray, "I T"]:
    """Which image and which text belong together, from a list of their places."""
    own = np.zeros(shape, bool)
    own[pairs[:, 0], pairs[:, 1]] = True
    return own


@dataclass(frozen=True)
class Summary:
    """How well images find their texts, and texts their images.

    Attributes:
      of_images: int64[I], the rank of each image's best text: "image to text", `txt_r…` in the original's words.
      of_texts: int64[T], the rank of each text's best image: "text to image", `img_r…`.
      image_of_text: int64[T], an image of each text: what intervals resample.
      images: int64[I], what each image counts as when intervals resample; images that belong together share a number.
    """

    of_images: Int[np.ndarray, " I"] = field(repr=False)
    of_texts: Int[np.ndarray, " T"] = field(repr=False)
    image_of_text: Int[np.ndarray, " T"] = field(repr=False)
    images: Int[np.ndarray, " I"] = field(repr=False)

    def recalls(self) -> dict[str, float]:
        """Recall in percent under the original's names, in its order: see `RECALLS`."""
        found: dict[str, float] = {}
        for name, each in (("txt", self.of_images), ("img", self.of_texts)):
            parts = {f"{name}_r{k}": 100 * float(np.mean(each < k)) for k in CUTS}
            found |= parts | {f"{name}_r_mean": sum(parts.values()) / len(CUTS)}
        return found | {"r_mean": (found["txt_r_mean"] + found["img_r_mean"]) / 2}

    def scores(self) -> dict[str, Score]:
        """The same with intervals over images, and the median ranks `txt_median` and `img_median`, which count from 1.

        The interval of `r_mean` takes the recalls of an image's texts as one, their mean.
        """
        found: dict[str, Score] = {}
        both = (("txt", self.of_images, self.images), ("img", self.of_texts, self.images[self.image_of_text]))
        for name, each, images in both:
            hits = [each < k for k in CUTS]
            found |= {f"{name}_r{k}": Score.mean(hit, images) for k, hit in zip(CUTS, hits, strict=True)}
            found[f"{name}_r_mean"] = Score.mean(np.mean(hits, axis=0), images)
            found[f"{name}_median"] = Score(float(np.median(each)) + 1, n=len(each))
        of_images, of_texts = (np.mean([each < k for k in CUTS], axis=0) for each in (self.of_images, self.of_texts))
        sums, counts = (np.bincount(self.image_of_text, w, len(of_images)) for w in (of_texts, None))
        back = np.where(counts > 0, sums / np.maximum(counts, 1), of_images)
        interval = Score.mean((of_images + back) / 2, self.images)
        return found | {"r_mean": replace(interval, value=self.recalls()["r_mean"])}


def summarise(
    scores: Float[np.ndarray, "I T"],
    own: Bool[np.ndarray, "I T"],
    back: Float[np.ndarray, "T I"] | None = None,
    images: ImageIds | None = None,
) -> Summary:
    """Ranks both ways.

    Args:
      scores: of image to text.
      own: the pairs that belong together; every image has a text, and every text an image.
      back: of text to image; without, the transpose of `scores`. After re-ranking the two have other pairs.
      images: what each image counts as when intervals resample; without, each for itself.

    Raises:
      ValueError: as of `ranks`.
    """
    groups = np.arange(len(scores)) if images is None else np.asarray(images)
    return Summary(ranks(scores, own), ranks(scores.T if back is None else back, own.T), own.argmax(axis=0), groups)


# --- what no model has to earn ------------------------------------------------------------------------------------------


def chance(own: Bool[np.ndarray, "I T"]) -> dict[str, float]:
    """Expected recall, in percent, of scores that are drawn at random, under the names of `Summary.recalls`."""
    return _expected(own, np.ones_like(own))


def ceiling(own: Bool[np.ndarray, "I T"], keys: Sequence[object]) -> dict[str, float]:
    """Expected recall, in percent, of who knows all that texts say, and cannot tell apart those that say the same.

    Texts of one key are interchangeable: what they say is true of the images of all of them alike. Who knows which images
    these are has to draw among them; see `_expected`.

    Args:
      own: the pairs that belong together.
      keys: of each text, such as the facts that it words.
    """
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    of_text = np.asarray([places[key] for key in keys])
    says = np.zeros((len(places), len(own)), bool)  # key x image
    np.logical_or.at(says, of_text, own.T)
    return _expected(own, says[of_text].T)


def _expected(own: Bool[np.ndarray, "I T"], alike: Bool[np.ndarray, "I T"]) -> dict[str, float]:
    """Expected recall where each row puts those that are `alike` first, in an order that is drawn at random.

    With n alike, m of them its own, all in the first k by chance not: Π (n - m - j) / (n - j) over j < k.
    """
    found: dict[str, float] = {}
    for name, mine, same in (("txt", own, alike), ("img", own.T, alike.T)):
        right, among = (mine & same).sum(axis=1), same.sum(axis=1)
        missed = np.ones(len(mine))
        shares = {}
        for j in range(max(CUTS)):
            missed = missed * np.maximum(among - right - j, 0) / np.maximum(among - j, 1)
            shares[j + 1] = 100 * float(np.mean(1 - missed))
        found |= {f"{name}_r{k}": shares[k] for k in CUTS}
        found[f"{name}_r_mean"] = sum(shares[k] for k in CUTS) / len(CUTS)
    return found | {"r_mean": (found["txt_r_mean"] + found["img_r_mean"]) / 2}
