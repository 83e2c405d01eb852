"""Tables over parameter paths."""

import jax
import pytest

from jaxvqa import paths
from jaxvqa.errors import ConfigError

TREE = {"encoder": {"up": {"kernel": 1, "bias": 2}}, "embed": {"embedding": 3}}


def test_first_matching_row_wins():
    found = paths.lookup([(r".*/bias", "b"), (r"encoder/.*", "e"), (r".*", "rest")], TREE, "x")
    assert found == {"encoder": {"up": {"kernel": "e", "bias": "b"}}, "embed": {"embedding": "rest"}}


def test_uncovered_parameters_and_idle_rows_are_reported_together():
    with pytest.raises(ConfigError) as error:
        paths.lookup([(r"encodr/.*", 1), (r".*/bias", 2)], TREE, "optim.freeze")
    text = str(error.value)
    assert "config.optim.freeze" in text
    assert "encoder/up/kernel" in text
    assert "embed/embedding" in text
    assert "'encodr/.*' matches no parameter" in text


def test_flatten_and_nest_are_inverse():
    assert paths.nest(paths.flatten(TREE)) == TREE
    assert list(paths.flatten(TREE)) == [paths.path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(TREE)]


def test_the_tops_of_whole_subtrees_stand_for_what_is_beneath():
    every = list(paths.flatten(TREE))
    for chosen, tops in (
        ([], []),
        (every, [""]),
        (["encoder/up/kernel", "encoder/up/bias"], ["encoder"]),
        (["encoder/up/bias", "embed/embedding"], ["embed", "encoder/up/bias"]),
    ):
        assert paths.tops(chosen, every) == tops
        assert sorted(paths.under(tops, every)) == sorted(chosen)
    assert paths.under(["enc"], every) == []
