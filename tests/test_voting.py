"""Masks, confidence and votes, by hand; the original's cases where its data files are at hand."""

import json

import numpy as np
import pytest

from jaxvqa import voting
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.golden import runner

MASKS = {"ct": [1, 2], "mri": [3], "pet": [30]}


def logits(**best):
    """40 classes, all below the threshold, falling by their ids from 0; some set."""
    values = np.linspace(0.4, -0.4, 40).astype(np.float32)
    for name, value in best.items():
        values[int(name[1:])] = value
    return values


def test_the_last_modality_in_the_text_counts():
    assert voting.modalities_in("what is abnormal in the ct scan?", MASKS) == ["ct"]
    assert voting.modalities_in("a fracture of the petrous bone", MASKS) == ["ct", "pet"]
    assert voting.modalities_in("CT", MASKS) == []
    assert set(voting.allowed_classes("mri or ct?", MASKS)) == {3}  # the masks' order, not the text's
    assert not voting.allowed_classes("seen?", MASKS)


def test_an_unsure_model_answers_with_its_best_allowed_class():
    assert voting.predict(logits(), (2, 5)) == 2
    assert voting.predict(logits(), (19,)) == 19
    assert voting.predict(logits(), (20, 39)) == 0  # not among the best 20
    assert voting.predict(logits(), ()) == 0
    assert voting.predict(logits(c7=0.5), (2,)) == 2  # 0.5 itself is not above 0.5
    assert voting.predict(logits(c7=0.50001), (2,)) == 7


def test_as_written_stops_where_the_original_does():
    assert voting.predict(logits(), (2,), "as_written") is None
    assert voting.predict(logits(), (20,), "as_written") == 0
    assert voting.predict(logits(c7=5), (2,), "as_written") == 7
    models = np.stack([logits(c7=5), logits(c7=5), logits()])
    assert voting.vote(models, "ct?", MASKS, "as_written") is None
    assert voting.vote(models, "ct?", MASKS) == 7
    assert voting.vote(models, "seen?", MASKS, "as_written") == 7
    with pytest.raises(ConfigError, match="intended, as_written"):
        voting.predict(logits(), (), "rank_bug")


def test_ties_go_to_the_earliest_vote():
    assert voting.majority([4, 2, 2, 4, 9]) == 4
    assert voting.majority([9, 2, 4, 4, 2]) == 2
    assert voting.majority([0]) == 0
    with pytest.raises(DataError, match="at least one"):
        voting.majority([])


def test_mean_probabilities():
    two = np.float32([[[0, 0], [1000, 0]], [[np.log(3), 0], [0, 1000]]])
    np.testing.assert_allclose(voting.mean_probabilities(two), [[0.625, 0.375], [0.5, 0.5]])


def test_masks_files(tmp_path):
    path = tmp_path / "modelmask.json"
    with pytest.raises(DataError, match="Expected the original"):
        voting.read_masks(path, 10)
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        voting.read_masks(path, 10)
    path.write_text("[1]")
    with pytest.raises(DataError, match="modality"):
        voting.read_masks(path, 10)
    path.write_text(json.dumps({"pet": [1], "ct": [9, 10], "mri": [-1]}))
    with pytest.raises(DataError, match=r"0 to 9:\n  ct: \[10\]\n  mri: \[-1\]"):
        voting.read_masks(path, 10)


def test_the_originals_cases(jaxvqa_data):
    rows = runner.run(jaxvqa_data / "reference/sysu/ensemble_cases.json")
    assert [row.note for row in rows] == ["8/8"] * 20
    masks = voting.read_masks(jaxvqa_data / "reference/sysu/modelmask.json", 330)
    assert {name: len(ids) for name, ids in masks.items()} == {
        **{"ct": 212, "angiogram": 18, "mri": 133, "ultrasound": 63},
        **{"x-ray": 145, "gastrointestinal": 20, "mammograph": 5, "pet": 4},
    }
    assert set.union(*map(set, masks.values())) == set(range(330))
