"""What users' files may hold, by kind of fault and over all builders: named, all at once, and nothing is left built."""

import codecs
import functools
import gzip
import importlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxvqa.data.data_set import DataSet
from jaxvqa.data.images import DecodeImage
from jaxvqa.data.records import Records
from jaxvqa.data.transforms import RegionsAsImage
from jaxvqa.errors import DataError
from tests.data_set_files import DATA_SETS, RAD_JSON, RAD_ROW, RAD_ROWS, put
from tests.picture_files import DAMAGED, encoded, noise, turned
from tfds_builders.build import build, builder_class, main

NAMES = sorted(DATA_SETS)
V2_QUESTIONS, V2_ANSWERS = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def of(tmp_path, monkeypatch):
    """Writes a data set's files into a folder, and lifts the rule of how many records there have to be."""

    def write(name):
        folder = tmp_path / "manual"
        DATA_SETS[name].write(folder)
        monkeypatch.setattr(builder_class(name), "EXPECTED_COUNTS", {}, raising=False)
        if name == "easy_vqa":
            module = importlib.import_module("tfds_builders.easy_vqa.easy_vqa_dataset_builder")
            monkeypatch.setattr(module, "package_data", lambda: folder)
            monkeypatch.setattr(module, "_IMAGES", {"train": 2, "test": 2})
        return folder

    return write


@pytest.fixture
def make(tmp_path):
    """Builds a config anew, and returns its records by split."""

    def run(name, config, **options):
        result = build(
            name, config, manual_dir=tmp_path / "manual", data_dir=tmp_path / "data", overwrite=True, **options
        )
        records = {
            split: Records(f"{name}/{config}", split, folder=str(tmp_path / "data")) for split in result["splits"]
        }
        return {split: each.read(range(len(each))) for split, each in records.items()}

    return run


def fault(make, *arguments, **options):
    """The message of a build that is refused."""
    with pytest.raises(DataError) as caught:
        make(*arguments, **options)
    return str(caught.value)


def nothing_is_built(tmp_path):
    return not list((tmp_path / "data").glob("*/*/[1i]*"))


@functools.cache
def damaged(kind):
    return DAMAGED[kind]()


def same(a, b):
    """Whether two builds gave the same records, arrays among them."""
    for split in a | b:
        for x, y in zip(a[split], b[split], strict=True):
            assert x.keys() == y.keys()
            for column in x:
                np.testing.assert_array_equal(x[column], y[column], err_msg=column)


# Pictures.


@pytest.mark.parametrize("kind", [*DAMAGED, "a folder"])
@pytest.mark.parametrize("name", NAMES)
def test_all_damaged_images_are_named_at_the_build(of, make, tmp_path, name, kind):
    folder = of(name)
    for place in DATA_SETS[name].pictures:
        path = folder / place
        path.unlink()
        path.mkdir() if kind == "a folder" else path.write_bytes(damaged(kind))
    message = fault(make, name, DATA_SETS[name].images, workers=2)
    for place in DATA_SETS[name].pictures:
        assert place in message
    assert nothing_is_built(tmp_path)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"easy_vqa"}))
def test_an_image_is_stored_with_the_size_in_which_it_is_shown(of, make, name):
    folder = of(name)
    upright = noise("L", (30, 60))
    put(folder / DATA_SETS[name].pictures[0], turned(upright.transpose(Image.Transpose.ROTATE_90), 6))
    data_set = DATA_SETS[name]
    examples = [example for records in make(name, data_set.images).values() for example in records]
    decode = DecodeImage({"image": (16, 1)})
    shown = [decode(example)["image"] for example in examples]
    expected = decode({"image": encoded(upright, "JPEG"), "image_id": 0})["image"].astype(int)
    assert min(np.abs(expected - each).mean() for each in shown) < 12
    if name not in ("mtpt", "mimic_cxr"):  # which store no size, or another one
        assert (30, 60) in [(example["image_w"], example["image_h"]) for example in examples]


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".Jpeg"])
@pytest.mark.parametrize("name", NAMES)
def test_endings_in_any_case_are_found(of, make, name, ending):
    folder, config = of(name), DATA_SETS[name].images
    ending = ".PNG" if DATA_SETS[name].ending == ".png" else ending
    before = make(name, config)
    for path in sorted(folder.rglob(f"*{DATA_SETS[name].ending}")):
        path.rename(path.with_suffix(ending))
    same(make(name, config), before)


@pytest.mark.parametrize("name", ["vqa_rad", "vqa_med", "roco", "vqa_v2"])
def test_files_that_differ_by_case_only_are_named(of, make, tmp_path, name):
    path = of(name) / DATA_SETS[name].pictures[0]
    shutil.copy(path, path.with_suffix(".JPG"))
    message = fault(make, name, DATA_SETS[name].images)
    assert path.with_suffix(".JPG").name in message
    assert path.name in message
    assert nothing_is_built(tmp_path)


# Texts.


def with_marks(content):
    """The text as an editor of another system saves it."""
    return codecs.BOM_UTF8 + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["texts", "images"])
def test_byte_order_marks_and_line_ends_change_nothing(of, make, name, part):
    folder, config = of(name), getattr(DATA_SETS[name], part)
    before = make(name, config)
    for path in [*folder.rglob("*.txt"), *folder.rglob("*.json"), *folder.rglob("*.csv")]:
        path.write_bytes(with_marks(path.read_bytes()))
    for path in folder.rglob("*.csv.gz"):
        path.write_bytes(gzip.compress(with_marks(gzip.decompress(path.read_bytes()))))
    same(make(name, config), before)


@pytest.mark.parametrize("name", NAMES)
def test_text_files_in_any_case_are_found(of, make, name):
    folder, config = of(name), DATA_SETS[name].texts
    before = make(name, config)
    if name in ("easy_vqa", "roco"):  # whose names the package and the repository fix
        return
    for path in [*folder.rglob("*.txt"), *folder.rglob("*.json")]:
        path.rename(path.with_suffix(path.suffix.title()))
    same(make(name, config), before)


NULL_ANSWER = "{place}: answer is null; expected a text that is not empty"
ODD_VALUES = [None, "", "  ", ["yes"], {"a": 1}, True, float("nan")]


@pytest.mark.parametrize("value", ODD_VALUES)
def test_vqa_rad_names_row_and_field(of, make, tmp_path, value):
    folder = of("vqa_rad")
    put(folder / RAD_JSON, [RAD_ROW, RAD_ROW | {"answer": value}, RAD_ROW | {"question": value}, RAD_ROWS[1]])
    message = fault(make, "vqa_rad", "questions")
    assert "2 fault(s)" in message
    assert f"{RAD_JSON}, row 1: answer is {json.dumps(value)}; expected a text" in message
    assert f"{RAD_JSON}, row 2: question is {json.dumps(value)}; expected a text" in message
    assert nothing_is_built(tmp_path)


def test_vqa_rad_keeps_numbers_as_texts_and_names_all_else(of, make):
    folder = of("vqa_rad")
    put(folder / RAD_JSON, [RAD_ROW | {"answer": 4}, RAD_ROWS[1]])
    assert make("vqa_rad", "questions")["train"][0]["answers"] == ["4"]
    wrong = {
        "image_name": ["../synpic7.jpg", "synpic07.jpg", 7, None],
        "image_organ": ["LEG", None, 1],
        "answer_type": ["MAYBE", None],
        "phrase_type": [None, 3],
        "question_frame": [None, 5, ["a"]],
    }
    rows = [RAD_ROW | {field: value} for field, values in wrong.items() for value in values]
    put(folder / RAD_JSON, [*rows, "no row", {k: v for k, v in RAD_ROW.items() if k != "answer"}])
    message = fault(make, "vqa_rad", "questions")
    assert f"{len(rows) + 2} fault(s)" in message
    for number, (field, value) in enumerate((field, value) for field, values in wrong.items() for value in values):
        assert f"row {number}: {field} is {json.dumps(value)}; expected" in message
    assert f"row {len(rows)}: expected the fields question, answer" in message
    assert f"row {len(rows) + 1}: no answer; expected a text" in message


def test_long_lists_of_faults_are_cut(of, make):
    put(of("vqa_rad") / RAD_JSON, [RAD_ROW | {"answer": None}] * 500)
    message = fault(make, "vqa_rad", "questions")
    assert "500 fault(s)" in message
    assert "and 480 more" in message
    assert message.count("answer is null") == 20


def change(path, key, **fields):
    content = json.loads(path.read_text())
    content[key][0] |= fields
    put(path, content)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        *((file, field, value) for file in (V2_QUESTIONS, V2_ANSWERS) for field in ("question_id", "image_id")
          for value in ("n123", 9000.7, 2**63, -1, None, True, [3], float("inf"))),
        *((V2_QUESTIONS, "question", value) for value in ODD_VALUES),
        *((V2_ANSWERS, "multiple_choice_answer", value) for value in (*ODD_VALUES, 7)),
        *((V2_ANSWERS, "answers", value) for value in
          (None, [], "yes", {"answer": "yes"}, ["yes"], [{"answer": None}], [{"answer": 3}], [{}], [None])),
        (V2_ANSWERS, "answer_type", None),
        (V2_ANSWERS, "question_type", 4),
    ],
)  # fmt: skip
def test_vqa_v2_names_entry_and_field(of, make, tmp_path, file, field, value):
    folder = of("vqa_v2")
    key = "questions" if file == V2_QUESTIONS else "annotations"
    change(folder / file, key, **{field: value})
    message = fault(make, "vqa_v2", "questions")
    assert f"{file}, {key}, entry 0: {field} is {json.dumps(value)[:60]}" in message
    assert nothing_is_built(tmp_path)


@pytest.mark.parametrize("value", [2**63 - 1, 2**53 + 1, "77", 77.0])
def test_vqa_v2_keeps_whole_ids_whole(of, make, value):
    folder = of("vqa_v2")
    for file, key in ((V2_QUESTIONS, "questions"), (V2_ANSWERS, "annotations")):
        change(folder / file, key, question_id=value)
    assert make("vqa_v2", "questions")["train"][0]["question_id"] == int(value)


def test_vqa_v2_names_ids_that_occur_twice_and_faults_of_both_files(of, make):
    folder = of("vqa_v2")
    change(folder / V2_QUESTIONS, "questions", question_id=90)
    change(folder / V2_ANSWERS, "annotations", multiple_choice_answer=None)
    message = fault(make, "vqa_v2", "questions")
    assert f"{V2_QUESTIONS}, questions: 1 question ids occur more than once, such as 90" in message
    assert "entry 0: multiple_choice_answer is null" in message


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": [30, 90.7]}, "train, entry 1: id is 90.7; expected a whole number"),
        ({"train": [30, "n"]}, 'entry 1: id is "n"'),
        ({"train": [30], "../x": [90]}, "'../x' cannot be a split's name"),
        ({"train": [30], "few": []}, "no record for the split few: its list in splits.json is empty"),
    ],
)
def test_vqa_v2_looks_at_its_lists_of_splits(of, make, tmp_path, lists, message):
    put(of("vqa_v2") / "splits.json", lists)
    for split in ("questions", "annotations"):
        (tmp_path / "manual" / V2_ANSWERS.replace("train", "val").replace("annotations", split)).unlink(missing_ok=True)
        (tmp_path / "manual" / V2_QUESTIONS.replace("train", "val")).unlink(missing_ok=True)
    assert message in fault(make, "vqa_v2", "questions")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("synpic1||axial", "no question in"),
        ("synpic1|what?|", "no answer in"),
        ("synpic1|what?|\u00a0", "no answer in"),
        ("|what?|axial", "no image in"),
        ("../synpic1|what?|axial", "1 image names are not synpicNUMBER, such as ../synpic1"),
        (f"synpic{2**63}|what?|axial", "1 image names are not synpicNUMBER"),
    ],
)
def test_vqa_med_names_lines(of, make, tmp_path, line, message):
    path = of("vqa_med") / "ImageClef-2019-VQA-Med-Training/All_QA_Pairs_train.txt"
    path.write_text(f"{path.read_text()}{line}\n")
    found = fault(make, "vqa_med", "questions_2019")
    assert message in found
    assert path.name in found
    assert nothing_is_built(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("metadata.csv", "00aa,10000032", "00aa,n12", 'metadata.csv, line 2: subject_id is "n12"'),
        ("metadata.csv", "00aa,10000032", f"00aa,{2**31}", "line 2: subject_id is"),
        ("metadata.csv", "00aa,", "../../00aa,", 'dicom_id is "../../00aa"; expected a file\'s name'),
        ("metadata.csv", "00aa,10000032,50000000,PA", "00aa,10000032", "line 2: study_id is null"),
        ("metadata.csv", "01aa,", "00aa,", "1 dicom ids occur more than once, such as 00aa"),
        ("split.csv.gz", "00aa,train", "00aa,trian", 'line 2: split is "trian"; expected one of "train", "validate"'),
    ],
)
def test_mimic_cxr_names_lines(of, make, tmp_path, file, old, new, message):
    path = of("mimic_cxr") / f"mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-{file}"
    packed = file.endswith(".gz")
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    assert old in text
    changed = text.replace(old, new).encode()
    path.write_bytes(gzip.compress(changed) if packed else changed)
    assert message in fault(make, "mimic_cxr", "frontal_reports")
    assert nothing_is_built(tmp_path)


@pytest.mark.parametrize("entry", [{"question": None, "label": 1}, {"question": " ", "label": 1}, {"label": 1}, 7,
                                   {"question": "?", "label": 0.9}, {"question": "?", "label": True}])  # fmt: skip
def test_mtpt_names_entries(of, make, entry):
    path = of("mtpt") / "brain_test.json"
    put(path, [{"question": "Is it?", "label": 0}, entry])
    assert f"{path}, entry 1: " in fault(make, "mtpt", "brain_questions")


def test_mtpt_names_all_lines_and_paths_that_leave_the_folder(of, make, tmp_path):
    folder = of("mtpt")
    (folder / "chest_xray_trainset.txt").write_text("../secret.jpg 0\n/etc/x.jpg 1\ntrain_0.jpg 7\n")
    (folder / "chest_xray_valset.txt").write_text("test_0.jpg\n")
    message = fault(make, "mtpt", "chest")
    for part in ("4 fault(s)", "line 1: '../secret.jpg' leaves the folder", "line 2: '/etc/x.jpg' leaves", "label '7'"):
        assert part in message
    assert nothing_is_built(tmp_path)


@pytest.mark.parametrize(
    "row", [["?", None, 0], ["", "yes", 0], ["?", "yes", 2], ["?", "yes", 0.5], ["?", "yes"], None]
)
def test_easy_vqa_names_rows(of, make, row):
    put(of("easy_vqa") / "test/questions.json", [["Is it?", "no", 0], row])
    assert "questions.json, row 1: " in fault(make, "easy_vqa", "questions")


def test_roco_names_captions_that_stand_twice_in_a_file(of, make):
    path = of("roco") / "data/train/radiology/captions.txt"
    path.write_text(path.read_text() + "ROCO_00001\tOther words\n")
    assert "captions.txt: 1 names occur more than once, such as ROCO_00001" in fault(make, "roco", "captions")


# Parts of releases, and empty splits.


def test_a_part_is_reported_and_built_when_it_is_asked_for(of, make, tmp_path, monkeypatch, capsys):
    folder = of("vqa_rad")
    monkeypatch.setattr(builder_class("vqa_rad"), "EXPECTED_COUNTS", {"questions": {"train": 2, "test": 1}})
    command = ["vqa_rad/questions", f"--manual_dir={folder}", f"--data_dir={tmp_path / 'data'}"]
    for _ in range(2):  # nothing that was refused counts as built
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "split train: 1 records, expected 2 as in the official release" in message
        assert "--partial" in message
        assert nothing_is_built(tmp_path)
    assert main([*command, "--partial"]) == 0
    assert main([*command, "--partial"]) == 0
    assert "verified" in capsys.readouterr().out
    assert main(command) == 2  # who takes it for the release is told
    assert "split train: 1 records, expected 2" in capsys.readouterr().err


def test_what_was_built_stays_when_a_new_build_is_refused(of, make, tmp_path):
    folder = of("vqa_rad")
    before = make("vqa_rad", "questions")
    put(folder / RAD_JSON, [RAD_ROW | {"answer": None}])
    fault(make, "vqa_rad", "questions")
    records = Records("vqa_rad/questions", "train", folder=str(tmp_path / "data"))
    assert records.read(range(len(records))) == before["train"]
    assert not list((tmp_path / "data/vqa_rad/questions").glob("incomplete*"))


def test_a_release_without_test_rows_is_reported(of, make, tmp_path):
    put(of("vqa_rad") / RAD_JSON, [RAD_ROW])
    message = fault(make, "vqa_rad", "questions")
    assert 'no record for the split test: rows belong to test if their phrase_type begins with "test_"' in message
    assert nothing_is_built(tmp_path)
    assert list(make("vqa_rad", "questions", partial=True)) == ["train", "train_without_test_frames"]
    with pytest.raises(DataError, match="no split 'test': choose train"):
        Records("vqa_rad/questions", "test", folder=str(tmp_path / "data"))
    assert "2 images" not in fault(make, "vqa_rad", "image_disjoint")


def test_a_part_of_the_images_leaves_out_the_questions_of_the_others(of, make):
    folder = of("vqa_rad")
    (folder / DATA_SETS["vqa_rad"].pictures[1]).unlink()
    assert "--partial" in fault(make, "vqa_rad", "images")
    assert [r["image_id"] for r in make("vqa_rad", "images", partial=True)["full"]] == [7]
    assert {r["image_id"] for rs in make("vqa_rad", "questions", partial=True).values() for r in rs} == {7}


def test_a_part_of_vqa_med_leaves_out_what_has_no_image(of, make):
    folder = of("vqa_med")
    (folder / DATA_SETS["vqa_med"].pictures[0]).unlink()
    message = fault(make, "vqa_med", "images_2019")
    assert "--partial" in message
    assert "--config=sample_questions_2019,sample_images_2019" in message
    assert [r["image_id"] for r in make("vqa_med", "images_2019", partial=True)["train"]] == [2, 3]
    assert 1 not in [r["image_id"] for r in make("vqa_med", "questions_2019", partial=True)["train"]]


# Regions.


def region_file(folder, **arrays):
    path = folder / "coco_extract/train2014/COCO_train2014_000000000003.jpg.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"x": np.ones((2048, 2), np.float32), "bbox": np.float32([[0, 0, 9, 9], [1, 2, 30, 40]])}
    whole |= {"image_w": np.int64(64), "image_h": np.int64(48)}
    np.savez(path, **{name: array for name, array in (whole | arrays).items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((1024, 2), np.float32)}, "'x' has shape [1024, 2], expected [2048, regions]"),
        ({"x": np.full((2048, 2), np.inf, np.float32)}, "'x' holds NaN, infinite"),
        ({"x": np.full((2048, 2), "a")}, "'x' is of type <U1, expected numbers"),
        ({"bbox": np.full((2, 4), np.nan)}, "'bbox' holds NaN or infinite values"),
        ({"bbox": np.full((2, 4), -3.0)}, "'bbox' holds negative values, such as -3"),
        ({"bbox": np.full((2, 4), 5.0)}, "'bbox' holds boxes of no size only"),
        ({"bbox": np.ones((2, 5))}, "'bbox' has shape [2, 5], expected [2, 4]"),
        ({"image_w": np.float64("nan")}, "'image_w' is nan, expected the picture's size"),
        ({"image_w": np.float64(64.5)}, "'image_w' is 64.5"),
        ({"image_h": np.int64(2**40)}, "'image_h' is 1099511627776"),
        ({"image_h": np.array([])}, "'image_h' is []"),
    ],
)
def test_region_files_are_looked_at(of, make, tmp_path, arrays, message):
    path = region_file(of("vqa_v2"), **arrays)
    assert f"{path}: {message}" in fault(make, "vqa_v2", "features")
    assert nothing_is_built(tmp_path)


def test_cut_region_files_are_named(of, make):
    path = region_file(of("vqa_v2"))
    whole = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert f"{path}: cannot be read" in fault(make, "vqa_v2", "features")


@pytest.mark.parametrize("absent", [("bbox",), ("image_w", "image_h"), ("bbox", "image_w", "image_h")])
def test_regions_without_boxes_are_reported_at_the_build_and_never_become_nan(of, make, caplog, absent):
    region_file(of("vqa_v2"), **dict.fromkeys(absent))
    (example,) = make("vqa_v2", "features")["train"]
    assert "1 of 1 files have no bbox, image_w or image_h: Flamingo cannot be trained" in caplog.text
    with pytest.raises(DataError, match=r"Nothing says where the regions of image 3 lie.*had no bbox"):
        RegionsAsImage(4, 2048)(example)
    assert not RegionsAsImage(4, 2048, blind=True)(example)["image"].any()


def test_regions_with_boxes_are_finite(of, make, caplog):
    region_file(of("vqa_v2"))
    (example,) = make("vqa_v2", "features")["train"]
    assert "Flamingo" not in caplog.text
    assert np.isfinite(RegionsAsImage(4, 2048)(example)["image"]).all()


# What is not built.


@pytest.mark.parametrize(
    ("questions", "images", "commands"),
    [
        ("vqa_v2/questions", "vqa_v2/features", ["vqa_v2 --config=questions,features --manual_dir=DIR"]),
        ("phantom_vqa/questions", "phantom_vqa/images", ["phantom_vqa --config=questions,images"]),
        ("vqa_rad/questions", "", ["vqa_rad --config=questions"]),
        ("mtpt/brain", "", ["mtpt --config=brain --manual_dir=DIR"]),
        ("mtpt/phantom_brain", "", ["mtpt --config=phantom_brain"]),
        ("roco/captions", "mimic_cxr/images",
         [f"{part} --manual_dir=DIR" for part in ("roco --config=captions", "mimic_cxr --config=images")]),
        ("mine/questions", "", ["mine --config=questions"]),
    ],
)  # fmt: skip
def test_what_is_not_built_is_reported_command_first(tmp_path, questions, images, commands):
    from ml_collections import ConfigDict

    fields = {"dir": str(tmp_path), "examples": questions, "images": images, "image_splits": "", "held_out": 0.0}
    data = ConfigDict(fields | {"train_split": "train"})
    with pytest.raises(DataError) as caught:
        DataSet(data).split("train")
    lines = str(caught.value).splitlines()
    assert "not built. Build:" in lines[0]
    expected = [f"python -m tfds_builders.build {command} --data_dir={tmp_path}" for command in commands]
    assert [line.strip() for line in lines[1:-1]] == expected
    assert lines[-1] == f"Built in {tmp_path}: nothing."
