"""PolyNet's keys (github.com/Cadene/pretrained-models.pytorch)."""

from jaxvqa.convert.layers import BATCH_NORM, CONV_NO_BIAS
from jaxvqa.convert.table import Rule, nested
from jaxvqa.convert.towers.inception import rows, unit
from jaxvqa.models.towers import polynet
from jaxvqa.models.towers.inception import Row


def _poly_stage(stage: str, branches: tuple[Row, ...]) -> list[Rule]:
    """Both kinds of modules; where one has been built there are no keys of the other."""
    key, path = f"stage_{stage}.{{i}}", f"{stage}_{{i}}"
    rules: list[Rule] = []
    for r, row in enumerate(branches):
        for n, spec in enumerate(row):
            assert not callable(spec)
            name = f"path{r}_{spec[1]}x{spec[2]}" if len(row) > 1 else f"path{r}"
            rules += nested(f"{key}.{name}.conv", f"{path}/row_{r}_unit_{n}", CONV_NO_BIAS)
            rules += nested(f"{key}.{name}.bn_blocks.{{o}}", f"{path}/row_{r}_unit_{n}_norm_{{o}}", BATCH_NORM)
    rules += unit(f"{key}.conv2d_blocks.{{p}}", f"{path}/project_{{p}}")
    rules += rows(f"{key}.blocks.{{w}}.path", f"{path}/branch_{{w}}/", branches)
    return [*rules, *unit(f"{key}.blocks.{{w}}.conv2d", f"{path}/branch_{{w}}_project")]


POLYNET = [
    *unit("stem.conv1.0", "stem_0"),
    *unit("stem.conv1.1", "stem_1"),
    *unit("stem.conv1.2", "stem_2"),
    *unit("stem.conv1_branch", "stem_3/row_1_unit_0"),
    *unit("stem.conv2_short.{i}", "stem_4/row_0_unit_{i}"),
    *unit("stem.conv2_long.{j}", "stem_4/row_1_unit_{j}"),
    *unit("stem.conv2_branch", "stem_5/row_1_unit_0"),
    *_poly_stage("a", polynet.A),
    *rows("reduction_a.path", "reduction_a/", polynet.REDUCTION_A),
    *_poly_stage("b", polynet.B),
    *rows("reduction_b.path", "reduction_b/", polynet.REDUCTION_B),
    *_poly_stage("c", polynet.C),
]
