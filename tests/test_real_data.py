"""Learning on real data: needs JAXVQA_DATA and minutes."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxvqa import configs, train
from tfds_builders import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mini(jaxvqa_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    files = jaxvqa_data / "data" / "vqa_v2_mini"
    assert build.main(["vqa_v2", f"--manual_dir={files}", f"--data_dir={folder}"]) == 0
    return folder


def test_six_real_questions_are_fitted_exactly(mini, tmp_path):
    config = configs.load("configs/rwsan.py:vqa_v2,small")
    changes = {
        "data.dir": mini,
        "data.train_split": "with_region_features",
        "data.vocabulary_splits": "with_region_features",
        "data.answers.splits": "with_region_features",
        "data.answers.min_count": 1,
        "evals.val.split": "with_region_features",
        "evals.val.every": "300 steps",
        "model.width": 64,
        "model.dropout": 0.0,
        "optim.lr": 1e-3,
        "optim.schedule.warmup_epochs": 0,
        "optim.schedule.decay_epochs": "()",
        "batch_size": 6,
        "total": "300 steps",
        "evals.val.batch_size": 6,
        "checkpoint.every": "300 steps",
    }
    configs.override(config, [(name, str(value)) for name, value in changes.items()])
    train.train(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "predictions" / "val_300.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:  # the answer that most annotators gave, which is the best that one answer can do
        counts = [row["annotators"].count(answer) for answer in row["annotators"]]
        assert row["annotators"].count(row["answer"]) == max(counts), row


def test_question_alone_on_real_questions(mini, tmp_path):
    """States the accuracy of a question-only run on 5,000/1,000 real questions; always "yes" gives 22.2 %."""
    config = configs.load("configs/rwsan.py:vqa_v2,mini,blind,small")
    changes = {
        "data.dir": mini,
        "data.limit": 0,
        "model.width": 128,
        "optim.lr": 5e-4,
        "batch_size": 64,
        "total": "8 epochs",
        "optim.schedule.decay_epochs": "(5, 7)",
        "evals.val.every": "8 epochs",
        "checkpoint.every": "8 epochs",
    }
    configs.override(config, [(name, str(value)) for name, value in changes.items()])
    results = train.train(config, tmp_path)
    print(f"question-only VQA accuracy on 1,000 real questions: {results['val/accuracy']:.2f} % (always yes: 22.2 %)")
    assert results["val/accuracy"] > 25
    assert np.isfinite(list(results.values())).all()


def test_easy_vqa_passes_95_percent(tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy")
    assert build.main(["easy_vqa", f"--data_dir={folder}"]) == 0
    config = configs.load("configs/rwsan.py:easy_vqa")
    configs.override(config, [("data.dir", str(folder))])
    results = train.train(config, tmp_path)
    print({name: round(value, 2) for name, value in results.items()})
    assert results["test/accuracy"] > 95
