"""Answers on this machine as PubMed Central's services do: `python -m tfds_builders.pubmed_figures.demo --port=8020`.

Its articles are made up, and their figures are composed of phantoms: no network, key or data are needed to see everything from
a keyword to a trained model (docs/pubmed.md). It listens on 127.0.0.1 alone, until it is stopped.
"""

import argparse
import dataclasses
import io
import itertools
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image, ImageDraw

from jaxvqa.errors import DataError, run_command
from tfds_builders.phantom_vqa.render import render
from tfds_builders.phantom_vqa.scenes import Scene, caption, make_scene

CC_BY = "https://creativecommons.org/licenses/by/4.0/"
FIRST = 90_000_001
"""The number of the first article, far above those of real ones."""

SUBJECTS = (("brain", "MRI"), ("brain", "MRI"), ("chest", "radiograph"))
"""Body part and modality of the articles, in turn."""

WITHOUT_LICENCE = 8
"""Of so many articles one states no licence."""

PANEL, GUTTER = 192, 6
"""Sizes in a figure, pixels."""

_PAGE = 2  # keys in a page of the bucket's list: few, so that paging is seen


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is sent back.

    Attributes:
      body: The content.
      status: HTTP's number.
      headers: Besides Content-Length, which is that of the body unless it stands here.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Service:
    """E-utilities' `esearch` under /eutils and PubMed Central's bucket under /bucket, in threads of this process.

    Args:
      articles: Number -> {key in the bucket: content}.
      port: Where it listens on 127.0.0.1; 0 for any that is free.

    Attributes:
      url: Its address.

    Raises:
      OSError: The port is taken.
    """

    def __init__(self, articles: Mapping[int, Mapping[str, bytes]], port: int = 0):
        self.articles = {number: dict(files) for number, files in articles.items()}
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:  # the name that http.server calls
                answer = service.respond(self.path)
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def respond(self, address: str) -> Answer:
        """Answers a request; `address` is its path with its query."""
        parts = urlsplit(address)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self.find(unquote(parts.path), query)
        return Answer(b"There is nothing here.", 404) if body is None else Answer(body)

    def find(self, path: str, query: Mapping[str, str]) -> bytes | None:
        """Returns what is at a path; None: nothing."""
        if path == "/eutils/esearch.fcgi":
            found = self.search(query.get("term", ""))
            start = int(query.get("retstart", "0"))
            page = found[start : start + int(query.get("retmax", "20"))]
            return json.dumps({"esearchresult": {"count": str(len(found)), "idlist": [*map(str, page)]}}).encode()
        if path == "/bucket/":
            return self._list(query.get("prefix", ""), int(query.get("continuation-token", "0")))
        key = path.removeprefix("/bucket/")
        return next((files[key] for files in self.articles.values() if key in files), None)

    def search(self, term: str) -> list[int]:
        """Returns the articles that hold every word of a query; filters behind it are passed over."""
        words = term.partition(' AND "open access"')[0].strip("()").lower().split()
        texts = {
            number: " ".join(content.decode() for key, content in files.items() if key.endswith(".xml")).lower()
            for number, files in self.articles.items()
        }
        return [number for number, text in texts.items() if all(word in text for word in words)]

    def _list(self, prefix: str, start: int) -> bytes:
        keys = [key for files in self.articles.values() for key in files if key.startswith(prefix)]
        stop = start + _PAGE
        more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < len(keys) else ""
        listed = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys[start:stop])
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}{more}</ListBucketResult>'.encode()

    def close(self) -> None:
        """Stops it."""
        self._server.shutdown()
        self._server.server_close()


def article_xml(number: int, figures: Mapping[str, str], *, title: str, licence: str = CC_BY) -> bytes:
    """Returns an article in JATS.

    Args:
      number: Its number in PubMed Central.
      figures: Name of each figure, which is that of its picture -> its caption.
      title: Its title.
      licence: Address of its licence; "" for none.
    """
    figs = "".join(
        f'<fig id="{name}"><label>Figure {i}</label><caption><p>{text}</p></caption><graphic xlink:href="{name}"/></fig>'
        for i, (name, text) in enumerate(figures.items(), 1)
    )
    permissions = f'<permissions><license xlink:href="{licence}"/></permissions>' if licence else ""
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>'
        f'<article-id pub-id-type="pmc">{number}</article-id><title-group><article-title>{title}</article-title>'
        f"</title-group>{permissions}</article-meta></front><body>{figs}</body></article>"
    ).encode()


def articles(count: int) -> dict[int, dict[str, bytes]]:
    """Makes articles of one figure with two to four panels; the same `count` makes the same ones."""
    scenes = {subject: _scenes(*subject) for subject in SUBJECTS}
    made = {}
    for i in range(count):
        part, modality = SUBJECTS[i % len(SUBJECTS)]
        shown = list(itertools.islice(scenes[part, modality], 2 + i % 3))
        title = f"{part.capitalize()} {modality} of phantom case {i + 1}"
        text = f"{title}. " + " ".join(
            f"({letter}) {caption(scene)}" for letter, scene in zip("ABCD", shown, strict=False)
        )
        number = FIRST + i
        xml = article_xml(number, {"f1": text}, title=title, licence="" if (i + 1) % WITHOUT_LICENCE == 0 else CC_BY)
        made[number] = {f"PMC{number}.1/PMC{number}.1.xml": xml, f"PMC{number}.1/f1.jpg": _figure(shown)}
    return made


def _scenes(part: str, modality: str) -> Iterator[Scene]:
    scenes = map(make_scene, itertools.count())
    return (s for s in scenes if s.view.body_part == part and modality.lower() in s.modality)


def _figure(scenes: Sequence[Scene]) -> bytes:
    """Returns a figure as JPEG: panels in a row, four in a square, white gutters, and a letter on each."""
    across = 2 if len(scenes) == 4 else len(scenes)
    down, step = len(scenes) // across, PANEL + GUTTER
    figure = Image.new("RGB", (across * step - GUTTER, down * step - GUTTER), "white")
    draw = ImageDraw.Draw(figure)
    for i, (letter, scene) in enumerate(zip("ABCD", scenes, strict=False)):
        x, y = i % across * step, i // across * step
        figure.paste(Image.fromarray(render(scene).image).resize((PANEL, PANEL)), (x, y))
        draw.rectangle((x, y, x + 30, y + 30), fill="black")
        draw.text((x + 7, y + 1), letter, fill="white", font_size=24)
    file = io.BytesIO()
    figure.save(file, "JPEG", quality=90)
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
      argv: Arguments without the program's name; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tfds_builders.pubmed_figures.demo",
        description="Answers on this machine as PubMed Central's services do, with made-up articles.",
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=8020, help="where it listens on 127.0.0.1 (default %(default)s)")
    parser.add_argument("--articles", type=int, default=96, help="two of three are on brain MRI (default %(default)s)")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: _serve(args.port, args.articles))


def _serve(port: int, count: int) -> None:
    faults = [
        text
        for wrong, text in (
            (not 0 <= port < 65536, f"--port={port}: 0 to 65535, 0 for any that is free"),
            (count < 1, f"--articles={count}: at least 1"),
        )
        if wrong
    ]
    if faults:
        raise DataError("; ".join(faults))
    try:
        service = Service(articles(count), port)
    except OSError as error:
        raise DataError(f"--port={port}: {error.strerror}. Take another one, or 0 for any that is free.") from None
    print(
        f"{count} articles at {service.url}; collect from them in another terminal, and stop with Ctrl-C:\n"
        'python -m tfds_builders.pubmed_figures collect DIR --query="brain MRI" --rate=10 '
        f"--eutils={service.url}/eutils --bucket={service.url}/bucket",
        flush=True,
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        service.close()


if __name__ == "__main__":
    sys.exit(main())
