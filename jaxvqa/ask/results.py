"""What was answered, as lines for people and as files."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxvqa.ask.model import Answer
from jaxvqa.errors import ConfigError, choose, os_errors
from jaxvqa.logs import write_whole


def text_of(answer: Answer) -> str:
    """One answer with its others, a line each, best first, what stood before it, and the time."""
    lines = [f"{100 * probability:6.1f} %  {text}" for text, probability in answer.answers] or ["no answer"]
    lines += [f"  after  {' '.join(filter(None, example))}" for example in answer.examples]
    return "\n".join([*lines, f"{answer.seconds:.2f} s"])


def line_of(answer: Answer) -> str:
    """One of many answers, on a line."""
    return "\t".join(
        [answer.image, answer.question, answer.answer or "(no answer)", f"{100 * answer.probability:.1f} %"]
    )


def _csv(answers: Sequence[Answer]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "question", "answer", "probability"])
    writer.writerows([a.image, a.question, a.answer, f"{a.probability:.6f}"] for a in answers)
    return file.getvalue()


def _jsonl(answers: Sequence[Answer]) -> str:
    rows = (
        {
            "image": a.image,
            "question": a.question,
            "answer": a.answer,
            "probability": a.probability,
            "answers": a.answers,
            **({"examples": a.examples} if a.examples else {}),
        }
        for a in answers
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FORMS: dict[str, Callable[[Sequence[Answer]], str]] = {".csv": _csv, ".jsonl": _jsonl}
"""Ending of a result file's name -> its content."""


def check_output(path: Path) -> None:
    """Checks, before anything is asked, that results can be written to a file.

    Raises:
      ConfigError: its name has another ending than those of `FORMS`.
      UserError, StorageError: its folder cannot be made.
    """
    if path.suffix.lower() not in FORMS:
        raise ConfigError(f"--output={path}: the ending is {path.suffix!r}{choose(path.suffix, FORMS)}")
    with os_errors(path.parent, "a folder to write to"):
        path.parent.mkdir(parents=True, exist_ok=True)


def write(path: Path, answers: Sequence[Answer]) -> None:
    """Writes a result file, in the order of the questions, whole or not at all; errors as of `check_output`."""
    check_output(path)
    with os_errors(path):
        write_whole(path, FORMS[path.suffix.lower()](answers))
