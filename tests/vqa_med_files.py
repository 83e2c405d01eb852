"""Files of a tiny VQA-Med release of three years, with the places and oddities of the real ones."""

from pathlib import Path

from PIL import Image

TRAIN_19, VAL_19 = "ImageClef-2019-VQA-Med-Training", "ImageClef-2019-VQA-Med-Validation"
SETS_20 = "VQA-Med-2020-Task1-VQAnswering-TrainVal-Sets/VQAMed2020-VQAnswering-"
VAL_21, TEST_21 = "VQA-Med-2021-Tasks-1-2-NewValidationSets", "Task1-VQA-2021-TestSet-w-GroundTruth"

FILES = {
    f"{TRAIN_19}/All_QA_Pairs_train.txt": "synpic1|what plane?|axial\nsynpic1|what is seen?|spine, \u00a0cyst\n"
    "synpic2|is it normal?|yes\nsynpic2|which organ?|skull and contents\nsynpic3|what is seen?|gout\n",
    f"{TRAIN_19}/QAPairsByCategory/C1_Modality_train.txt": "synpic9|not in the list?|ct\n",
    f"{TRAIN_19}/QAPairsByCategory/C2_Plane_train.txt": "synpic1|what plane?|axial\n",
    f"{TRAIN_19}/QAPairsByCategory/C3_Organ_train.txt": "synpic2|which organ?|skull and contents\n",
    f"{TRAIN_19}/QAPairsByCategory/C4_Abnormality_train.txt": "synpic1|what is seen?|spine, \u00a0cyst\n"
    "synpic2|is it normal?|yes\nsynpic3|what is seen?|gout\n",
    f"{VAL_19}/All_QA_Pairs_val.txt": "synpic4|what is seen?|acl tear\n",
    **{f"{VAL_19}/QAPairsByCategory/C{i}_{name}_val.txt": "synpic4|what is seen?|acl tear\n" for i, name in
       enumerate(("Modality", "Plane", "Organ", "Abnormality"), start=1)},
    "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt": "synpic5|organ|which?|lung (left)#heart\n",
    f"{SETS_20}TrainingSet/VQAnswering_2020_Train_QA_pairs.txt": "synpic11|is this normal?|No\n"
    "synpic12|what is seen?|gout\nsynpic13|what is seen?|spine, \u00a0cyst\nsynpic14|what is seen?|gout\n",
    f"{SETS_20}ValidationSet/VQAnswering_2020_Val_QA_Pairs.txt": "synpic15|what is seen?|Gout\n",
    "VQAMed2020-Task1-VQAnswering-Test-Questions.txt": "synpic16|what is seen?\nsynpic17|is it normal?\n",
    "VQAMed2020-Task1-VQAnswering-Test-ReferenceAnswers.txt": "synpic17|yes\nsynpic16| ulcer |gout\n",
    f"{VAL_21}/VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt": "synpic21|what is seen?|spine, \u00a0cyst\n",
    f"{TEST_21}/Task1-VQA-2021-TestSet-Questions.txt": "synpic22|what is seen in the mri?\nsynpic23|what is seen?\n",
    f"{TEST_21}/Task1-VQA-2021-TestSet-ReferenceAnswers.txt": "synpic22|ulcer|gout|ulcers\nsynpic23|ulcer\n",
}  # fmt: skip
FOLDERS = {
    f"{TRAIN_19}/Train_images": (1, 2, 3),
    f"{VAL_19}/Val_images": (4,),
    "VQAMed2019Test/VQAMed2019_Test_Images": (5,),
    f"{SETS_20}TrainingSet/VQAnswering_2020_Train_images": (11, 12, 13, 14),
    f"{SETS_20}ValidationSet/VQAnswering_2020_Val_images": (15,),
    "somewhere/else": (16, 17, 22, 23),
    f"{VAL_21}/ImageCLEF-2021-VQA-Med-New-Validation-Images": (21,),
}


def write(folder: Path) -> None:
    """Writes texts and pictures into a folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    for name, numbers in FOLDERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            Image.new("RGB", (number + 4, 5), (10 * number, 0, 0)).save(folder / name / f"synpic{number}.jpg")
