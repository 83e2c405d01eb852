"""Fetches what was found: an article's XML, and the pictures of its figures."""

import io
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from PIL import Image

from jaxvqa.data import pictures
from jaxvqa.errors import DataError
from tfds_builders.pubmed_figures.collect import read
from tfds_builders.pubmed_figures.collect.client import Client, MissingError
from tfds_builders.pubmed_figures.collect.files import write_whole
from tfds_builders.pubmed_figures.collect.find import LICENCES, Services
from tfds_builders.pubmed_figures.collect.journal import Journal

MOST_PICTURE_BYTES = 40_000_000
MOST_PIXELS = 40_000_000
LEAST_SIDE = 32
"""Pixels; what is smaller is a formula or an icon."""

_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif")
"""Of several files of one picture, the first of these is taken."""

_FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "GIF": ".gif"}
_MOST_LISTINGS = 20


def fetch(
    folder: Path,
    journal: Journal,
    client: Client,
    services: Services,
    licences: Collection[str] = LICENCES,
    most_figures: int | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Fetches every article and figure that was found and is not at hand.

    What cannot be used is entered as refused, with the reason. What a service fails to give for the moment stays found.

    Args:
      folder: `articles/` and `images/` are made in it.
      journal: What was found.
      client: Asks.
      services: Where.
      licences: Of others nothing is kept.
      most_figures: No article is begun once this many figures are at hand.
      progress: Called with each article's or figure's name.

    Raises:
      ServiceError: A service stays busy.
    """

    def enough() -> bool:
        return most_figures is not None and len(list(journal.items("fetched", "split", figures=True))) >= most_figures

    for article in journal.items("found", figures=False):
        if enough():
            return
        progress(article["id"])
        try:
            _fetch_article(folder, journal, client, services, article["id"], licences)
        except DataError as error:
            journal.put(article["id"], "refused", str(error))
    for figure in journal.items("found", figures=True):
        if enough():
            return
        progress(figure["id"])
        _fetch_figure(folder, journal, client, services, figure, {})


def _fetch_article(
    folder: Path, journal: Journal, client: Client, services: Services, name: str, licences: Collection[str]
) -> None:
    keys = _keys(client, services, name)
    path = folder / "articles" / f"{name}.xml"
    if path.exists():
        data = path.read_bytes()
    else:
        key = next((key for key in keys if key.endswith((".xml", ".nxml")) and _stem(key).startswith(name)), None)
        if key is None:
            raise MissingError("the bucket holds no XML of it: not in the open-access part")
        data = client.get(f"{services.bucket}/{quote(key)}", most_bytes=read.MOST_BYTES)
    (article,) = read.read_articles(data, name)[:1]
    if article.licence not in licences:
        raise DataError(f"its licence is {article.licence}" if article.licence else "it states no usable licence")
    write_whole(path, data)
    for figure in article.figures:
        known = journal.get(f"{name}/{figure.figure_id}")
        if known is None:
            journal.put(
                f"{name}/{figure.figure_id}",
                "refused" if figure.refused else "found",
                figure.refused,
                label=figure.label,
                title=figure.title,
                caption=figure.caption.text,
                bold=figure.caption.bold,
                graphics=figure.graphics,
                licence=article.licence,
                licence_url=article.licence_url,
                attribution=article.attribution,
                source=article.source,
                doi=article.doi,
            )
    for item in journal.items("found", figures=True):
        if item["id"].startswith(f"{name}/"):
            _fetch_figure(folder, journal, client, services, item, {_stem(key): key for key in reversed(keys)})
    # Last: until then a killed run takes the article up again.
    journal.put(name, "fetched", licence=article.licence, attribution=article.attribution, figures=len(article.figures))


def _keys(client: Client, services: Services, name: str) -> list[str]:
    """Lists the files of an article's newest version; pictures in the order in which their forms are preferred."""
    keys: list[str] = []
    token = ""
    for _ in range(_MOST_LISTINGS):
        params = {"list-type": "2", "prefix": f"{name}."} | ({"continuation-token": token} if token else {})
        root = read.parse(client.get(f"{services.bucket}/", params), f"the bucket's list of {name}")
        keys += [element.text or "" for element in root.iter("{*}Key")]
        token = next((element.text or "" for element in root.iter("{*}NextContinuationToken")), "")
        if not token:
            break
    versions = {key: int(match[1]) for key in keys if (match := re.match(rf"{name}\.(\d{{1,6}})/[^/]+$", key))}
    newest = max(versions.values(), default=0)
    return sorted((key for key, version in versions.items() if version == newest), key=_preference)


def _preference(key: str) -> tuple[int, str]:
    ending = PurePosixPath(key).suffix.lower()
    return (_ENDINGS.index(ending) if ending in _ENDINGS else len(_ENDINGS), key)


def _stem(key: str) -> str:
    """The name of a file without folder and known ending: how articles name their pictures."""
    name = key.rpartition("/")[2]
    ending = PurePosixPath(name).suffix.lower()
    return name[: -len(ending)] if ending in (*_ENDINGS, ".xml", ".nxml") else name


def _fetch_figure(
    folder: Path, journal: Journal, client: Client, services: Services, figure: dict[str, Any], keys: Mapping[str, str]
) -> None:
    """Fetches a figure's picture, or refuses the figure."""
    name = figure["id"]
    try:
        if not figure.get("caption") and not figure.get("title"):
            raise DataError("it has no caption")
        url = figure.get("picture_url", "")
        if not url:
            stems = [_stem(str(graphic)) for graphic in figure.get("graphics", ())]
            key = next(
                (keys[stem] for stem in stems if stem in keys and _preference(keys[stem])[0] < len(_ENDINGS)), None
            )
            if key is None:
                raise MissingError(f"its picture is not there: {', '.join(stems)[:200] or 'none is named'}")
            url = f"{services.bucket}/{quote(key)}"
        data = client.get(url, most_bytes=MOST_PICTURE_BYTES)
        kind, width, height = checked_picture(data)
    except DataError as error:
        journal.put(name, "refused", str(error))
        return
    file = f"images/{name.replace('/', '_')}{_FORMATS[kind]}"
    write_whole(folder / file, data)
    journal.put(name, "fetched", file=file, format=kind, width=width, height=height, picture_url=url)


def checked_picture(data: bytes) -> tuple[str, int, int]:
    """Returns format, width and height of a picture that can be decoded, turned as its EXIF orientation says.

    Raises:
      DataError: It is none, damaged, of another format, too large or too small.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            kind, (width, height) = opened.format or "", opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"its picture is too large: {error}") from None
    except Exception as error:  # whatever Pillow's readers raise
        raise DataError(f"its picture cannot be read: {type(error).__name__}") from None
    if kind not in _FORMATS:
        raise DataError(f"its picture is a {kind} file, not one of {', '.join(sorted(_FORMATS))}")
    if width * height > MOST_PIXELS or min(width, height) < LEAST_SIDE:
        raise DataError(
            f"its picture has {width} x {height} pixels: too {'large' if width * height > MOST_PIXELS else 'small'}"
        )
    try:
        facts = pictures.inspect(data)
    except DataError as error:
        raise DataError(f"its picture {error}") from None
    return kind, facts.width, facts.height
