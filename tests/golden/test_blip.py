"""BLIP's golden cases: those that were given."""

from pathlib import Path

import pytest

from jaxvqa.golden import runner

GOLDEN = Path(__file__).parent / "blip"
CASES = {
    "vit_small": 5,
    "med_small": 11,
    "blip_itm_small": 4,
    "blip_feature_small": 4,
    "gradcam_small": 13,
    "blip_nlvr_small": 3,
    "blip_caption_small": 11,
    "blip_vqa_small": 15,
    "blip_pretrain_small": 34,
    "blip_retrieval_2process_small": 16,
}
"""Case -> how many of its rows pass."""

IN_FLOAT32 = {
    "blip_caption_small": 2,
    "blip_vqa_small": 2,
    "blip_pretrain_small": 4,
    "blip_retrieval_2process_small": 2,
}
"""Training case -> how many of these are computed in float32."""


@pytest.mark.slow
def test_given_case_of_retrieval():
    """That of two processes has the same loss; this one has the evaluation besides."""
    rows = runner.run(GOLDEN / "blip_retrieval_small.manifest.json")
    assert [row for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) == 28


def test_given_loading_cases():
    rows = runner.run(GOLDEN / "loading_cases.json")
    assert [(row.output, row.passed) for row in rows if not row.passed] == []
    assert len(rows) == 8


@pytest.mark.parametrize("case", CASES)
def test_given_cases(case, float64_alone):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert [row for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) == CASES[case] - IN_FLOAT32.get(case, 0)


@pytest.mark.slow
@pytest.mark.parametrize("case", IN_FLOAT32)
def test_given_training_cases_in_both_precisions(case):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert [row for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) == CASES[case]
