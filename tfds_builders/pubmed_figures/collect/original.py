"""The original's own rules, number for number: which crop a sub-caption is given, and how Open-i is asked.

Kept to be compared with, and as options of the command (`--rules original`, `--stop original`).
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

OPENI = "https://openi.nlm.nih.gov"
PAGE = 100

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


def subfigure_choice(boxes: Sequence[Mapping[str, Any]], label: str, size: tuple[int, int]) -> Box:
    """Returns the crop that a sub-caption is joined with.

    Args:
      boxes: `x`, `y`, `w`, `h`, and `OCR`: the texts read in the box, in lower case.
      label: The sub-caption's letter; "" for none.
      size: Width and height of the figure.

    Returns:
      The first box of which one text equals the label; the whole figure where there is none, no label, or one box only.
    """
    if label and len(boxes) != 1:
        for box in boxes:
            if label in box.get("OCR", ()):
                return _box(box)
    return 0, 0, *size


def first_box_choice(boxes: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Box:
    """Returns the first box, or the whole figure where there is none."""
    return _box(boxes[0]) if boxes else (0, 0, *size)


def _box(box: Mapping[str, Any]) -> Box:
    return box["x"], box["y"], box["w"], box["h"]


def figure_ids(records: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Numbers figures in the order of their first record: panels of one figure share a number.

    Args:
      records: `Img_id` ("0.png"), `Sub_ID` and `text`.
    """
    names = (record["Img_id"].rpartition(".")[0] for record in records)
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def openi_url(query: str, first: int, last: int, host: str = OPENI) -> str:
    """Returns the address of the results `first` to `last` (from 1) of case reports in PubMed Central."""
    return f"{host}/api/search?at=cr&coll=pmc&m={first}&n={last}&query={quote(query)}"


@dataclasses.dataclass(frozen=True)
class OpeniFigure:
    """A result of Open-i.

    Attributes:
      caption: With the service's HTML tags.
      img_file: The running number, as a file name.
      img_url: Address of the picture.
      entry: The service's whole record.
    """

    caption: str
    img_file: str
    img_url: str
    entry: Mapping[str, Any]


def openi_figures(
    query: str, wanted: int, get: Callable[[str], Mapping[str, Any]], *, host: str = OPENI, as_written: bool = False
) -> Iterator[OpeniFigure]:
    """Yields figures page by page.

    Args:
      query: Words.
      wanted: How many figures.
      get: Returns the service's answer to an address.
      host: The service.
      as_written: The original's stop rule: whole pages until there are `wanted`, so the last page can go beyond; and it never
        ends when the service has exactly as many as were read. Otherwise: at most `wanted`, and an empty page ends it.
    """
    count = 0
    while count < wanted:
        page = get(openi_url(query, count + 1, count + PAGE, host))
        entries = page.get("list") or []
        for entry in entries if as_written else entries[: wanted - count]:
            yield OpeniFigure(entry["image"]["caption"], f"{count}.png", f"{host}{entry['imgLarge']}", entry)
            count += 1
        if count > page["total"] or (not as_written and (not entries or count >= page["total"])):
            return


def without_tags(caption: str) -> str:
    """Returns a caption of Open-i without its HTML tags; comparison signs stay."""
    return re.sub(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]{0,200})?/?>", "", caption)
