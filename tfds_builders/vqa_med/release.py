"""The files of the ImageCLEF VQA-Med releases of 2019, 2020 and 2021, and what their rows mean."""

import dataclasses
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvqa.data import med_text
from jaxvqa.errors import DataError
from tfds_builders import checks
from tfds_builders.manual import PICTURE_ENDINGS, ManualFile, any_case, by_name

CATEGORIES = ("modality", "plane", "organ", "abnormality")

_HOMES = {
    2019: "https://zenodo.org/records/10499039",
    2020: "https://github.com/abachaa/VQA-Med-2020",
    2021: "https://github.com/abachaa/VQA-Med-2021",
}
_REGISTRATION = "from https://www.aicrowd.com/challenges/imageclef-2020-vqa-med-vqa after registration"
_QUESTION_ID_STEP = 100_000  # more than a year has questions
_NAME = re.compile(r"synpic(0|[1-9][0-9]{0,17})")
_MOST_SHOWN = 5

Record = dict[str, Any]


def _file(year: int, *places: str, note: str = "") -> ManualFile:
    """A text file at its places in the release, or anywhere under `manual_dir` by its name."""
    names = dict.fromkeys(Path(place).name for place in places)
    return ManualFile((*places, *(f"**/{name}" for name in names)), _HOMES[year], note)


@dataclasses.dataclass(frozen=True)
class Part:
    """One split of one year.

    Attributes:
      year: 2019, 2020 or 2021.
      split: train, val or test.
      rows: The file with the questions.
      columns: Its columns, `jaxvqa.data.med_text`.
      images: Folder of the pictures in the release; "" where it varies. They are found anywhere under `manual_dir`.
      references: The file with the answers, where it is another one.
      categories: The files of each category's rows, where the rows do not tell it and it is not always abnormality.
    """

    year: int
    split: str
    rows: ManualFile
    columns: Sequence[str]
    images: str = ""
    references: ManualFile | None = None
    categories: Mapping[str, ManualFile] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as "train_2019"."""
        return f"{self.split}_{self.year}"

    @property
    def files(self) -> list[ManualFile]:
        """All text files."""
        return [self.rows, *([self.references] if self.references else []), *self.categories.values()]


def _part_2019(split: str, folder: str, short: str, images: str) -> Part:
    names = {category: f"C{i}_{category.capitalize()}_{short}.txt" for i, category in enumerate(CATEGORIES, start=1)}
    return Part(
        2019,
        split,
        _file(2019, f"{folder}/All_QA_Pairs_{short}.txt"),
        med_text.PAIRS,
        f"{folder}/{images}",
        categories={c: _file(2019, f"{folder}/QAPairsByCategory/{name}") for c, name in names.items()},
    )


_SETS_2020 = "VQA-Med-2020-Task1-VQAnswering-TrainVal-Sets/VQAMed2020-VQAnswering-"
_TEST_2020 = "VQAMed2020-Task1-VQAnswering-Test"
_VAL_2021, _TEST_2021 = "VQA-Med-2021-Tasks-1-2-NewValidationSets", "Task1-VQA-2021-TestSet-w-GroundTruth"

PARTS = {
    part.name: part
    for part in (
        _part_2019("train", "ImageClef-2019-VQA-Med-Training", "train", "Train_images"),
        _part_2019("val", "ImageClef-2019-VQA-Med-Validation", "val", "Val_images"),
        Part(
            2019,
            "test",
            _file(2019, "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt"),
            med_text.CATEGORISED,
            "VQAMed2019Test/VQAMed2019_Test_Images",
        ),
        Part(
            2020,
            "train",
            _file(2020, f"{_SETS_2020}TrainingSet/VQAnswering_2020_Train_QA_pairs.txt", note=_REGISTRATION),
            med_text.PAIRS,
            f"{_SETS_2020}TrainingSet/VQAnswering_2020_Train_images",
        ),
        Part(
            2020,
            "val",
            _file(2020, f"{_SETS_2020}ValidationSet/VQAnswering_2020_Val_QA_Pairs.txt", note=_REGISTRATION),
            med_text.PAIRS,
            f"{_SETS_2020}ValidationSet/VQAnswering_2020_Val_images",
        ),
        Part(
            2020,
            "test",
            _file(2020, f"{_TEST_2020}-Questions.txt", "VQAnswering_2020_Test_Questions.txt"),
            med_text.QUESTIONS,
            references=_file(2020, f"{_TEST_2020}-ReferenceAnswers.txt"),
        ),
        Part(
            2021,
            "val",
            _file(2021, f"{_VAL_2021}/VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt"),
            med_text.PAIRS,
            f"{_VAL_2021}/ImageCLEF-2021-VQA-Med-New-Validation-Images",
        ),
        Part(
            2021,
            "test",
            _file(2021, f"{_TEST_2021}/Task1-VQA-2021-TestSet-Questions.txt"),
            med_text.QUESTIONS,
            references=_file(2021, f"{_TEST_2021}/Task1-VQA-2021-TestSet-ReferenceAnswers.txt"),
        ),
    )
}
"""By name, the years' splits in order."""

TRAIN_2021 = ("train_2020", "val_2020")
"""The training set of 2021: that of 2020 with its validation set."""

DISEASES = ManualFile(("disease2id.json", "**/disease2id.json"), "the authors' data archive")
"""The list of classes of SYSU-HCP's released models; without it, the list is made anew by their rule."""

SYSU = {
    "train": TRAIN_2021,
    "extra": ("train_2019", "val_2019", "test_2019"),
    "val": ("val_2021",),
    "test": ("test_2021",),
    "test_2020": ("test_2020",),
}
"""SYSU-HCP's splits -> the parts that they are made of (docs/originals/sysu_hcp.md, section 7)."""

SYSU_TRAINED = ("train", "extra")
"""Splits that keep only questions about an abnormality of the list."""

SYSU_OPTIONAL = ("extra", "test_2020")
"""Splits that are built of those parts that are there."""


def read_part(part: Part, manual_dir: Path, faults: list[str]) -> list[Record]:
    """Reads the questions of a part.

    Args:
      part: Which.
      manual_dir: Folder of the files, all of which are there.
      faults: What is wrong is added here, so that one message can name all of it.

    Returns:
      Question records without `question_id` and `label`; beside them `raw_answer`, the first answer as it stands in the file.
    """
    try:
        rows = _read(part.rows, part.columns, manual_dir)
        answers = _references(part, manual_dir, rows, faults)
        categories = {
            (row["image"], row["question"], row["answer"]): category
            for category, file in part.categories.items()
            for row in _read(file, med_text.PAIRS, manual_dir)
        }
    except DataError as error:
        faults.append(str(error))
        return []
    place = f"{part.rows.find(manual_dir)}"
    wrong = [row["image"] for row in rows if not _NAME.fullmatch(row["image"])]
    if wrong:
        faults.append(f"{place}: {len(wrong)} image names are not synpicNUMBER, {_such_as(wrong)}")
        return []
    if categories:
        unknown = [row["image"] for row in rows if (row["image"], row["question"], row["answer"]) not in categories]
        if unknown:
            faults.append(f"{place}: {len(unknown)} rows are in no file of QAPairsByCategory, {_such_as(unknown)}")
    other = sorted({row["category"] for row in rows if row.get("category", CATEGORIES[0]) not in CATEGORIES})
    if other:
        faults.append(f"{place}: categories {other}, expected {', '.join(CATEGORIES)}")
    records = []
    for row, given in zip(rows, answers, strict=True):
        by_file = categories.get((row["image"], row["question"], row.get("answer", "")), "abnormality")
        records.append(_record(part, row, given, row.get("category", by_file)))
    return records


def _record(part: Part, row: med_text.Row, given: Sequence[str], category: str) -> Record:
    answers = [med_text.tidy(answer) for answer in given]
    first = answers[0] if answers else ""
    closed = first.lower() in med_text.NO_DISEASES
    return {
        "image_id": int(row["image"].removeprefix("synpic")),
        "image_name": row["image"],
        "question": med_text.tidy(row["question"]),
        "answers": answers,
        "multiple_choice_answer": first,
        "question_type": category,
        "answer_type": "yes/no" if closed else "other",
        "open_closed": "closed" if closed else "open",
        "year": part.year,
        "member": part.name,
        "raw_answer": given[0] if given else "",
    }


def _read(file: ManualFile, columns: Sequence[str], manual_dir: Path) -> list[med_text.Row]:
    path = file.require(manual_dir)
    try:
        rows = med_text.parse_rows(checks.read_bytes(path).decode("utf-8-sig"), columns, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); download it again: {file.url}") from error
    if not rows:
        raise DataError(f"{path} is empty: {file.url}")
    return rows


def _references(part: Part, manual_dir: Path, rows: Sequence[med_text.Row], faults: list[str]) -> list[tuple[str, ...]]:
    """Returns the answers of each row."""
    if part.references is None:
        split = med_text.alternatives if part.columns == med_text.CATEGORISED else lambda answer: (answer,)
        return [split(row["answer"]) for row in rows]
    references = _read(part.references, med_text.REFERENCES, manual_dir)
    faults += checks.twice((row["image"] for row in references), "images", f"{part.references.find(manual_dir)}")
    given = {row["image"]: med_text.reference_answers(row) for row in references}
    asked = {row["image"] for row in rows}
    for images, what in (
        (asked - given.keys(), "without a reference answer"),
        (given.keys() - asked, "not asked about"),
    ):
        if images:
            faults.append(
                f"{part.references.find(manual_dir)}: {len(images)} images {what}, {_such_as(sorted(images))}"
            )
    return [given.get(row["image"], ()) for row in rows]


def number_questions(parts: Mapping[str, Sequence[Record]]) -> None:
    """Gives whole parts' records their `question_id`: the year, then a running number over its parts in `PARTS`'s order.

    A question has the same id in every config whose files are all there.
    """
    before = dict.fromkeys((part.year for part in PARTS.values()), 0)
    for name, part in PARTS.items():
        for number, record in enumerate(parts.get(name, ()), start=before[part.year]):
            record["question_id"] = part.year * _QUESTION_ID_STEP + number
        before[part.year] += len(parts.get(name, ()))


def captions(records: Iterable[Record]) -> list[Record]:
    """Joins the answers about each image to a caption, in the order of `CATEGORIES`; yes and no say nothing without a question.

    Returns:
      In order of the images' first questions, whose `question_id` they have; none for images without any other answer.
    """
    by_image: dict[str, list[Record]] = {}
    for record in records:
        by_image.setdefault(record["image_name"], []).append(record)
    made = []
    for asked in by_image.values():
        told = [r for r in asked if r["multiple_choice_answer"] and r["answer_type"] != "yes/no"]
        told.sort(key=lambda record: CATEGORIES.index(record["question_type"]))
        if told:
            kept = {name: asked[0][name] for name in ("question_id", "image_id", "image_name", "year", "member")}
            made.append(kept | {"caption": ", ".join(record["multiple_choice_answer"] for record in told)})
    return made


# The pictures.


def find_images(names: Iterable[str], parts: Iterable[Part], manual_dir: Path) -> dict[str, Path]:
    """Returns the file of each image that is there, looked for in the release's folders first, then anywhere."""
    wanted = set(names)
    found: dict[str, Path] = {}
    for part in parts:
        if part.images:
            found |= _pictures(_any_ending(manual_dir / part.images, "*"), wanted)
    if found.keys() != wanted:
        # Archives unpack in many ways, and names are unique over all years.
        found = _pictures(reversed(_any_ending(manual_dir, "**/*")), wanted) | found
    return found


def _any_ending(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for ending in PICTURE_ENDINGS for path in folder.glob(any_case(pattern + ending)))


def _pictures(paths: Iterable[Path], wanted: Container[str]) -> dict[str, Path]:
    return {name: path for key, path in by_name(paths).items() if (name := key.removesuffix(".jpg")) in wanted}


def missing_images(names: Iterable[str], found: Mapping[str, Path], part: Part) -> list[str]:
    """Returns one fault for the images of a part that are not there, or none."""
    absent = sorted(set(names) - found.keys())
    place = f"expected {part.images}/NAME.jpg" if part.images else "expected NAME.jpg anywhere"
    return [f"{part.name}: {len(absent)} images are missing, {_such_as(absent)}; {place}"] if absent else []


def _such_as(names: Sequence[str]) -> str:
    return f"such as {', '.join(names[:_MOST_SHOWN])}"
