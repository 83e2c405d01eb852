"""The builder of VQA-Med: formats and places of three years, the mixture with its classes, all faults in one message."""

import json
import shutil

import pytest

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError
from tests import vqa_med_files
from tests.vqa_med_files import SETS_20, TEST_21, TRAIN_19, VAL_19, VAL_21
from tfds_builders.build import build
from tfds_builders.vqa_med import release
from tfds_builders.vqa_med.vqa_med_dataset_builder import Builder, read_splits


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A release of three years with the places and oddities of the real ones."""
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {})
    folder = tmp_path / "manual"
    vqa_med_files.write(folder)
    return folder


def read(folder, config, split):
    records = Records(f"vqa_med/{config}", split, folder=str(folder))
    return records.read(range(len(records)))


def column(records, name):
    return [record[name] for record in records]


def test_2019(made, tmp_path):
    build("vqa_med", "questions_2019", manual_dir=made, data_dir=tmp_path)
    train, test = read(tmp_path, "questions_2019", "train"), read(tmp_path, "questions_2019", "test")
    assert column(train, "question_type") == ["plane", "abnormality", "abnormality", "organ", "abnormality"]
    assert column(train, "multiple_choice_answer")[1] == "spine, cyst"
    assert column(train, "answer_type") == ["other", "other", "yes/no", "other", "other"]
    assert column(train, "question_id") == [201900000, 201900001, 201900002, 201900003, 201900004]
    assert column(read(tmp_path, "questions_2019", "val"), "question_id") == [201900005]
    assert (test[0]["question_id"], test[0]["question_type"]) == (201900006, "organ")
    assert test[0]["answers"] == ["lung (left)", "heart", "lung"]
    assert (train[0]["image_id"], train[0]["image_name"]) == (1, "synpic1")
    assert (train[0]["year"], train[0]["member"]) == (2019, "train_2019")


def test_answers_about_an_image_are_its_caption(made, tmp_path):
    for config in ("captions_2019", "images_2019"):
        build("vqa_med", config, manual_dir=made, data_dir=tmp_path)
    images = Records("vqa_med/images_2019", "train", folder=str(tmp_path))
    split = Split(Records("vqa_med/captions_2019", "train", folder=str(tmp_path)), [images])
    examples = split.read(range(len(split)))
    assert [(e["question_id"], e["image_id"], e["caption"]) for e in examples] == [
        (201900000, 1, "axial, spine, cyst"),
        (201900002, 2, "skull and contents"),  # without its yes
        (201900004, 3, "gout"),
    ]
    assert [example["image_w"] for example in examples] == [5, 6, 7]
    assert column(read(tmp_path, "captions_2019", "test"), "caption") == ["lung (left)"]


def test_2020_and_2021_join_their_references(made, tmp_path):
    for year in ("2020", "2021"):
        build("vqa_med", f"questions_{year}", manual_dir=made, data_dir=tmp_path)
    test = read(tmp_path, "questions_2020", "test")
    assert column(test, "image_name") == ["synpic16", "synpic17"]  # the order of the questions
    assert column(test, "answers") == [["ulcer", "gout"], ["yes"]]
    assert {*column(test, "question_type")} == {"abnormality"}
    assert column(read(tmp_path, "questions_2021", "test"), "answers") == [["ulcer", "gout", "ulcers"], ["ulcer"]]
    assert column(read(tmp_path, "questions_2021", "val"), "member") == ["val_2021"]
    train = read(tmp_path, "questions_2021", "train")
    assert train == read(tmp_path, "questions_2020", "train") + read(tmp_path, "questions_2020", "val")


@pytest.mark.parametrize("absent", ["TrainingSet", "ValidationSet"])
def test_2021_without_the_files_of_2020_has_no_training_set(made, tmp_path, caplog, monkeypatch, absent):
    """Nor half of one. The other splits are as they were."""
    shutil.rmtree(made / f"{SETS_20}{absent}")
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {"images_2021": {"train": 4_500, "val": 1}})
    with caplog.at_level("WARNING", logger="absl"):
        for config in ("questions_2021", "images_2021"):
            build("vqa_med", config, manual_dir=made, data_dir=tmp_path)
    name = {"TrainingSet": "train_2020", "ValidationSet": "val_2020"}[absent]
    assert f"vqa_med: no files of {name}; the split train is left out" in caplog.text
    assert column(read(tmp_path, "questions_2021", "val"), "member") == ["val_2021"]
    assert column(read(tmp_path, "images_2021", "test"), "image_id") == [22, 23]
    with pytest.raises(DataError, match="no split 'train'"):
        read(tmp_path, "questions_2021", "train")


def test_2021_with_half_of_its_training_set_is_not_whole(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {"questions_2021": {"train": 4_500}})
    with pytest.raises(DataError, match="split train: 5 records, expected 4500"):
        build("vqa_med", "questions_2021", manual_dir=made, data_dir=tmp_path)


def test_pictures_are_stored_as_they_are_and_join(made, tmp_path):
    for config in ("questions_sysu_hcp", "images_sysu_hcp"):
        build("vqa_med", config, manual_dir=made, data_dir=tmp_path)
    for split, names in {"train": (12, 13, 14, 15), "test": (22, 23), "extra": (1, 3)}.items():
        images = Records("vqa_med/images_sysu_hcp", split, folder=str(tmp_path))
        records = images.read(range(len(images)))
        assert column(records, "image_id") == images.metadata["image_ids"][split] == list(names)
        for record in records:
            (path,) = made.rglob(f"{record['image_name']}.jpg")
            assert record["image"] == path.read_bytes()
            assert (record["image_w"], record["image_h"]) == (record["image_id"] + 4, 5)
    images = [Records("vqa_med/images_sysu_hcp", split, folder=str(tmp_path)) for split in ("train", "extra")]
    source = Split(Records("vqa_med/questions_sysu_hcp", "train+extra", folder=str(tmp_path)), images)
    assert [source[i]["image_w"] - 4 for i in range(len(source))] == [12, 13, 14, 15, 1, 3]


def test_the_mixture(made, tmp_path):
    build("vqa_med", "questions_sysu_hcp", manual_dir=made, data_dir=tmp_path)
    metadata = Records("vqa_med/questions_sysu_hcp", "train", folder=str(tmp_path)).metadata
    assert metadata["class_names"] == ["gout", "spine, \u00a0cyst", "Gout"]  # as they stand, in order of appearance
    train, extra = (read(tmp_path, "questions_sysu_hcp", split) for split in ("train", "extra"))
    assert column(train, "label") == [0, 1, 0, 2]
    assert column(train, "member") == ["train_2020"] * 3 + ["val_2020"]
    assert column(extra, "label") == [1, 0]
    assert column(extra, "member") == ["train_2019"] * 2
    labels = {
        split: column(read(tmp_path, "questions_sysu_hcp", split), "label") for split in ("val", "test", "test_2020")
    }
    assert labels == {"val": [1], "test": [0, -1], "test_2020": [0, -1]}
    build("vqa_med", "questions_2020", manual_dir=made, data_dir=tmp_path)
    alone = {r["question_id"]: r["question"] for r in read(tmp_path, "questions_2020", "train")}
    assert all(alone[r["question_id"]] == r["question"] for r in train[:3])


def test_the_authors_classes_go_first(made, tmp_path):
    (made / "archive").mkdir()
    garbled = "spine, \u00a0cyst".encode().decode("gbk")
    assert garbled != "spine, \u00a0cyst"
    (made / "archive/disease2id.json").write_text(json.dumps({garbled: 1, "ulcer": 0}), encoding="utf-8")
    splits, classes, _ = read_splits("sysu_hcp", made, pictures=False)
    assert classes.answers == ("ulcer", garbled)
    assert column(splits["train"], "label") == [1]
    assert column(splits["test"], "label") == [0, 0]


def test_the_mixture_without_2019(made, tmp_path):
    for folder in (TRAIN_19, VAL_19, "VQAMed2019Test"):
        shutil.rmtree(made / folder)
    build("vqa_med", "questions_sysu_hcp", manual_dir=made, data_dir=tmp_path)
    with pytest.raises(DataError, match="no split 'extra'"):
        read(tmp_path, "questions_sysu_hcp", "extra")
    with pytest.raises(DataError) as caught:
        build("vqa_med", "questions_2019", manual_dir=made, data_dir=tmp_path)
    for part in ("11 needed files are missing", "All_QA_Pairs_train.txt", "C4_Abnormality_val.txt", "zenodo"):
        assert part in str(caught.value)


def test_all_faults_at_once(made, tmp_path):
    (made / f"{TRAIN_19}/Train_images/synpic2.jpg").unlink()
    (made / f"{TRAIN_19}/Train_images/synpic3.jpg").write_bytes(b"no picture")
    (made / f"{VAL_19}/All_QA_Pairs_val.txt").write_text("synpic4|what?\n")
    (made / "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text("synpic5|organs|which?|x\n")
    with (made / f"{TRAIN_19}/All_QA_Pairs_train.txt").open("a") as file:
        file.write("synpic1|asked by nobody?|x\n")
    with pytest.raises(DataError) as caught:
        build("vqa_med", "images_2019", manual_dir=made, data_dir=tmp_path)
    message = str(caught.value)
    for part in (
        "vqa_med, 2019: 5 fault(s)",
        "1 rows are in no file of QAPairsByCategory, such as synpic1",
        "All_QA_Pairs_val.txt: expected lines image|question|answer",
        "categories ['organs']",
        f"train_2019: 1 images are missing, such as synpic2; expected {TRAIN_19}/Train_images/NAME.jpg",
        "synpic3.jpg is not a picture",
    ):
        assert part in message
    assert not list(tmp_path.rglob("*array_record*"))


def test_faults_of_references_and_names(made):
    (made / f"{TEST_21}/Task1-VQA-2021-TestSet-ReferenceAnswers.txt").write_text("synpic22|x\nsynpic99|y\n")
    (made / f"{VAL_21}/VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt").write_text("photo1|what?|x\n")
    with pytest.raises(DataError) as caught:
        read_splits("2021", made, pictures=False)
    for part in ("without a reference answer, such as synpic23", "not asked about, such as synpic99", "photo1"):
        assert part in str(caught.value)
    (made / f"{VAL_21}/VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt").write_bytes(
        "synpic1|ä|x".encode("latin1")
    )
    with pytest.raises(DataError, match="not UTF-8"):
        read_splits("2021", made, pictures=False)


def test_a_sample_leaves_out_what_has_no_picture(made, tmp_path):
    (made / f"{TRAIN_19}/Train_images/synpic2.jpg").unlink()
    (made / "VQAMed2019Test/VQAMed2019_Test_Images/synpic5.jpg").unlink()
    for config in ("sample_questions_2019", "sample_images_2019"):
        build("vqa_med", config, manual_dir=made, data_dir=tmp_path)
    records = read(tmp_path, "sample_questions_2019", "train")
    assert column(records, "question_id") == [201900000, 201900001, 201900004]
    assert column(read(tmp_path, "sample_images_2019", "train"), "image_id") == [1, 3]
    with pytest.raises(DataError, match="no split 'test'"):
        read(tmp_path, "sample_images_2019", "test")


def test_the_official_counts_are_checked():
    years = {"2019": (12_792, 2_000, 500), "2020": (4_000, 500, 500), "2021": (4_500, 500, 500)}
    for year, counts in years.items():
        assert tuple(Builder.EXPECTED_COUNTS[f"questions_{year}"].values()) == counts
    assert {config.name for config in Builder.BUILDER_CONFIGS} - set(Builder.DEFAULT_CONFIGS) == {
        "sample_questions_2019",
        "sample_images_2019",
        "sample_captions_2019",
    }


# The real sample of 2019.


@pytest.fixture(scope="module")
def real(jaxvqa_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqa_med")
    for config in ("sample_questions_2019", "sample_images_2019"):
        build("vqa_med", config, manual_dir=jaxvqa_data / "data/vqa_med_2019", data_dir=folder)
    return folder


def test_the_real_sample(real, jaxvqa_data):
    source = jaxvqa_data / "data/vqa_med_2019"
    train, val, test = (read(real, "sample_questions_2019", split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (2238, 480, 6)
    counts = {name: column(train, "question_type").count(name) for name in release.CATEGORIES}
    assert counts == {"modality": 560, "plane": 560, "organ": 560, "abnormality": 558}
    assert not any("\u00a0" in answer for record in train for answer in record["answers"])
    lines = (source / TRAIN_19 / "All_QA_Pairs_train.txt").read_text(encoding="utf-8").split("\n")[:-1]
    ours = [f"{r['image_name']}|{r['question']}|{r['multiple_choice_answer']}" for r in train]
    assert ours == ["|".join(" ".join(field.split()) for field in line.split("|")) for line in lines]
    captions = column(release.captions(val), "caption")
    assert (len(captions), len(set(captions))) == (120, 117)
    assert "xr - plain film, ap, lung, mediastinum, pleura" in captions
    for split, count, folder in (("train", 560, "Train_images"), ("val", 120, "Val_images")):
        images = read(real, "sample_images_2019", split)
        assert len(images) == count
        for image in images[:50]:
            (path,) = source.glob(f"*/{folder}/{image['image_name']}.jpg")
            assert image["image"] == path.read_bytes()


def test_the_real_sample_is_no_whole_release(jaxvqa_data, tmp_path):
    with pytest.raises(DataError, match=r"1 fault\(s\)[\s\S]*test_2019: 494 images are missing"):
        build("vqa_med", "images_2019", manual_dir=jaxvqa_data / "data/vqa_med_2019", data_dir=tmp_path)
