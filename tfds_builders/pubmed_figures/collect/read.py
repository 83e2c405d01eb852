"""Reads articles in JATS, the XML of PubMed Central: licence, attribution, figures with their captions.

The files come from strangers. The parser knows no entities, opens no addresses and refuses huge or deep trees; a document that
declares entities is refused by name.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from jaxvqa.errors import DataError, install
from tfds_builders.pubmed_figures.collect.subcaptions import Span

MOST_BYTES = 30_000_000
"""A larger article is refused: the largest of PubMed Central's are around 10 MB."""

MOST_FIGURES = 500
LONGEST_CAPTION = 50_000
"""Characters; a longer caption refuses its figure."""

_HREF = "{http://www.w3.org/1999/xlink}href"
_BLOCKS = {"p", "title", "label", "list-item", "break", "sec", "disp-quote"}
_LEFT_OUT = {
    "object-id",
    "alternatives",
    "graphic",
    "media",
    "tex-math",
    "permissions",
    "attrib",
    "long-desc",
    "alt-text",
}


@dataclasses.dataclass(frozen=True)
class Text:
    """A text without mark-up, white space normalised.

    Attributes:
      text: The characters.
      bold: Where they are bold.
      italic: Where they are italic.
    """

    text: str = ""
    bold: tuple[Span, ...] = ()
    italic: tuple[Span, ...] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of an article.

    Attributes:
      figure_id: The element's id, or its number: unique in the article.
      label: Such as "Figure 1".
      title: The caption's title.
      caption: The caption without its title.
      graphics: Names of its pictures, as the article gives them.
      refused: Why it cannot be used; "" if it can.
    """

    figure_id: str
    label: str
    title: str
    caption: Text
    graphics: tuple[str, ...]
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Article:
    """What is read of an article.

    Attributes:
      article_id: "PMC" and a number, or "" where the file names none.
      doi: The article's DOI, or "".
      title: Its title.
      source: Journal, year, volume and page, for people.
      attribution: Who is to be named: authors, title, journal, year.
      licence: Such as "CC BY" or "CC BY-NC", "" where none is stated.
      licence_url: Where the licence is, or "".
      figures: In the article's order.
    """

    article_id: str
    doi: str
    title: str
    source: str
    attribution: str
    licence: str
    licence_url: str
    figures: tuple[Figure, ...]


def parse(data: bytes, name: str) -> Any:
    """Parses XML of a stranger.

    Args:
      data: The file.
      name: What it is called in messages.

    Returns:
      The root element.

    Raises:
      DataError: It is too large, no XML, or declares entities.
    """
    try:
        from lxml import etree
    except ImportError:
        raise DataError(f"Reading articles needs the package lxml: {install('pubmed')}") from None
    if len(data) > MOST_BYTES:
        raise DataError(f"{name}: {len(data):,} bytes of XML, more than {MOST_BYTES:,}: refused.")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False, remove_comments=True,
        remove_pis=True,
    )  # fmt: skip
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DataError(
            f"{name} is not XML that can be read: {str(error).splitlines()[0] if str(error) else error}"
        ) from None
    dtd = root.getroottree().docinfo.internalDTD
    if dtd is not None and any(True for _ in dtd.iterentities()):
        raise DataError(f"{name} declares entities, which no article needs: refused.")
    return root


def read_articles(data: bytes, name: str) -> list[Article]:
    """Reads a file with one article, or a set of them.

    Args:
      data: The file; a bare `fig` element counts as an article without anything else.
      name: What it is called in messages.

    Raises:
      DataError: It cannot be read, or holds no article.
    """
    if re.match(rb"\s*<fig[\s>]", data):  # a part of an article does not declare its name spaces
        data = (
            b'<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML">%s</article>'
            % data
        )
    root = parse(data, name)
    roots = [root] if root.tag == "article" else list(root.iter("article"))
    if not roots:
        raise DataError(f"{name}: no article in it, the outer element is {root.tag!r}.")
    return [_article(element) for element in roots]


def _article(root: Any) -> Article:
    meta = root.find(".//front/article-meta")
    front = root.find(".//front")
    licence, url = _licence(root) if meta is not None else ("", "")
    title = _first(meta, "title-group/article-title")
    year = _first(meta, "pub-date/year")
    journal = _first(front, "journal-meta//journal-title")
    volume, page = _first(meta, "volume"), _first(meta, "elocation-id") or _first(meta, "fpage")
    source = journal + (f" {year}" if year else "") + (f";{volume}" if volume else "") + (f":{page}" if page else "")
    authors = (
        [_author(element) for element in meta.iterfind(".//contrib[@contrib-type='author']/name")]
        if meta is not None
        else []
    )
    names = ", ".join(authors[:6]) + (" et al." if len(authors) > 6 else "")
    parts = (names, title, source.strip())
    return Article(
        _article_id(meta),
        _by_type(meta, "doi"),
        title,
        source.strip(),
        ". ".join(part.rstrip(".") for part in parts if part),
        licence,
        url,
        tuple(_figures(root)),
    )


def _article_id(meta: Any) -> str:
    for kind in ("pmcid", "pmc", "pmcaid"):
        digits = re.search(r"\d+", _by_type(meta, kind))
        if digits:
            return f"PMC{digits.group()}"
    return ""


def _by_type(meta: Any, kind: str) -> str:
    return _first(meta, f"article-id[@pub-id-type='{kind}']")


def _first(element: Any, path: str) -> str:
    """Returns the text of the first element at a path, "" if there is none."""
    found = element.find(path) if element is not None else None
    return plain_text(found).text if found is not None else ""


def _author(name: Any) -> str:
    given = _first(name, "given-names")
    initials = "".join(part[0] for part in re.split(r"[\s.-]+", given) if part)
    return f"{_first(name, 'surname')} {initials}".strip()


def _licence(root: Any) -> tuple[str, str]:
    """Returns an article's licence and its address."""
    found = root.findall(".//front//permissions/license")
    urls = [license_.get(_HREF, "") for license_ in found]
    texts = [" ".join(plain_text(license_).text.split()) for license_ in found]
    for license_ in found:
        urls += [child.get(_HREF, "") or (child.text or "") for child in license_.iter() if child is not license_]
    names = [(name, url) for url in urls if (name := licence_name(url))]
    names += [(name, "") for text in texts if (name := licence_name(text))]
    # Where address and text contradict each other, the stricter one holds.
    return max(names, key=lambda pair: len(pair[0]), default=("", ""))


def licence_name(text: str) -> str:
    """Returns the short name of a Creative Commons licence given by address or in words; "" for anything else.

    >>> licence_name("http://creativecommons.org/licenses/by-nc/4.0/")
    'CC BY-NC'
    """
    text = text.strip().lower()[:5_000]
    if re.search(r"creativecommons\.org/(?:publicdomain/(?:zero|mark)|licenses/(?:zero|publicdomain))|\bcc0\b", text):
        return "CC0"
    match = re.search(r"creativecommons\.org/licen[cs]es/(by(?:-(?:nc|nd|sa))*)", text)
    match = match or re.search(r"\bcc[\s-]+(by(?:[\s-]+(?:nc|nd|sa))*)\b", text)
    if match:
        return "CC " + re.sub(r"\s+", "-", match[1]).upper()
    if "creative commons" not in text or "attribution" not in text:
        return ""
    words = {"NC": r"non-?\s?commercial", "ND": r"no-?\s?deriv", "SA": r"share-?\s?alike"}
    # What the licence's name says, not what it goes on to say: "… any medium, even for non-commercial use".
    named = re.search(
        r"creative commons\W+(?:[\w.]+\W+){0,6}?attribution((?:\W+(?:no\w*|share\w*|commercial|alike|deriv\w*|works))*)",
        text,
    )
    tail = named[1] if named else text
    return "-".join(["CC BY", *(short for short, word in words.items() if re.search(word, tail))])


def _figures(root: Any) -> Iterator[Figure]:
    seen: dict[str, int] = {}
    for number, fig in enumerate(root.iter("fig"), 1):
        if number > MOST_FIGURES:
            raise DataError(f"an article of more than {MOST_FIGURES} figures: refused.")
        figure_id = re.sub(r"[^\w-]", "-", fig.get("id") or f"fig{number}")[:80]
        seen[figure_id] = seen.get(figure_id, 0) + 1
        if seen[figure_id] > 1:
            figure_id = f"{figure_id}-{seen[figure_id]}"
        caption = fig.find("caption")
        title = caption.find("title") if caption is not None else None
        text = plain_text(caption, skip=title) if caption is not None else Text()
        pictures = dict.fromkeys(g.get(_HREF, "") for g in fig.iter("graphic", "inline-graphic"))
        refused = ""
        if len(text.text) > LONGEST_CAPTION:
            refused = f"a caption of {len(text.text):,} characters, more than {LONGEST_CAPTION:,}"
            text = Text(text.text[:200] + " …")
        yield Figure(
            figure_id,
            _first(fig, "label"),
            plain_text(title).text[:LONGEST_CAPTION] if title is not None else "",
            text,
            tuple(name for name in pictures if name),
            refused,
        )


def plain_text(element: Any, skip: Any = None) -> Text:
    """Returns the text below an element.

    Args:
      element: An lxml element.
      skip: A child that is left out.
    """
    pieces: list[tuple[str, bool, bool]] = []

    def walk(node: Any, bold: bool, italic: bool) -> None:
        if node.text:
            pieces.append((node.text, bold, italic))
        for child in node:
            if child is not skip and isinstance(child.tag, str) and child.tag not in _LEFT_OUT:
                block = child.tag in _BLOCKS
                if block:
                    pieces.append((" ", False, False))
                walk(child, bold or child.tag == "bold", italic or child.tag == "italic")
                if block:
                    pieces.append((" ", False, False))
            if child.tail:
                pieces.append((child.tail, bold, italic))

    walk(element, False, False)
    text, marked = "", {"bold": [], "italic": []}  # type: ignore[var-annotated]
    for piece, bold, italic in pieces:
        piece = re.sub(r"\s+", " ", piece)
        piece = piece.lstrip() if not text or text.endswith(" ") else piece
        span = (len(text), len(text) + len(piece))
        text += piece
        for name, is_marked in (("bold", bold), ("italic", italic)):
            if is_marked and piece.strip():
                marked[name].append(span)
    text = text.rstrip()
    kept = {name: tuple((start, min(stop, len(text))) for start, stop in spans) for name, spans in marked.items()}
    return Text(text, kept["bold"], kept["italic"])
