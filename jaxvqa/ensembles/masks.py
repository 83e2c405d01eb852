"""Which answers a question allows, by the modality that it names: SYSU-HCP's `modelmask.json`.

docs/originals/sysu_hcp.md, section 6.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json

Masks = Mapping[str, Collection[int]]
"""Modality, as questions spell it -> the classes that it may show; in the order of the original's `modelmask.json`."""


def read_masks(path: str | Path, classes: int) -> dict[str, frozenset[int]]:
    """Reads the original's `modelmask.json`: {modality: [class ids]}, keeping its order.

    Args:
      path: the file.
      classes: A.

    Raises:
      DataError: the file is missing or of another form, or an id is not below A.
    """
    content = read_json(path, "the original's modelmask.json: {modality: [class ids]}", {str: [int]})
    masks = {name: frozenset(ids) for name, ids in content.items()}
    wrong = {name: sorted(i for i in ids if not 0 <= i < classes) for name, ids in masks.items()}
    faults = [f"{name}: {ids[:10]}" for name, ids in wrong.items() if ids]
    if faults:
        raise DataError(f"{path}: class ids that are not from 0 to {classes - 1}:\n  " + "\n  ".join(faults))
    return masks


def modalities_in(question: str, masks: Masks) -> list[str]:
    """Returns the modalities whose name is part of the question's text, in the masks' order, case-sensitive.

    Parts of words count: "fracture" holds "ct", "petrous" holds "pet"; "CT" holds neither.
    """
    return [name for name in masks if name in question]


def modality_of(question: str, masks: Masks) -> int:
    """Returns the place of the last modality found in the question; the number of masks when there is none."""
    found = modalities_in(question, masks)
    return list(masks).index(found[-1]) if found else len(masks)


def allowed_classes(masks: Masks, classes: int) -> Bool[np.ndarray, "M A"]:
    """Returns a row for each modality, and a last one for questions without any; a mask without classes allows all."""
    allowed = np.ones((len(masks) + 1, classes), bool)
    for row, ids in zip(allowed, masks.values(), strict=False):
        row[:] = np.isin(np.arange(classes), list(ids)) | (not ids)
    return allowed
