"""Keys of the units and branches that the Inception networks and PolyNet are made of."""

from jaxvqa.convert.layers import conv_norm
from jaxvqa.convert.table import Rule
from jaxvqa.models.towers.inception import Row


def unit(key: str, path: str) -> list[Rule]:
    """A convolution and its norm."""
    return conv_norm(f"{key}.conv", f"{key}.bn", path)


def rows(key: str, path: str, branches: tuple[Row, ...]) -> list[Rule]:
    """Rows of units, which count the pools before them; one unit alone has no number."""
    rules: list[Rule] = []
    for r, row in enumerate(branches):
        places = [i for i, spec in enumerate(row) if not callable(spec)]
        for n, place in enumerate(places):
            rules += unit(f"{key}{r}.{place}" if len(row) > 1 else f"{key}{r}", f"{path}row_{r}_unit_{n}")
    return rules
