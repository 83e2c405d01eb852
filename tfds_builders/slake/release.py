"""The files of SLAKE: a list of questions a split, and a folder an image."""

from typing import Any

from jaxvqa.inputs import read_json
from tfds_builders import checks
from tfds_builders.question_tables import Release
from tfds_builders.table.release import record

Record = dict[str, Any]

LANGUAGES = ("en", "zh")

FIELDS = {
    **dict.fromkeys(("img_name", "question"), checks.TEXT),
    "answer": checks.TEXT_OR_NUMBER,
    "q_lang": checks.one_of(*LANGUAGES),
    **dict.fromkeys(("answer_type", "content_type"), checks.ANY_TEXT.or_else("")),
}
"""What is read of an entry."""


def _record(number: int, split: str, entry: Record) -> Record:
    """A question with its `language`, en or zh; `answer_type` says whether it is closed."""
    texts = (entry["img_name"], entry["question"], [entry["answer"].strip()])
    made = record(number, *texts, kind=entry["content_type"], split=split)
    closed = entry["answer_type"].strip().lower()
    return made | {"open_closed": closed or made["open_closed"], "language": entry["q_lang"]}


RELEASE = Release(
    home="https://www.med-vqa.com/slake",
    lists={"train": ("train.json",), "val": ("validate.json", "validation.json"), "test": ("test.json",)},
    images="imgs",
    folders=("", "Slake1.0/", "Slake/"),
    entries=lambda path: read_json(path, "a list of SLAKE's questions", [Any]),
    fields=FIELDS,
    record=_record,
)
