"""Means of given scores, kept by id."""

import json

import numpy as np
import pytest

from tests.evaluators.stubs import Task, evaluate


def test_each_score_has_its_mean_and_its_interval_over_images(tmp_path):
    records = [{"question_id": 10 + i, "image_id": image} for i, image in enumerate([1, 1, 2, 2])]
    outputs = {"iou": np.float32([0.25, 0.75, 0.5, 0.5]), "compatibility": np.ones(4, np.float32)}
    values = evaluate("scores", Task(), {"val": records}, outputs, tmp_path)
    assert values["iou"] == 50
    assert values["compatibility"] == 100
    assert values["compatibility/low"] == pytest.approx(100 * 0.025 ** (1 / 2))  # of two images, not of four rows
    assert values["iou/low"] < 50 < values["iou/high"]
    rows = [json.loads(line) for line in (tmp_path / "predictions/val_7.jsonl").read_text().splitlines()]
    assert rows == [{"id": 10 + i, "iou": float(iou), "compatibility": 1.0} for i, iou in enumerate(outputs["iou"])]
