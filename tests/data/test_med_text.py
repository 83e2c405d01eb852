"""VQA-Med's text files and the list of diseases."""

import json
from pathlib import Path

import pytest

from jaxvqa.data import med_text
from jaxvqa.data.med_text import DiseaseList
from jaxvqa.errors import DataError
from jaxvqa.golden import runner

GOLDEN = Path(__file__).parents[1] / "golden" / "sysu_hcp"


def test_the_originals_reading():
    rows = runner.run(GOLDEN / "reading.json")
    assert [(row.output, row.note) for row in rows] == [("files", "4/4"), ("classes", "2/2"), ("bad", "3/3")]


def test_rows_end_at_line_feeds_only_and_keep_their_texts():
    text = "synpic1|what?|orbit, \u00a0hemangioma\r\n\nsynpic2|what\u2028now?|a\u0085b "
    rows = med_text.parse_rows(text, med_text.PAIRS, "a file")
    assert [row["answer"] for row in rows] == ["orbit, \u00a0hemangioma", "a\u0085b"]
    assert rows[1]["question"] == "what\u2028now?"
    assert med_text.tidy(rows[0]["answer"]) == "orbit, hemangioma"


def test_all_bad_rows_are_named():
    text = "a|b|c\nbad\n" + "x|y\n" * 12 + "a|b|c|d\n"
    with pytest.raises(DataError) as caught:
        med_text.parse_rows(text, med_text.PAIRS, "pairs.txt")
    message = str(caught.value)
    for part in ("pairs.txt: expected lines image|question|answer; 14 fault(s)", "line 2: 1 columns", "and 4 more"):
        assert part in message


def test_references_take_any_number_of_answers():
    rows = med_text.parse_rows("i1|a\ni2|a|b|c d\n", med_text.REFERENCES, "references")
    assert [med_text.reference_answers(row) for row in rows] == [("a",), ("a", "b", "c d")]
    with pytest.raises(DataError, match="line 1: 1 columns"):
        med_text.parse_rows("i1\n", med_text.REFERENCES, "references")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no", ("no",)),
        ("ct w/contrast (iv)", ("ct w/contrast (iv)", "ct w/contrast")),
        ("tumor#multi-cystic mass", ("tumor", "multi-cystic mass")),
        ("(seronegative) spondylarthropathies#x", ("(seronegative) spondylarthropathies", "x", "spondylarthropathies")),
        ("odd )(", ("odd )(",)),
    ],
)
def test_alternatives(answer, expected):
    assert med_text.alternatives(answer) == expected


def test_classes_are_the_answers_as_they_stand():
    diseases = DiseaseList.build(["No", "b", "a", "YES", "b", "B", "a."])
    assert diseases.answers == ("b", "a", "B", "a.")
    assert [diseases.label(name) for name in ("a", "B", "a.", "yes", "c")] == [1, 2, 3, -1, -1]
    with pytest.raises(DataError, match="more than once"):
        DiseaseList(("a", "b", "a"))


def test_garbled_names_are_found_and_mended():
    garbled = "hodgkin’s\u00a0disease".encode().decode("gbk")
    assert garbled == "hodgkin鈥檚聽disease"
    assert med_text.repaired(garbled) == "hodgkin’s disease"
    assert med_text.repaired("zenker's") == "zenker's"
    assert med_text.repaired("naïve – é") == "naïve – é"
    diseases = DiseaseList(("x", garbled))
    assert diseases.label("hodgkin’s\u00a0disease") == diseases.label("hodgkin’s disease") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "0 to n - 1"),
        ('{"a": 0, "b": 2}', "0 to n - 1"),
        ('{"a": 0, "b": 0}', "0 to n - 1"),
    ],
)
def test_damaged_lists(tmp_path, content, message):
    path = tmp_path / "disease2id.json"
    with pytest.raises(DataError, match="No such file"):
        DiseaseList.from_file(path)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        DiseaseList.from_file(path)
    path.write_text(json.dumps({"b": 1, "a": 0}))
    assert DiseaseList.from_file(path).answers == ("a", "b")


def test_the_originals_list(jaxvqa_data):
    diseases = DiseaseList.from_file(jaxvqa_data / "reference/sysu/disease2id.json")
    assert len(diseases) == 330
    mended = [i for i, name in enumerate(diseases.answers) if med_text.repaired(name) != med_text.tidy(name)]
    assert mended == [5, 167, 193, 214, 234, 274]
    # Mending joins no two classes, so that every name, mended or not, keeps its own id.
    assert [diseases.label(med_text.repaired(name)) for name in diseases.answers] == list(range(330))
