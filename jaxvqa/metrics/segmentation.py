"""Agreement of segmentation maps with their labels, of NumPy's or JAX's arrays (docs/originals/cmsa.md, section 10)."""

from typing import Any

from jaxtyping import Float, Integer


def mean_iou(predictions: Integer[Any, "B H W"], labels: Integer[Any, "B H W"], classes: int) -> Float[Any, " B"]:
    """Returns each image's mean IoU: over the classes present in its prediction or its label, intersection / union.

    A class that neither has does not count, and every image counts alike in a mean over images.
    """
    xp = predictions.__array_namespace__()
    ours, theirs = (maps[..., None] == xp.arange(classes)[None, None, None] for maps in (predictions, labels))
    both, either = ((ours & theirs).sum(axis=(1, 2)), (ours | theirs).sum(axis=(1, 2)))
    return (both / xp.maximum(either, 1)).sum(axis=-1) / (either > 0).sum(axis=-1)
