"""A local server that plays E-utilities, PubMed Central's bucket and Open-i, faults included."""

import collections
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image, ImageDraw

BY, NC = "https://creativecommons.org/licenses/by/4.0/", "https://creativecommons.org/licenses/by-nc/4.0/"


def picture(form="JPEG", size=(200, 160)):
    """Two noisy panels with a white gutter and the letters A and B."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(70, 180, (5, 12, 3)).astype(np.uint8)).resize((2 * size[0] + 6, size[1]))
    draw = ImageDraw.Draw(image)
    draw.rectangle((size[0], 0, size[0] + 5, size[1]), fill="white")
    for x, letter in ((0, "A"), (size[0] + 6, "B")):
        draw.rectangle((x, 0, x + 30, 30), fill="black")
        draw.text((x + 6, 1), letter, fill="white", font_size=24)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def article(number, licence=BY, figures=("f1",), caption="(A) Axial CT. (B) Coronal MRI."):
    """An article's XML."""
    figs = "".join(
        f'<fig id="{name}"><label>Figure 1</label><caption><p>{caption}</p></caption><graphic xlink:href="{name}"/></fig>'
        for name in figures
    )
    permissions = f'<permissions><license xlink:href="{licence}"/></permissions>' if licence else ""
    return (
        '<article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>'
        f'<article-id pub-id-type="pmc">{number}</article-id><title-group><article-title>On {number}</article-title>'
        f"</title-group>{permissions}</article-meta></front><body>{figs}</body></article>"
    ).encode()


class Service:
    """The server.

    Attributes:
      articles: Number -> {file name: bytes}, in the order in which the search gives them.
      faults: Path, or start of one -> answers given before the right one: (status, headers, body), or "cut".
      asked: Every path that was asked for, with its query, in order.
    """

    def __init__(self):
        self.articles, self.openi = {}, []
        self.faults = collections.defaultdict(list)
        self.asked = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):  # the name that http.server calls
                service.asked.append(unquote(self.path))
                parts = urlsplit(self.path)
                path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
                fault = next((f for start, f in service.faults.items() if f and path.startswith(start)), None)
                status, headers, body = 200, {}, b""
                cut = False
                if fault:
                    status, headers, body = (200, {}, service.answer(path, query)) if fault[0] == "cut" else fault[0]
                    cut = fault.pop(0) == "cut"
                else:
                    found = service.answer(path, query)
                    status, body = (200, found) if found is not None else (404, b"no")
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = cut

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, number, files):
        """Adds an article and its pictures."""
        self.articles[number] = files

    def answer(self, path, query):
        """Returns what a sound service says; None: it is not there."""
        if path == "/eutils/esearch.fcgi":
            numbers = [str(number) for number in self.articles]
            start, most = int(query["retstart"]), int(query["retmax"])
            found = {"count": str(len(numbers)), "idlist": numbers[start : start + most]}
            return json.dumps({"esearchresult": found}).encode()
        if path == "/bucket/":
            return self.listing(query)
        if path.startswith("/bucket/"):
            folder, _, name = path.removeprefix("/bucket/").partition("/")
            number = folder.removeprefix("PMC").partition(".")[0]
            return self.articles.get(int(number), {}).get(f"{folder}/{name}")
        if path == "/api/search":
            first, last = int(query["m"]), int(query["n"])
            return json.dumps({"total": len(self.openi), "list": self.openi[first - 1 : last]}).encode()
        if path.startswith("/imgs/"):
            return picture("PNG")
        return None

    def listing(self, query):
        """A list of the bucket, two keys a page."""
        keys = [key for files in self.articles.values() for key in files if key.startswith(query["prefix"])]
        at = int(query.get("continuation-token", "0"))
        more = f"<NextContinuationToken>{at + 2}</NextContinuationToken>" if at + 2 < len(keys) else ""
        listed = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys[at : at + 2])
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}{more}</ListBucketResult>'.encode()

    def close(self):
        """Stops the server."""
        self.server.shutdown()
        self.server.server_close()
