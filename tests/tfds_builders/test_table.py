"""A user's own table: what is read, how it is divided, what is said of it, and that every system's config reads it."""

import io
import itertools
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from jaxvqa import configs
from jaxvqa.data import pictures
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from jaxvqa.tasks import make_task
from tests.data_set_files import jpeg, put
from tests.picture_files import RAMP, encoded
from tfds_builders.build import build
from tfds_builders.table import release

HEADER = "image,question,answer,type,split,patient\n"


@pytest.fixture
def make(tmp_path):
    """Builds both parts of a table, and returns their records by split."""

    def run(table, name="table.csv", images=range(4)):
        for i in images:
            put(tmp_path / f"manual/scans/{i}.jpg", jpeg(i))
        put(tmp_path / f"manual/{name}", table)
        found = {}
        for part in ("questions", "images"):
            options = {"manual_dir": tmp_path / "manual", "data_dir": tmp_path / "data", "overwrite": True}
            splits = build("table", part, **options)["splits"]
            read = {split: Records(f"table/{part}", split, folder=str(tmp_path / "data")) for split in splits}
            found[part] = {split: each.read(range(len(each))) for split, each in read.items()}
        return found["questions"], found["images"]

    return run


def rows(*values):
    return HEADER + "".join(
        f"scans/{i}.jpg,{question},{answer},,{split},{patient}\n" for i, question, answer, split, patient in values
    )


SPLIT = rows(
    (0, "is it large?", "Yes", "train", "a"),
    (0, "how many?", "2|two|2", "train", "a"),
    (1, "where?", "left", "val", "b"),
)


def test_a_table_becomes_questions_and_images(make, tmp_path):
    questions, images = make(SPLIT)
    first, second = questions["train"]
    assert (first["question"], first["answers"], first["answer_type"]) == ("is it large?", ["Yes"], "yes/no")
    assert (first["open_closed"], first["patient"], first["question_type"]) == ("closed", "a", "")
    assert (second["answers"], second["multiple_choice_answer"], second["answer_type"]) == (
        ["2", "two", "2"],
        "2",
        "number",
    )
    assert [q["question_id"] for of in questions.values() for q in of] == [0, 1, 2]
    assert questions["val"][0]["image_id"] == images["val"][0]["image_id"] == 1
    (shown,) = images["train"]
    assert (shown["image_name"], shown["image"]) == ("scans/0.jpg", jpeg(0))
    facts = pictures.inspect(jpeg(0))
    assert (shown["image_w"], shown["image_h"]) == (facts.width, facts.height)


def parquet_of(rows, **types) -> bytes:
    """A Parquet file of these rows; a column of several types in JSON needs its own."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names}
    parquet.write_table(pa.table(columns), file := io.BytesIO(), row_group_size=2)
    return file.getvalue()


def test_json_lines_and_parquet_say_the_same(make, tmp_path):
    expected = make(SPLIT)
    (tmp_path / "manual/table.csv").unlink()
    keys = HEADER.strip().split(",")
    objects = [dict(zip(keys, line.split(","), strict=True)) for line in SPLIT.splitlines()[1:]]
    objects[1] |= {"answers": [2, "two", "2"], "answer": "not read", "more": {"x": 1}}
    assert make("".join(json.dumps(one) + "\n" for one in objects), "table.jsonl") == expected
    (tmp_path / "manual/table.jsonl").unlink()
    objects[1] |= {"answers": ["2", "two", "2"], "more": {"x": b"\xff"}}  # a column has one type
    objects[2] |= {"type": None}
    kinds = pa.dictionary(pa.int8(), pa.string())  # as pandas writes categories
    assert make(parquet_of(objects, type=kinds, split=pa.large_string()), "table.parquet") == expected


def test_whole_numbers_of_parquet_are_texts(make):
    row = {"image": "scans/0.jpg", "question": "how many?"}
    rows = [
        {"answers": [2, 3, 3], "patient": 7, "split": "train"},
        {"answer": 5, "answers": None, "patient": None, "split": "val"},
    ]
    questions, _ = make(parquet_of([row | each for each in rows]), "table.parquet")
    ((first,), (second,)) = questions.values()
    assert (first["answers"], first["multiple_choice_answer"], first["patient"]) == (["2", "3", "3"], "3", "7")
    assert (second["answers"], second["patient"]) == (["5"], "")


def test_other_kinds_of_images_become_8_bits(make, tmp_path):
    put(tmp_path / "manual/scans/0.jpg", encoded(RAMP, "TIFF"))
    put(tmp_path / "manual/scans/1.jpg", encoded(RAMP))
    _, images = make(SPLIT, images=())
    assert images["val"][0]["image"] == encoded(RAMP)  # PNG as it is
    assert images["train"][0]["image"][:4] == b"\x89PNG"
    np.testing.assert_array_equal(
        np.asarray(pictures.decode(images["train"][0]["image"], 1)), np.arange(256).reshape(16, 16)
    )


def test_images_or_patients_are_divided_as_a_whole(make):
    many = [(i % 40, f"question {i}?", "yes", "", f"p{i % 40 // 2}") for i in range(120)]
    for patients in (True, False):
        questions, images = make(rows(*(row if patients else (*row[:4], "") for row in many)), images=range(40))
        groups = {split: {q["patient"] if patients else q["image_id"] for q in of} for split, of in questions.items()}
        assert {split: len(of) for split, of in groups.items()} == (
            {"train": 16, "val": 2, "test": 2} if patients else {"train": 32, "val": 4, "test": 4}
        )
        assert len(set().union(*groups.values())) == sum(map(len, groups.values()))
        for split, of in images.items():
            assert {shown["image_id"] for shown in of} == {q["image_id"] for q in questions[split]}
    assert release.divided(["a", "b", "c"], "t.csv") == release.divided(["c", "b", "a", "b"], "t.csv")
    assert sorted(release.divided(["a", "b", "c"], "t.csv").values()) == ["test", "train", "val"]


def test_what_is_worth_knowing_is_printed(make, capsys):
    table = rows(
        *[(0, "is it large?", "yes", "train", "a")] * 3,
        *[(1, "is it small?", "no", "train", "b")] * 2,
        *(
            (2, "is it large?", "yes", "val", "a"),
            (1, "is it small?", "no", "val", "c"),
            (3, "where?", "left", "val", "c"),
        ),
    )
    make(table)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("table: ")]
    assert "table: train: 5 questions, 2 images, 2 patients, 2 answers" in said
    assert "table: val: 3 questions, 3 images, 2 patients, 3 answers" in said
    assert any(
        "the answers of train allow 66.7 %, always 'yes' 33.3 %, the question's words alone 66.7 %" in line
        for line in said
    )
    leaks = [line for line in said if "leak" in line]
    assert leaks == [
        "table: leak: 1 patients are in several splits, such as a in train, a in val",
        "table: leak: 1 images are in several splits, such as scans/1.jpg in train, scans/1.jpg in val",
    ]


def test_equal_files_of_other_names_are_a_leak():
    records = [
        {"patient": "", "image_name": name, "split": split}
        for name, split in (("a", "train"), ("b", "val"), ("c", "val"))
    ]
    (leak,) = release.leaks(records, {"a": b"1", "b": b"1", "c": b"2"})
    assert leak == "1 equal files of different names are in several splits, such as a in train, b in val"
    assert list(release.leaks(records, {"a": b"1", "b": b"3", "c": b"2"})) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            parquet_of(
                [
                    {"image": "scans/0.jpg", "question": "why?", "answers": ["yes", None]},
                    {"image": "scans/0.jpg", "answers": []},
                    {"image": " ", "question": "why?", "answers": ["no"]},
                ]
            ),
            [
                "row 1 ",
                "answers[1]: expected text or a whole number, got null",
                "row 2 ",
                "question: missing",
                "row 3: no",
            ],
        ),
        (
            parquet_of([{"image": {"bytes": b"x"}, "question": 3, "answer": 0.5, "patient": True}] * 3),
            ["row 3 ", *(f"{name}: expected text" for name in ("image", "question", "answer", "patient"))],
        ),
        (
            parquet_of([{"imag": "scans/0.jpg", "question": "why?"}]),
            ["the columns imag, question; expected image, question."],
        ),
        (parquet_of([{"image": "scans/0.jpg", "question": "why?"}])[:-9], ["cannot be read as Parquet"]),
        (b"", ["cannot be read as Parquet"]),
        (b"version https://git-lfs.github.com/spec/v1", ["git lfs pull"]),
        ("image,answer\nscans/0.jpg,yes\n", ["the columns image, answer; expected image, question"]),
        (
            rows((0, "", "", "train", ""), (1, "why?", "|", "train", "")),
            ["line 2: no question and no answer", "line 3: no answer"],
        ),
        (rows((0, "why?", "yes", "train", ""), (1, "why?", "no", "", "")), ["1 rows without a split, 1 with one"]),
        (rows((0, "why?", "yes", "", "")), ["about 1 images or patients, too few for the splits train, val, test"]),
        (HEADER, ["has no row"]),
        (
            rows((0, "why?", "yes", "train", ""), (8, "why?", "no", "val", ""), (9, "why?", "no", "val", "")),
            ["8.jpg", "9.jpg"],
        ),
    ],
    ids=itertools.count(),
)
def test_all_that_is_wrong_with_a_table_is_one_message(make, tmp_path, table, words):
    with pytest.raises(DataError) as caught:
        make(table, "table.parquet" if isinstance(table, bytes) else "table.csv")
    assert [word for word in words if word not in str(caught.value)] == []
    assert not list((tmp_path / "data").glob("table/*/1*"))


def test_damaged_images_are_named_at_the_build(make, tmp_path):
    for i, content in enumerate(
        (jpeg(0)[:300], b"none", encoded(Image.fromarray(np.full((3, 3), -7, np.int32)), "TIFF"))
    ):
        put(tmp_path / f"manual/scans/{i}.jpg", content)
    with pytest.raises(DataError) as caught:
        make(rows(*((i, "why?", "yes", "train", "") for i in range(3))), images=())
    message = str(caught.value)
    assert all(f"{i}.jpg is " in message or f"{i}.jpg holds integers from -7" in message for i in range(3)), message


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a table that is built, and one question more than any config needs of each answer."""
    folder = tmp_path_factory.mktemp("table")
    for i in range(4):
        put(folder / f"manual/scans/{i}.jpg", jpeg(i))
    put(
        folder / "manual/table.csv",
        rows(*((i, "where is it?", ("left", "right")[i % 2], ("train", "val")[i // 2], "") for i in range(4))),
    )
    for part in ("questions", "images"):
        build("table", part, manual_dir=folder / "manual", data_dir=folder / "data")
    return folder / "data"


@pytest.mark.parametrize("system", ["rwsan", "cmsa", "sysu_hcp", "flamingo", "blip_vqa"])
def test_every_system_reads_a_table(built, system):
    config = configs.load(f"configs/{system}.py:table")
    configs.override(config, [("data.dir", os.fspath(built))])
    data = DataSet(config.data)
    task = make_task(config, data)
    for split, train in (("train", True), ("val", False)):
        for example in data.split(split).read([0, 1]):
            example |= {"draw": (0, 0, 0)}
            for transform in task.transforms(train=train):
                example = transform(example)
            expected = task.init_batch(1)
            assert {key: example[key].shape for key in task.batch_keys if key != "mask"} == {
                key: expected[key].shape[1:] for key in task.batch_keys if key != "mask"
            }
    if task.assets.get("answers"):
        assert task.assets["answers"] == ["left", "right"]
