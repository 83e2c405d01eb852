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
    "blip_pretrain_small": 34,
    "blip_retrieval_2process_small": 16,
}
"""Case -> how many of its rows pass."""


@pytest.mark.parametrize("case", CASES)
def test_given_cases(case):
    rows = runner.run(GOLDEN / f"{case}.manifest.json")
    assert [row for row in rows if row.passed is False] == []
    assert sum(row.passed is True for row in rows) == CASES[case]
