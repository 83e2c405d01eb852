"""VGG's keys, as torchvision numbers its layers, and as SYSU-HCP's networks do."""

from jaxvqa.convert.layers import BATCH_NORM, CONV
from jaxvqa.convert.table import Rule, nested
from jaxvqa.models.towers.vgg import BLOCKS


def vgg(depth: int, norm: bool, key: str) -> list[Rule]:
    """VGG's rules.

    Args:
      depth: 16 or 19.
      norm: whether with batch normalisation.
      key: how a layer is called, with `{n}` for its number among all layers, ReLUs and pools included, and `{part}` and `{m}`
        for the number of the part that it is in and its own number there. A part begins with a pool, but for the first.
    """
    rules, n = [], 0
    for part, count in enumerate(BLOCKS[depth], 1):
        start = n - 1 if n else 0
        for i in range(count):
            rules += nested(key.format(n=n, part=part, m=n - start), f"block_{part}_conv_{i}", CONV)
            if norm:
                name = key.format(n=n + 1, part=part, m=n + 1 - start)
                rules += nested(name, f"block_{part}_norm_{i}", BATCH_NORM)
            n += 3 if norm else 2
        n += 1
    return rules
