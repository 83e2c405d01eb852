"""A user's own table of questions about images: read, checked and divided into splits; README.md beside it says the columns."""

import collections
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvqa.data import tables
from jaxvqa.data.answers import normalise_answer
from jaxvqa.errors import DataError
from jaxvqa.inputs import expand_home
from jaxvqa.metrics.question_only import question_only_answers
from tfds_builders import checks
from tfds_builders.manual import ManualFile

Record = dict[str, Any]

FORM: Mapping[str, Any] = {
    **dict.fromkeys(("image", "question", "type", "split"), str),
    **{"answer": (str, int), "answers": [(str, int)], "patient": (str, int)},
}
"""The columns that are read, and what each is in JSON and Parquet; in CSV several answers are divided by `|`."""

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
"""The shares of groups where no column says the split: of patients, or where there are none of images."""

CLOSED = ("yes", "no")

ADVICE = "Mend the table, then build again."


def table_file() -> ManualFile:
    """The table."""
    names = tuple(f"table{ending}" for ending in tables.ENDINGS)
    return ManualFile(names, "your own", "columns image, question, answer; see tfds_builders/table/README.md")


def read(path: Path) -> list[Record]:
    """The questions of a table in order, each with its split.

    Raises:
      DataError: lists all rows that are not as they should be; or there are too few images or patients to divide.
    """
    records: list[Record] = []
    faults: list[str] = []
    for where, row in tables.read_rows(path, FORM, ("image", "question")):
        if isinstance(row, DataError):
            faults.append(str(row))
            continue
        answers = _answers(row)
        wrong = [name for name in ("image", "question") if not str(row.get(name) or "").strip()]
        wrong += [] if answers else ["answer"]
        faults += [f"{where}: no {' and no '.join(wrong)}"] if wrong else []
        if not wrong:
            kind, split, patient = (_text(row, name) for name in ("type", "split", "patient"))
            texts = (row["image"].strip(), row["question"].strip(), answers)
            records.append(record(len(records), *texts, kind=kind, split=split, patient=patient))
    if not records and not faults:
        faults.append(f"{path} has no row")
    with_split = [bool(one["split"]) for one in records]
    if any(with_split) and not all(with_split):
        faults.append(f"{path}: {with_split.count(False)} rows without a split, {with_split.count(True)} with one")
    if faults:
        raise checks.error_of(f"{path} cannot be built", faults, ADVICE)
    of_group = {} if any(with_split) else divided([_group(one) for one in records], path)
    for one in records:
        one["split"] = one["split"] or of_group[_group(one)]
    return joined(records)


def joined(records: list[Record]) -> list[Record]:
    """The records with `image_id`: images are numbered in order of first appearance."""
    ids = {name: number for number, name in enumerate(dict.fromkeys(one["image_name"] for one in records))}
    for one in records:
        one["image_id"] = ids[one["image_name"]]
    return records


def _text(row: Mapping[str, Any], column: str) -> str:
    return "" if row.get(column) is None else str(row[column]).strip()


def _answers(row: Mapping[str, Any]) -> list[str]:
    """The answers of a row, the most frequent first among equals in order."""
    given = row.get("answers") or row.get("answer")
    if isinstance(given, str):
        given = given.split("|")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return [text for text in (str(one).strip() for one in listed) if text]


def record(
    number: int,
    image: str,
    question: str,
    answers: Sequence[str],
    *,
    kind: str = "",
    split: str = "",
    patient: str = "",
) -> Record:
    """A question as it is stored, with its split, without the image's id.

    Args:
      number: its id.
      image: the image's name.
      question: the text.
      answers: the annotators' answers, one at least.
      kind: the kind of question.
      split: the split; empty where it is not known yet.
      patient: whose image it is; empty for nobody's.
    """
    best = collections.Counter(answers).most_common(1)[0][0]
    closed = normalise_answer(best) in CLOSED
    return {
        "question_id": number,
        "image_name": image,
        "question": question,
        "answers": list(answers),
        "multiple_choice_answer": best,
        "question_type": kind,
        "answer_type": "yes/no" if closed else "number" if normalise_answer(best).isdecimal() else "other",
        "open_closed": "closed" if closed else "open",
        "patient": patient,
        "split": split,
    }


def _group(record: Record) -> str:
    """What is in one split as a whole: a patient, or an image of nobody's."""
    return f"patient {record['patient']}" if record["patient"] else f"image {record['image_name']}"


def divided(groups: Sequence[str], path: Path) -> dict[str, str]:
    """The split of each group: by its name alone in a fixed order, in shares of `SPLITS`, of which each has one at least.

    Raises:
      DataError: there are fewer groups than splits.
    """
    order = sorted(set(groups), key=lambda name: (zlib.crc32(name.encode()), name))
    if len(order) < len(SPLITS):
        raise DataError(
            f"{path} has questions about {len(order)} images or patients, too few for the splits {', '.join(SPLITS)}. "
            "Name the split of each row in a column split."
        )
    small = {name: max(1, round(share * len(order))) for name, share in SPLITS.items() if name != "train"}
    names = [name for name, count in small.items() for _ in range(count)]
    return dict(zip(order, [*names, *["train"] * (len(order) - len(names))], strict=True))


def image_path(folder: Path, name: str) -> Path:
    """Where an image is: at its own path, or below the table's folder."""
    return folder / expand_home(name)


# --- what is worth knowing before training ----------------------------------------------------------------------------------


def leaks(records: Sequence[Record], digests: Mapping[str, bytes]) -> Iterator[str]:
    """What is in several splits: patients, images, and equal files of different names, with how many and one of them.

    Args:
      records: the questions.
      digests: name of an image -> what is the same for equal files alone.
    """
    names: dict[bytes, set[str]] = collections.defaultdict(set)
    for name, digest_of in digests.items():
        names[digest_of].add(name)
    copied = {name for of in names.values() if len(of) > 1 for name in of}
    keys: dict[str, Callable[[Record], Any]] = {
        "patients": lambda record: record["patient"],
        "images": lambda record: record["image_name"],
        "equal files of different names": lambda record: (
            digests[name] if (name := record["image_name"]) in copied else ""
        ),
    }
    for what, key in keys.items():
        seen: dict[Any, dict[str, Record]] = collections.defaultdict(dict)
        for record in records:
            if value := key(record):
                seen[value].setdefault(record["split"], record)
        if found := [of for of in seen.values() if len(of) > 1]:
            name = "patient" if what == "patients" else "image_name"
            examples = ", ".join(f"{record[name]} in {split}" for split, record in found[0].items())
            yield f"{len(found)} {what} are in several splits, such as {examples}"


def summary(records: Sequence[Record]) -> Iterator[str]:
    """Counts of each split; and what answers reach on each but train that need no image, in per cent."""
    by_split = collections.defaultdict(list)
    for record in records:
        by_split[record["split"]].append(record)
    for split, of in by_split.items():
        images = len({record["image_name"] for record in of})
        patients = len({record["patient"] for record in of if record["patient"]})
        answers = len({normalise_answer(record["multiple_choice_answer"]) for record in of})
        yield f"{split}: {len(of)} questions, {images} images, {f'{patients} patients, ' if patients else ''}{answers} answers"
    train = by_split.get("train")
    if not train:
        yield "no split is called train: name the one to train on with config.data.train_split"
        return
    known = [normalise_answer(record["multiple_choice_answer"]) for record in train]
    majority = collections.Counter(known).most_common(1)[0][0]
    for split, of in by_split.items():
        if split != "train":
            right = [{normalise_answer(answer) for answer in record["answers"]} for record in of]
            guesses = question_only_answers(
                [record["question"] for record in train], known, [record["question"] for record in of]
            )
            scores = {
                "the answers of train allow": [not answers.isdisjoint(known) for answers in right],
                f"always {majority!r}": [majority in answers for answers in right],
                "the question's words alone": [one in answers for one, answers in zip(guesses, right, strict=True)],
            }
            rows = (f"{what} {100 * sum(of_each) / len(of_each):.1f} %" for what, of_each in scores.items())
            yield f"{split}: {', '.join(rows)}"


def digest(content: bytes) -> bytes:
    """What is the same for equal files alone."""
    return hashlib.sha256(content).digest()
