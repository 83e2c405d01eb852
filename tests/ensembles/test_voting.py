"""Masks, confidence and votes, by hand; the original's cases where its data files are at hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.ensembles import masks, voting
from jaxvqa.errors import DataError
from jaxvqa.golden import runner

MASKS = {"ct": [1, 2], "mri": [3], "pet": [30]}


def logits(**best):
    """40 classes, all below the threshold, falling by their ids from 0; some set."""
    values = np.linspace(0.4, -0.4, 40).astype(np.float32)
    for name, value in best.items():
        values[int(name[1:])] = value
    return values


def predict(row, classes=(), rule=voting.allowed_unless_confident):
    """The class of one row, from arrays of NumPy and of JAX, which agree."""
    allowed = np.isin(np.arange(len(row)), classes) | (not classes)
    ours, theirs = rule(row, allowed), jax.jit(rule)(jnp.asarray(row), jnp.asarray(allowed))
    assert int(ours) == int(theirs)
    return int(ours)


def test_the_last_modality_in_the_text_counts():
    assert masks.modalities_in("what is abnormal in the ct scan?", MASKS) == ["ct"]
    assert masks.modalities_in("a fracture of the petrous bone", MASKS) == ["ct", "pet"]
    assert masks.modalities_in("CT", MASKS) == []
    asked = ("mri or ct?", "a fracture", "seen?")  # the masks' order counts, not the text's
    assert [masks.modality_of(question, MASKS) for question in asked] == [1, 0, 3]


def test_a_table_of_allowed_classes():
    table = masks.allowed_classes({"ct": [1, 2], "none": []}, 4)
    assert table.astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_an_unsure_model_answers_with_its_best_allowed_class():
    assert predict(logits(), (2, 5)) == 2
    assert predict(logits(), (19,)) == 19
    assert predict(logits(), (20, 39)) == 0  # not among the best 20
    assert predict(logits()) == 0
    assert predict(logits(c7=0.5), (2,)) == 2  # 0.5 itself is not above 0.5
    assert predict(logits(c7=0.50001), (2,)) == 7
    assert predict(logits(c7=0.50001), (2,), voting.best_allowed) == 2
    assert predict(logits(c7=0.4), (2,), voting.best) == 0  # of equal ones the first
    assert predict(logits(c7=0.3, c3=0.3), (3, 7)) == 3


def test_as_written_stops_where_the_original_does():
    assert predict(logits(), (2,), voting.as_written) == -1
    assert predict(logits(), (20,), voting.as_written) == 0
    assert predict(logits(), (), voting.as_written) == 0
    assert predict(logits(c7=5), (2,), voting.as_written) == 7


def test_an_ensemble_answers_where_all_its_models_do():
    allowed = np.arange(40) == 2
    models = np.stack([logits(c7=5), logits(c7=5), logits()])[:, None]
    assert voting.vote(voting.as_written(models, np.broadcast_to(allowed, models.shape))).tolist() == [-1]
    assert voting.vote(voting.allowed_unless_confident(models, np.broadcast_to(allowed, models.shape))).tolist() == [7]
    assert voting.mean_vote(models, allowed[None]).tolist() == [2]


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
        masks.read_masks(path, 10)
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        masks.read_masks(path, 10)
    path.write_text("[1]")
    with pytest.raises(DataError, match="modality"):
        masks.read_masks(path, 10)
    path.write_text(json.dumps({"pet": [1], "ct": [9, 10], "mri": [-1]}))
    with pytest.raises(DataError, match=r"0 to 9:\n  ct: \[10\]\n  mri: \[-1\]"):
        masks.read_masks(path, 10)


def test_the_originals_cases(jaxvqa_data):
    rows = runner.run(jaxvqa_data / "reference/sysu/ensemble_cases.json")
    assert [row.note for row in rows] == ["8/8"] * 20
    found = masks.read_masks(jaxvqa_data / "reference/sysu/modelmask.json", 330)
    assert {name: len(ids) for name, ids in found.items()} == {
        **{"ct": 212, "angiogram": 18, "mri": 133, "ultrasound": 63},
        **{"x-ray": 145, "gastrointestinal": 20, "mammograph": 5, "pet": 4},
    }
    assert set.union(*map(set, found.values())) == set(range(330))
