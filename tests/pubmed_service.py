"""The demo's local service, with faults, a record of what was asked, and Open-i beside it."""

import collections
import io
import json
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw

from tfds_builders.pubmed_figures import demo
from tfds_builders.pubmed_figures.demo import CC_BY, Answer, article_xml

NC = "https://creativecommons.org/licenses/by-nc/4.0/"


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


def article(number, licence=CC_BY, figures=("f1",), caption="(A) Axial CT. (B) Coronal MRI."):
    """An article's XML."""
    return article_xml(number, dict.fromkeys(figures, caption), title=f"On {number}", licence=licence)


class Service(demo.Service):
    """The service, to be filled and disturbed.

    Attributes:
      articles: Number -> {key: bytes}, in the order in which the search gives them.
      openi: Open-i's records.
      faults: Path, or start of one -> answers given before the right one: (status, headers, body), or "cut".
      asked: Every path that was asked for, with its query, in order.
    """

    def __init__(self):
        self.openi, self.asked = [], []
        self.faults = collections.defaultdict(list)
        super().__init__({})

    def add(self, number, files):
        """Adds an article and its pictures."""
        self.articles[number] = files

    def search(self, term):
        """Finds all articles, those too that a search would leave out: what follows has to refuse them."""
        return list(self.articles)

    def respond(self, address):
        """Answers with the next fault of the path, if there is one."""
        asked = unquote(address)
        self.asked.append(asked)
        waiting = next((f for start, f in self.faults.items() if f and asked.startswith(start)), [])
        fault = waiting.pop(0) if waiting else None
        if fault not in (None, "cut"):
            status, headers, body = fault
            return Answer(body, status, headers)
        answer = super().respond(address)
        if fault is None:
            return answer
        whole = {"Content-Length": str(len(answer.body)), "Connection": "close"}
        return Answer(answer.body[: len(answer.body) // 2], headers=whole)

    def find(self, path, query):
        """Returns what is at a path, Open-i's too."""
        if path == "/api/search":
            first, last = int(query["m"]), int(query["n"])
            return json.dumps({"total": len(self.openi), "list": self.openi[first - 1 : last]}).encode()
        return picture("PNG") if path.startswith("/imgs/") else super().find(path, query)
