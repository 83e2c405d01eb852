"""Captions of compound figures: which mark starts which sub-caption, on made-up captions and on published ones."""

import json
from pathlib import Path

import pytest

from tfds_builders.pubmed_figures.collect import subcaptions
from tfds_builders.pubmed_figures.collect.subcaptions import split_caption

TABLE = [
    ("(A) Axial CT. (B) Coronal CT.", {"A": "Axial CT.", "B": "Coronal CT."}, ""),
    ("MRI of the brain. (a) T1, (b) T2 and (c) FLAIR.", {"a": "T1", "b": "T2", "c": "FLAIR."}, "MRI of the brain."),
    ("Axial (a) and coronal (b) views.", {"a": "Axial", "b": "coronal"}, "views."),
    ("T1 (a), T2 (b) and FLAIR (c, d).", {"a": "T1", "b": "T2", "c": "FLAIR", "d": "FLAIR"}, ""),
    ("An aneurysm (a) compressing the artery (b).", {"a": "An aneurysm", "b": "compressing the artery"}, ""),
    ("(A, B) Axial. (C, D and E) Coronal.", dict.fromkeys("AB", "Axial.") | dict.fromkeys("CDE", "Coronal."), ""),
    ("(A–C) Axial. (D)-(F) Coronal.", dict.fromkeys("ABC", "Axial.") | dict.fromkeys("DEF", "Coronal."), ""),
    ("(A~C) Axial. (D to E) Coronal.", dict.fromkeys("ABC", "Axial.") | dict.fromkeys("DE", "Coronal."), ""),
    ("(A) and (B) Axial. [C] Coronal.", dict.fromkeys("AB", "Axial.") | {"C": "Coronal."}, ""),
    ("a) Kidney; b) Liver.", {"a": "Kidney", "b": "Liver."}, ""),
    ("Views with a) coronal and b) sagittal. Lines show it.", {"a": "coronal", "b": "sagittal."}, "Views with Lines show it."),
    ("Day 14. A: Right tibia. B: Left tibia.", {"A": "Right tibia.", "B": "Left tibia."}, "Day 14."),
    ("A. Wound B. Healed wound", {"A": "Wound", "B": "Healed wound"}, ""),
    ("A, Axial image. B, Coronal image; arrows.", {"A": "Axial image.", "B": "Coronal image; arrows."}, ""),
    ("Brain MRI. a Axial image. b Coronal image.", {"a": "Axial image.", "b": "Coronal image."}, "Brain MRI."),
    ("Panel A shows a CT. Panel B shows an MRI.", {"A": "shows a CT.", "B": "shows an MRI."}, ""),
    ("(A1) One. (A2) Two. (B) Three.", {"A1": "One.", "A2": "Two.", "B": "Three."}, ""),
    ("Left: CT. Right: MRI.", {"left": "CT.", "right": "MRI."}, ""),
    ("CT (top) and MRI (bottom) of a tumour.", {"top": "CT", "bottom": "MRI"}, "of a tumour."),
    ("The left panel shows CT. The right panel shows MRI.", {"left": "shows CT.", "right": "shows MRI."}, ""),
    ("A liver tumourA. Axial CT (arrow) B. axial MRI.", {"A": "Axial CT (arrow)", "B": "axial MRI."}, "A liver tumour"),
    ("Cancer: Oblique (A) and frontal (B) views.", {"A": "Oblique", "B": "frontal"}, "Cancer: views."),
    ("Angiogram. (B) The guide wire.", {"B": "The guide wire."}, "Angiogram."),
    # Letters that refer to panels, and letters that are none.
    ("(A) Plane. (B) Projection of (A). (C) End.", {"A": "Plane.", "B": "Projection of (A).", "C": "End."}, ""),
    ("(A) Rates. Conditions are listed in (B). (B) Others.", {"A": "Rates. Conditions are listed in (B).", "B": "Others."}, ""),
    ("A lesion (C) near the canal.", {}, ""),
    ("Growth of E. coli in group B. Vitamin A. was given.", {}, ""),
    ("The artery (arrow A) fills the vein (arrow B).", {}, ""),
    ("Courtesy of A. B. Smith", {}, ""),
    ("From the proximal (right) to the distal end (left), and beyond.", {}, ""),
    ("Tumour (T), liver (L), bladder (B), aorta (A).", {}, ""),
    ("A single image of a tumour.", {}, ""),
    ("", {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "texts", "common"), TABLE, ids=[row[0][:40] for row in TABLE])
def test_sub_captions(caption, texts, common):
    split = split_caption(caption)
    assert split.texts == texts
    assert split.preamble == common


def test_bold_letters_are_marks():
    caption = "Maps. a Planes b Projection"
    assert split_caption(caption, bold=[(6, 7), (15, 16)]).texts == {"a": "Planes", "b": "Projection"}
    assert split_caption(caption.replace("b ", "of b ")).texts == {}


def test_captions_without_end_stay_whole():
    assert split_caption("(A) x (B) y " * (subcaptions.MOST_CHARACTERS // 10)).texts == {}
    quick = split_caption("(a, " * 20_000)  # no quadratic search
    assert quick.texts == {}


def test_published_captions(jaxvqa_data):
    figures = json.loads((jaxvqa_data / "data/pmc_figures/figures.json").read_text(encoding="utf-8"))
    captioned = [figure for figure in figures if "style" in figure]
    found, wrong = 0, []
    for figure in captioned:
        split = split_caption(figure["caption"] or figure["title"])
        for label, text in figure["subcaptions"].items():
            found += split.texts.get(label) == text
            if split.texts.get(label) != text:
                wrong.append((figure["file"], label, split.texts.get(label)))
        assert set(split.parts) <= set(figure["subcaptions"]), figure["file"]
    assert found >= 25, wrong


def test_real_captions_annotated_by_hand(jaxvqa_data):
    """80 captions of ROCO with letters in them: 47 name panels, in 33 the letters mean something else."""
    annotated = json.loads((Path(__file__).parent / "roco_sub_captions.json").read_text())
    captions = {}
    for path in sorted((jaxvqa_data / "data/roco_captions/data").glob("*/radiology/captions.txt")):
        rows = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
        captions |= {name: text.strip() for name, text in rows}
    right = wrong = 0
    for name, parts in annotated.items():
        found = split_caption(captions[name]).parts
        right += sum(found.get(label) == tuple(span) for label, span in parts.items())
        wrong += sum(list(span) != parts.get(label) for label, span in found.items())
    of = sum(len(parts) for parts in annotated.values())
    print(f"{right} of {of} sub-captions right to the character, {wrong} that are none or wrong")
    assert (len(annotated), of) == (80, 111)
    assert right >= 100
    assert wrong <= 12
