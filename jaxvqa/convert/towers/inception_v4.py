"""Inception v4's keys (github.com/Cadene/pretrained-models.pytorch)."""

from jaxvqa.convert.table import Rule
from jaxvqa.convert.towers.inception import rows, unit
from jaxvqa.models.towers.inception_v4 import LAYERS

_BLOCK_C = {
    "branch0": "row_0_unit_0",
    "branch1_0": "row_1_unit_0",
    "branch1_1a": "row_1_wide",
    "branch1_1b": "row_1_high",
    "branch2_0": "row_2_unit_0",
    "branch2_1": "row_2_unit_1",
    "branch2_2": "row_2_unit_2",
    "branch2_3a": "row_2_wide",
    "branch2_3b": "row_2_high",
    "branch3.1": "row_3_unit_0",
}


def _inception_v4() -> list[Rule]:
    alone = {0: "", 1: "", 2: "", 3: ".conv", 5: ".conv"}
    rules: list[Rule] = []
    for i, layer in enumerate(LAYERS):
        key, path = f"features.{i}", f"layer_{i}"
        if layer is None:
            rules += [r for name, ours in _BLOCK_C.items() for r in unit(f"{key}.{name}", f"{path}/{ours}")]
        elif i in alone:
            place = next(r for r, row in enumerate(layer) if not callable(row[0]))
            rules += unit(key + alone[i], f"{path}/row_{place}_unit_0")
        else:
            rules += rows(f"{key}.branch", f"{path}/", layer)
    return rules


INCEPTION_V4 = _inception_v4()
