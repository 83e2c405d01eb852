"""What the tokens of a split add up to: long texts weigh more than short ones."""

import math

import numpy as np
import pytest

from tests.evaluators.stubs import Task, evaluate


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        (
            {"loss": [3.0, 5.0], "loss_words": [3.0, 1.0], "nll": [1.0, 2.0], "words": [2.0, 1.0], "right": [1.0, 1.0]},
            {"loss": 2.0, "perplexity": math.e, "word_accuracy": 200 / 3},
        ),
        (
            {"class_loss": [2.0, 0.0, 4.0, 0.0], "class_known": [1.0, 0.0, 1.0, 0.0], "class_right": [1.0, 0, 0, 0]},
            {"loss": 3.0, "class_accuracy": 50.0},
        ),
        (
            {"loss": [4.0], "loss_words": [2.0], "nll": [0.0], "words": [0.0], "right": [0.0]}
            | {"class_loss": [1.0], "class_known": [1.0], "class_right": [1.0]},
            {"loss": 3.0, "class_accuracy": 100.0},
        ),
    ],
)
def test_likelihoods_are_means_over_all_tokens_of_a_split(tmp_path, sums, expected):
    arrays = {name: np.asarray(values, np.float32) for name, values in sums.items()}
    records = [{"question_id": i, "image_id": i} for i in range(len(next(iter(arrays.values()))))]
    assert evaluate("likelihood", Task(), {"val": records}, arrays, tmp_path) == pytest.approx(expected)
    assert not list(tmp_path.rglob("*.jsonl"))
