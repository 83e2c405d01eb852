"""The builder of MIMIC-CXR, on made files in its layout: two selections, texts, splits, and what a user may lack."""

import csv
import gzip
import io
import json
import shutil
import zipfile

import pytest
from PIL import Image

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from tfds_builders.build import build
from tfds_builders.mimic_cxr import reports, selection

JPG, TEXTS = "mimic-cxr-jpg/2.0.0", "mimic-cxr/2.0.0"
SPLIT = f"{JPG}/mimic-cxr-2.0.0-split.csv.gz"
METADATA = f"{JPG}/mimic-cxr-2.0.0-metadata.csv.gz"
ZIP = f"{TEXTS}/mimic-cxr-reports.zip"

# Patient, study, (file, view, official split) in the order of the tables, which is not that of the names.
STUDIES = [
    (10000032, 50000001, [("02bb", "LATERAL", "train"), ("02aa", "PA", "train"), ("02cc", "AP", "train")]),
    (10000032, 50000000, [("77aa", "", "train")]),
    (10000040, 50000002, [("03aa", "AP", "validate")]),
    (11573679, 58235663, [("04aa", "PA", "train")]),  # one of those without findings
    (11573679, 50000003, [("05aa", "LL", "test"), ("05bb", "PA", "test")]),
    *((12000000 + i, 50000010 + i, [(f"1{i}aa", "PA", "train")]) for i in range(5)),
]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 \n INDICATION:  ___ year old  // ?effusion
 \n FINDINGS: \n \n The lungs of {study} are clear.
 \n IMPRESSION: \n \n No effusion
 in {study}.
"""


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "manual"
    (folder / TEXTS).mkdir(parents=True)
    with zipfile.ZipFile(folder / ZIP, "w") as archive:
        for patient, study, _ in STUDIES:
            archive.writestr(f"files/p{patient // 10**6}/p{patient}/s{study}.txt", REPORT.format(study=study))
    rows = [(p, s, *file) for p, s, files in STUDIES for file in files]
    for i, (patient, study, name, _, _) in enumerate(rows):
        path = folder / picture(patient, study, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((300 + i, 250)).save(path)
    write(folder / METADATA, ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns"],
          [(name, patient, study, view, 250, 300) for patient, study, name, view, _ in rows])  # fmt: skip
    write(folder / SPLIT, ["dicom_id", "study_id", "subject_id", "split"],
          [(name, study, patient, split) for patient, study, name, _, split in rows])  # fmt: skip
    return folder


def picture(patient, study, name):
    return f"{JPG}/files/p{patient // 10**6}/p{patient}/s{study}/{name}.jpg"


def write(path, columns, rows):
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def read(folder, part, split):
    records = Records(f"mimic_cxr/{part}", split, folder=str(folder))
    return records.read(range(len(records)))


def read_all(folder, part, splits=("train", "val", "test")):
    return [record for split in splits for record in read(folder, part, split)]


def test_studies_with_their_first_picture(made, tmp_path):
    for config in ("reports", "images"):
        build("mimic_cxr", config, manual_dir=made, data_dir=tmp_path, workers=2)
    texts = {record["study_id"]: record for record in read_all(tmp_path, "reports")}
    assert texts.keys() == {study for _, study, _ in STUDIES}
    assert texts[50000001] == {
        "question_id": 5000000100,
        "image_id": 5000000100,
        "image_name": "02aa",
        "subject_id": 10000032,
        "study_id": 50000001,
        "view": "PA",
        "caption": "FINAL REPORT EXAMINATION:  CHEST (PA AND LAT) INDICATION:   year old  // ?effusion FINDINGS: "
        "The lungs of 50000001 are clear. IMPRESSION: No effusion in 50000001.",
    }
    sizes = {split: len(read(tmp_path, "reports", split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 8, "val": 1, "test": 1}
    images = [Records("mimic_cxr/images", split, folder=str(tmp_path)) for split in sizes]
    for split, records in zip(sizes, images, strict=True):
        ids = [record["image_id"] for record in read(tmp_path, "reports", split)]
        assert ids == records.metadata["image_ids"][split]
    source = Split(Records("mimic_cxr/reports", "train+val+test", folder=str(tmp_path)), images)
    for example in source.read(range(len(source))):
        with Image.open(made / picture(example["subject_id"], example["study_id"], example["image_name"])) as original:
            smaller = io.BytesIO()
            original.resize((224, 224), Image.Resampling.BICUBIC).save(smaller, "JPEG", quality=100)
        assert example["image"] == smaller.getvalue()
        assert (example["image_w"], example["image_h"]) == (224, 224)


def test_frontal_pictures_with_the_official_split(made, tmp_path):
    for config in ("frontal_reports", "frontal_images_full_size"):
        build("mimic_cxr", config, manual_dir=made, data_dir=tmp_path)
    train = read(tmp_path, "frontal_reports", "train")
    assert [record["image_name"] for record in train] == ["02aa", "02cc", "10aa", "11aa", "12aa", "13aa", "14aa"]
    assert [record["question_id"] for record in train[:2]] == [5000000100, 5000000102]
    assert {record["caption"] for record in train[:2]} == {"No effusion in 50000001."}
    assert [record["image_name"] for record in read(tmp_path, "frontal_reports", "val")] == ["03aa"]
    (test,) = read(tmp_path, "frontal_images_full_size", "test")
    assert (test["image_name"], test["image_w"], test["image_h"]) == ("05bb", 307, 250)
    assert test["image"] == (made / picture(11573679, 50000003, "05bb")).read_bytes()


def test_sections_that_were_cut_out_go_first(made, tmp_path):
    folder = made / TEXTS / "mimic-cxr-sections"
    folder.mkdir()
    (folder / "mimic_cxr_00.csv").write_text('s50000001,"Clear\n of ___ all."\ns50000002,\n')
    (folder / "mimic_cxr_01.csv").write_text("s50000003,Other.\n")
    build("mimic_cxr", "frontal_reports", manual_dir=made, data_dir=tmp_path)
    assert read(tmp_path, "frontal_reports", "train")[0]["caption"] == "Clear of  all."
    assert read(tmp_path, "frontal_reports", "test")[0]["caption"] == "Other."
    assert read(tmp_path, "frontal_reports", "train")[2]["caption"] == "No effusion in 50000010."
    with pytest.raises(DataError, match="no split 'val'"):  # its one report has no section
        read(tmp_path, "frontal_reports", "val")
    (folder / "mimic_cxr_01.csv").write_text("study,impression,findings\n")
    with pytest.raises(DataError, match=r"mimic_cxr_01.csv, row 1: .*create_section_files.py"):
        build("mimic_cxr", "frontal_reports", manual_dir=made, data_dir=tmp_path, overwrite=True)


def test_the_originals_split_goes_first(made, tmp_path):
    lists = {"train": [50000003, 50000010], "val": [50000000], "test": [50000002, 59999999]}
    for split, studies in lists.items():
        entries = [{"folder_path": f"/data/files/p10/p1/s{study}", "txt_path": "…"} for study in studies]
        (made / f"mimic_cxr_{split}.json").write_text(json.dumps(entries))
    build("mimic_cxr", "reports", manual_dir=made, data_dir=tmp_path)
    found = {split: [record["study_id"] for record in read(tmp_path, "reports", split)] for split in lists}
    assert found == {"train": [50000003, 50000010], "val": [50000000], "test": [50000002]}
    (made / "mimic_cxr_val.json").write_text('[{"folder": ""}]')
    with pytest.raises(DataError, match=r"mimic_cxr_val.json: expected a list of \{folder_path"):
        build("mimic_cxr", "reports", manual_dir=made, data_dir=tmp_path, overwrite=True)


def test_whole_groups_of_patients_may_be_left_out(made, tmp_path):
    shutil.rmtree(made / JPG / "files/p12")
    for config in ("reports", "images"):
        build("mimic_cxr", config, manual_dir=made, data_dir=tmp_path)
        assert {r["subject_id"] // 10**6 for r in read_all(tmp_path, config, ("train", "test"))} == {10, 11}
    # Reports alone, unpacked, with tables that are not packed.
    shutil.rmtree(made / JPG / "files")
    with zipfile.ZipFile(made / ZIP) as archive:
        archive.extractall(made / TEXTS)
    (made / ZIP).unlink()
    table = made / METADATA
    table.with_suffix("").write_bytes(gzip.decompress(table.read_bytes()))
    table.unlink()
    build("mimic_cxr", "reports", manual_dir=made, data_dir=tmp_path, overwrite=True)
    assert len(read_all(tmp_path, "reports")) == len(STUDIES)


def test_what_is_missing_is_named(made, tmp_path):
    for study, name in ((50000000, "77aa"), (50000001, "02aa")):
        (made / picture(10000032, study, name)).unlink()
    with pytest.raises(DataError) as caught:
        build("mimic_cxr", "images", manual_dir=made, data_dir=tmp_path)
    for part in (
        "2 files are missing",
        "files/p10/p10000032/s50000000/77aa.jpg, ",
        "mimic-cxr-jpg",
        "groups of patients",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError) as caught:
        build("mimic_cxr", "frontal_images", manual_dir=tmp_path / "none", data_dir=tmp_path)
    message = str(caught.value)
    for part in ("3 needed files", "metadata.csv", "split.csv", "files/p1?", "physionet.org", "credentialed"):
        assert part in message
    assert not list(tmp_path.rglob("*array_record*"))


def test_damaged_files_are_named(made, tmp_path):
    def message(config):
        with pytest.raises(DataError) as caught:
            build("mimic_cxr", config, manual_dir=made, data_dir=tmp_path)
        return str(caught.value)

    path = made / picture(10000040, 50000002, "03aa")
    path.write_bytes(path.read_bytes()[:400])
    assert "03aa.jpg is damaged" in message("images")
    (made / ZIP).write_bytes((made / ZIP).read_bytes()[:100])
    assert "mimic-cxr-reports.zip is cut off or damaged" in message("reports")
    (made / SPLIT).write_bytes((made / SPLIT).read_bytes()[:40])
    assert "split.csv.gz is cut off or damaged" in message("frontal_images")
    for columns, rows, fault in (
        (["dicom_id"], [], "has no column subject_id, study_id, ViewPosition"),
        (["dicom_id", "subject_id", "study_id", "ViewPosition"], [("a", "x", 1, "PA")], "a row of another form"),
    ):
        write(made / METADATA, columns, rows)
        assert fault in message("images")


def test_sizes_of_the_random_split():
    studies = range(50_000_000, 50_000_000 + selection.STUDIES)
    of = selection.random_split(studies)
    splits = [of[study] for study in studies]
    assert {name: splits.count(name) for name in set(splits)} == {"train": 182_268, "val": 22_783, "test": 22_784}
    assert len(set(splits[:200])) == 3  # shuffled


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (" FINDINGS: Clear.\n \n IMPRESSION: Normal.\n", "Normal."),
        (" IMPRESSION: First.\n \n FINDINGS: Clear.\n \n CONCLUSION: Last.\n", "Last."),
        (" FINDINGS: Clear.\n \n IMPRESSION: \n \n", "Clear."),  # an empty impression is none
        (" IMPRESSON: Misspelt.\n", "Misspelt."),
        (" CHEST, TWO VIEWS:  Heart\n large.\n", "Heart large."),  # a view is as good as findings
        # Neither: what follows the first paragraph of the last section.
        (" COMPARISON:  ___\n \n The heart\n is large.\n \n Lungs clear.\n", "The heart is large. Lungs clear."),
        (" HISTORY: Cough.\n \n COMPARISON: Heart large.\n", "Heart large."),
        (" INDICATION: Normal chest.\n", "INDICATION: Normal chest."),  # none of them: the whole report
        ("Time: 3:00 PM\n \n Clear.\n", "Clear."),
        (" FINDINGS: At\n SIZE:3 cm.\n", "At SIZE:3 cm."),  # no header
    ],
)
def test_the_section_that_says_what_is_seen(report, text):
    assert reports.conclusion("FINAL REPORT\n" + report).removeprefix("FINAL REPORT ") == text
