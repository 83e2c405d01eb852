"""Explanations as files: an image for each, and a page that shows them all."""

import io
from collections.abc import Sequence
from pathlib import Path

import jinja2

from jaxvqa.errors import os_errors
from jaxvqa.explain import overlay
from jaxvqa.explain.explanation import Explanation
from jaxvqa.logs import write_whole


def write(explanations: Sequence[Explanation], output: Path) -> list[Path]:
    """Writes ID.png for each explanation and index.html beside them; returns the paths, index.html last.

    Raises:
      StorageError: the folder cannot be written.
    """
    paths = []
    with os_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for explanation in explanations:
            file = io.BytesIO()
            overlay.figure(explanation).savefig(file, format="png", metadata={"Title": explanation.question})
            paths.append(output / f"{explanation.id}.png")
            paths[-1].write_bytes(file.getvalue())
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
        )
        page = environment.get_template("index.html").render(
            items=[(e, overlay.most_common(e.annotators)) for e in explanations]
        )
        write_whole(output / "index.html", page)
    return [*paths, output / "index.html"]
