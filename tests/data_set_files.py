"""The smallest folders that each builder builds from: two splits, a few images, texts."""

import gzip
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jaxvqa.data.records import Records
from tests import vqa_med_files
from tests.picture_files import encoded, noise
from tfds_builders.build import build

RAD_ROW = {
    "image_name": "synpic7.jpg",
    "image_organ": "HEAD",
    "image_case_url": "https://medpix.nlm.nih.gov/case?id=1",
    "phrase_type": "freeform",
    "question": "Is the brain normal?",
    "question_type": "PRES",
    "answer": "Yes",
    "answer_type": "CLOSED",
}
RAD_ROWS = [RAD_ROW, RAD_ROW | {"image_name": "synpic9.jpg", "phrase_type": "test_freeform"}]
RAD_JSON = "VQA_RAD Dataset Public.json"


def put(path: Path, content: bytes | str | list | dict) -> None:
    """Writes a file: bytes, a text, or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, (list, dict)) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def jpeg(number: int, mode: str = "RGB") -> bytes:
    return encoded(noise(mode, (60 + number % 9, 50)), "JPEG")


def vqa_rad(folder: Path) -> None:
    put(folder / RAD_JSON, RAD_ROWS)
    for number in (7, 9):
        put(folder / f"VQA_RAD Image Folder/synpic{number}.jpg", jpeg(number))


def vqa_med(folder: Path) -> None:
    vqa_med_files.write(folder)
    for path in sorted(folder.rglob("*.jpg")):
        put(path, jpeg(int(path.stem.removeprefix("synpic"))))


def roco(folder: Path) -> None:
    for number, split in ((1, "train"), (2, "train"), (3, "test")):
        place = folder / "data" / split / "radiology"
        place.mkdir(parents=True, exist_ok=True)
        name = f"ROCO_{number:05d}"
        for file, line in (
            ("captions", f"{name}\t Chest film {number}."),
            ("licences", f"{name},PMC{number}_fig{number}.jpg,CC BY"),
            ("keywords", f"{name}\t\tchest\tfilm"),
        ):
            with (place / f"{file}.txt").open("a") as opened:
                opened.write(f"{line}\n")
        put(place / f"images/{name}.jpg", jpeg(number))


def mimic_cxr(folder: Path) -> None:
    jpg, texts = folder / "mimic-cxr-jpg/2.0.0", folder / "mimic-cxr/2.0.0"
    studies = [(10000032, 50000000 + i, f"{i:02d}aa", ("train", "test")[i % 2]) for i in range(4)]
    texts.mkdir(parents=True)
    with zipfile.ZipFile(texts / "mimic-cxr-reports.zip", "w") as archive:
        for patient, study, _, _ in studies:
            archive.writestr(f"files/p10/p{patient}/s{study}.txt", " IMPRESSION: Clear.\n")
    for patient, study, name, _ in studies:
        put(jpg / f"files/p10/p{patient}/s{study}/{name}.jpg", jpeg(study, "L"))
    metadata = ["dicom_id,subject_id,study_id,ViewPosition", *(f"{n},{p},{s},PA" for p, s, n, _ in studies)]
    split = ["dicom_id,split", *(f"{n},{of}" for _, _, n, of in studies)]
    put(jpg / "mimic-cxr-2.0.0-metadata.csv", "\n".join(metadata) + "\n")
    put(jpg / "mimic-cxr-2.0.0-split.csv.gz", gzip.compress(("\n".join(split) + "\n").encode()))


def mtpt(folder: Path) -> None:
    for split, part in (("train", "trainset"), ("test", "valset")):
        put(folder / f"chest_xray_{part}.txt", f"{split}_0.jpg 0\n{split}_1.jpg 1\n")
        for i in range(2):
            put(folder / f"chest_xray/{split}_{i}.jpg", jpeg(i, "L"))
        put(folder / f"brain_{split}.json", [{"question": f"Is it {split}?", "label": 1}])


def vqa_v2(folder: Path) -> None:
    for split, year, numbers in (("train", 2014, (3, 9)), ("val", 2014, (42,))):
        questions = [{"question_id": 10 * i, "image_id": i, "question": f"What is {i}?"} for i in numbers]
        answers = {"answers": [{"answer": "yes"}], "multiple_choice_answer": "yes"}
        put(folder / f"v2_OpenEnded_mscoco_{split}{year}_questions.json", {"questions": questions})
        put(folder / f"v2_mscoco_{split}{year}_annotations.json", {"annotations": [q | answers for q in questions]})
        for i in numbers:
            put(folder / f"images/{split}{year}/COCO_{split}{year}_{i:012d}.jpg", jpeg(i))


def easy_vqa(folder: Path) -> None:
    """The package's data folder."""
    for split in ("train", "test"):
        put(folder / split / "questions.json", [["Is it red?", "yes", 0], ["Which shape?", "circle", 1]])
        for i in range(2):
            put(folder / split / f"images/{i}.png", encoded(Image.new("RGB", (64, 64), (90 * i, 0, 9))))


def caption_list(folder: Path) -> None:
    for split, number in (("train", 1), ("test", 2)):
        put(folder / f"{split}.json", [{"image": f"photos/{number}.jpg", "caption": f"Photograph {number}"}])
        put(folder / f"photos/{number}.jpg", jpeg(number))


def coco_captions(folder: Path) -> None:
    for split, year, number in (("train", "train2014", 391895), ("val", "val2014", 9)):
        image = f"{year}/COCO_{year}_{number:012d}.jpg"
        put(folder / f"coco_karpathy_{split}.json", [{"image": image, "caption": "A man rides.", "image_id": "coco_1"}])
        put(folder / image, jpeg(number))


def flickr30k(folder: Path) -> None:
    for split, number in (("train", 10002456), ("test", 36979)):
        image = f"flickr30k-images/{number}.jpg"
        put(folder / f"annotation/flickr30k_{split}.json", [{"image": image, "caption": ["A dog.", "One dog."]}])
        put(folder / "images" / image, jpeg(number))


def pubmed_figures(folder: Path) -> None:
    rest = {"license": "CC BY", "source": "https://pmc.ncbi.nlm.nih.gov", "caption": "Axial CT."}
    articles = ("PMC3", "PMC2")  # of train and of test
    figures = [
        {"file": f"images/{name}_f1.jpg", "article": name, "figure_id": f"{name}_f1"} | rest for name in articles
    ]
    put(folder / "figures.json", figures)
    for number, figure in enumerate(figures):
        put(folder / figure["file"], jpeg(number))


SLAKE_ROW = {
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is this?",
    "answer": "MRI",
    "q_lang": "en",
    "answer_type": "OPEN",
    "content_type": "Modality",
}


def slake(folder: Path) -> None:
    for number, name in enumerate(("train", "validate", "test")):
        put(folder / f"{name}.json", [SLAKE_ROW | {"img_name": f"xmlab{number}/source.jpg"}])
        put(folder / f"imgs/xmlab{number}/source.jpg", jpeg(number))


def path_vqa(folder: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        row = {"image": f"{split}_0000", "question": "where is the nucleus?", "answer": "yes"}
        put(folder / f"qas/{split}/{split}_qa.pkl", pickle.dumps([row]))
        put(folder / f"images/{split}/{split}_0000.jpg", jpeg(number))


@dataclass(frozen=True)
class DataSet:
    """A builder, the configs of its texts and of its images, and what each image's file is called."""

    write: object
    texts: str
    images: str
    pictures: tuple[str, str]
    """Files of two images, of two splits where images have splits."""
    ending: str = ".jpg"


JPG = "mimic-cxr-jpg/2.0.0/files/p10/p10000032"
DATA_SETS = {
    "vqa_rad": DataSet(vqa_rad, "questions", "images", tuple(f"VQA_RAD Image Folder/synpic{i}.jpg" for i in (7, 9))),
    "vqa_med": DataSet(
        vqa_med,
        "questions_2019",
        "images_2019",
        (
            f"{vqa_med_files.TRAIN_19}/Train_images/synpic1.jpg",
            "VQAMed2019Test/VQAMed2019_Test_Images/synpic5.jpg",
        ),
    ),
    "roco": DataSet(
        roco, "captions", "images", ("data/train/radiology/images/ROCO_00001.jpg", "data/test/radiology/images/ROCO_00003.jpg")
    ),
    "mimic_cxr": DataSet(
        mimic_cxr,
        "frontal_reports",
        "frontal_images",
        (f"{JPG}/s50000000/00aa.jpg", f"{JPG}/s50000001/01aa.jpg"),
    ),
    "mtpt": DataSet(mtpt, "brain_questions", "chest", ("chest_xray/train_0.jpg", "chest_xray/test_1.jpg")),
    "vqa_v2": DataSet(
        vqa_v2,
        "questions",
        "images",
        ("images/train2014/COCO_train2014_000000000003.jpg", "images/val2014/COCO_val2014_000000000042.jpg"),
    ),
    "slake": DataSet(slake, "questions", "images", tuple(f"imgs/xmlab{i}/source.jpg" for i in (0, 1))),
    "path_vqa": DataSet(
        path_vqa, "questions", "images", tuple(f"images/{s}/{s}_0000.jpg" for s in ("train", "test"))
    ),
    "caption_list": DataSet(caption_list, "captions", "images", ("photos/1.jpg", "photos/2.jpg")),
    "coco_captions": DataSet(
        coco_captions,
        "captions",
        "images",
        ("train2014/COCO_train2014_000000391895.jpg", "val2014/COCO_val2014_000000000009.jpg"),
    ),
    "flickr30k": DataSet(
        flickr30k, "captions", "images", tuple(f"images/flickr30k-images/{i}.jpg" for i in (10002456, 36979))
    ),
    "pubmed_figures": DataSet(
        pubmed_figures, "captions", "images", tuple(f"images/{name}_f1.jpg" for name in ("PMC3", "PMC2"))
    ),
    "easy_vqa": DataSet(easy_vqa, "questions", "images", ("train/images/0.png", "test/images/1.png"), ".png"),
}  # fmt: skip


def built(data_set: str, folder: Path, config: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """Builds a data set's config from `manual` in a folder, and returns its records by split."""
    folders = {"manual_dir": folder / "manual", "data_dir": folder / "data", "overwrite": True}
    splits = build(data_set, config, **folders, **options)["splits"]
    read = {split: Records(f"{data_set}/{config}", split, folder=str(folder / "data")) for split in splits}
    return {split: each.read(range(len(each))) for split, each in read.items()}
