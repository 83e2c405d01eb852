"""Mean IoU by hand, of NumPy's arrays and of JAX's."""

import jax
import numpy as np
import pytest

from jaxvqa.metrics import segmentation


def mean_iou(predictions, labels, classes=8):
    ours = segmentation.mean_iou(predictions, labels, classes)
    compiled = jax.jit(segmentation.mean_iou, static_argnums=2)(predictions, labels, classes)
    np.testing.assert_allclose(compiled, ours, rtol=1e-6)
    return ours


def test_classes_of_prediction_or_label_count_and_no_others():
    label = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    prediction = np.array([[0, 0, 0, 1], [0, 0, 1, 5]])
    # 0: 4 of 5; 1: 2 of 4; 5: in the prediction only, 0 of 1; 2 to 4 are nowhere.
    assert mean_iou(prediction[None], label[None]) == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert mean_iou(label[None], prediction[None]) == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)


def test_each_image_has_its_own_classes():
    labels = np.stack([np.zeros((3, 2), int), np.full((3, 2), 7)])
    np.testing.assert_array_equal(mean_iou(labels, labels), [1, 1])
    np.testing.assert_array_equal(mean_iou(labels[::-1], labels), [0, 0])
    assert mean_iou(labels, labels).dtype == np.float64


def test_against_sets_of_pixels():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 4, (5, 6, 7)), rng.integers(0, 3, (5, 6, 7))
    for got, p, t in zip(mean_iou(predictions, labels), predictions, labels, strict=True):
        present = set(p.ravel()) | set(t.ravel())
        ious = [np.sum((p == c) & (t == c)) / np.sum((p == c) | (t == c)) for c in present]
        assert got == pytest.approx(np.mean(ious))
