"""What the examples of a split are about, each once: its images and its texts, as retrieval and few-shot prompts need them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int


class Images:
    """The images of a split, each once: random access to raw examples, one of each image.

    Attributes:
      ids: int64[N], theirs, in ascending order.
      examples: positions in the split of each one's examples.
    """

    def __init__(self, read: Callable[[Sequence[int]], list[dict[str, Any]]], image_ids: Int[np.ndarray, " E"]):
        """Args: reads examples by position, and the image of each."""
        self._read = read
        order = np.argsort(image_ids, kind="stable")
        self.ids, starts = np.unique(image_ids[order], return_index=True)
        self.examples = np.split(order, starts[1:])

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The first example of each image at these positions."""
        return self._read([int(self.examples[int(index)][0]) for index in indices])


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of a split, each once: captions, or questions where there are no captions.

    Attributes:
      texts: in the order in which the examples bring them.
      of_example: int64[E], the place in `texts` of each example's text.
    """

    texts: tuple[str, ...]
    of_example: Int[np.ndarray, " E"]

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> "Texts":
        """Those of the examples' records."""
        places: dict[str, int] = {}
        found = [places.setdefault(r["caption"] if "caption" in r else r["question"], len(places)) for r in records]
        return cls(tuple(places), np.asarray(found, np.int64))

    def __len__(self) -> int:
        return len(self.texts)
