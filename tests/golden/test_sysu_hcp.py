"""SYSU-HCP's golden cases of losses, schedule and pictures; those that read are beside the tests of reading."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.golden import runner

GOLDEN = Path(__file__).parents[1] / "golden" / "sysu_hcp"


def test_losses_and_schedule():
    rows = runner.run(GOLDEN / "losses.npz")
    assert [row for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) == 64
    assert [row.output for row in rows if row.passed is None] == ["resume within a block", "warmup_unused"]
    notes = {row.output: row.note for row in rows}
    assert notes["schedule"] == "100/100"
    assert notes["poly"] == "101/101"
    assert "differs in 2 of 3" in notes["resume within a block"]


def test_pictures():
    rows = runner.run(GOLDEN / "preprocess.json")
    assert [row.passed for row in rows] == [True] * 8


def test_wrong_numbers_fail(tmp_path):
    content = json.loads((GOLDEN / "preprocess.json").read_text())
    content["python_random_seeds"] = [0]
    (tmp_path / "preprocess.json").write_text(json.dumps(content))
    with np.load(GOLDEN / "preprocess.npz") as stored:
        arrays = dict(stored)
    arrays["out_test_1"] = arrays["out_test_1"] * np.float32(1 + 3e-4)
    arrays["out_resized_0"] = arrays["out_resized_0"] + np.uint8(1)
    np.savez(tmp_path / "preprocess.npz", **arrays)
    rows = runner.run(tmp_path)
    # The arrays of the seed that is not asked for any more are not passed over.
    assert {row.output for row in rows if row.passed is False} == {"test_1", "resized_0", "train_0_3", "train_1_3"}


@pytest.mark.parametrize("name", ["losses.json", "preprocess.json"])
def test_a_case_without_its_arrays_fails(name, tmp_path):
    shutil.copy(GOLDEN / name, tmp_path)
    (row,) = runner.run(tmp_path)
    assert row.passed is False
    assert "npz" in row.note
