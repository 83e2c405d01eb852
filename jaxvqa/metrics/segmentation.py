"""Agreement of segmentation maps with their labels (CMSA spec, section 10). NumPy only."""

import numpy as np


def mean_iou(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns each image's mean IoU: over the classes present in its prediction or its label, intersection / union.

    A class that neither has does not count, and every image counts alike in a mean over images.

    Args:
      predictions: int[B, H, W], the class of each pixel.
      labels: int[B, H, W].

    Returns:
      float64[B].
    """
    if predictions.shape != labels.shape or predictions.ndim != 3:
        raise ValueError(f"maps of [B, H, W] expected, got {list(predictions.shape)} and {list(labels.shape)}.")
    return np.asarray([_mean_iou(p.ravel(), t.ravel()) for p, t in zip(predictions, labels, strict=True)], np.float64)


def _mean_iou(prediction: np.ndarray, label: np.ndarray) -> float:
    classes = max(prediction.max(), label.max()) + 1
    predicted, true = np.bincount(prediction, minlength=classes), np.bincount(label, minlength=classes)
    both = np.bincount(label[prediction == label], minlength=classes)
    union = predicted + true - both
    return float(np.mean(both[union > 0] / union[union > 0]))
