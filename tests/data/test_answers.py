"""The answer rules against the golden cases, and reading of answer lists."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.data import answers
from jaxvqa.data.answers import ANSWER_RULES, AnswerList, normalise_answer
from jaxvqa.errors import DataError
from jaxvqa.metrics.vqa import fair_to_few, question_accuracy

CASES = json.loads((Path(__file__).parents[1] / "golden/rwsan/text_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["answers"], ids=lambda case: repr(case["raw"][:20]))
def test_normalise_answer(case):
    assert normalise_answer(case["raw"]) == case["training"]


CONTRACTIONS = """
    aint ain't|hed he'd|notve not've|somebodyll somebody'll|thats that's|maam ma'am|oclock o'clock|twas 'twas|yall y'all
    couldn'tve couldn't've|couldnt've couldn't've|yall'd've y'all'd've|y'alld've y'all'd've|y'all'dve y'all'd've
    y'allll y'all'll|ow's'at 'ow's'at|'ow'sat 'ow's'at|'ows'at 'ow's'at|somebody'd somebodyd|let's let's|wed wed
    were were|shell shell|its its|ill ill|id id|id've id've|im im|cant've cant've|therere there're|mustnt mustn't
"""


@pytest.mark.parametrize("pair", [p.split() for line in CONTRACTIONS.split("\n") for p in line.split("|") if p.strip()])
def test_contractions(pair):
    raw, expected = pair
    assert normalise_answer(raw) == expected


# The words that docs/originals/rwsan.md, section 4.6, lists as getting the apostrophe or apostrophes they lack.
LACKING = """
    aint arent cant couldve couldnt didnt doesnt dont hadnt hasnt havent hed hes howd howll hows isnt itd itll mightnt
    mightve mustnt mustve neednt notve oughtnt shant shouldve shouldnt somebodyll somebodys someoned someonell someones
    somethingd somethingll thats thered therere theres theyd theyll theyre theyve wasnt weve werent whatll whatre whats
    whatve whens whered wheres whereve whod wholl whos whove whyll whyre whys wont wouldve wouldnt youd youll youre youve
    maam oclock twas yall
    couldn'tve couldnt've hadnt've hadn'tve hed've he'dve itd've it'dve mightnt've mightn'tve shed've she'dve shouldnt've
    shouldn'tve somebodyd've somebody'dve someoned've someone'dve somethingd've something'dve thered've there'dve
    theyd've they'dve wed've we'dve whod've who'dve wouldnt've wouldn'tve yall'll y'allll yall'd've y'alld've y'all'dve
    youd've you'dve ow's'at 'ows'at 'ow'sat
""".split()  # noqa: SIM905


def test_contractions_are_those_of_the_spec():
    for word in LACKING:
        result = normalise_answer(word)
        assert result.count("'") == word.count("'") + 1
        assert result.replace("'", "") == word.replace("'", "")
    assert len(set(LACKING)) + 1 == len(answers._CONTRACTIONS)  # and somebody'd; nothing else is changed


@pytest.mark.parametrize("case", CASES["answer_dictionary"])
def test_build(case):
    raw = [answer for answer, repeats in case["runs"] for _ in range(repeats)]
    answer_list = AnswerList.build(raw, min_count=9)
    assert answer_list.index == case["ans_to_ix"]
    assert {str(i): answer for i, answer in enumerate(answer_list.answers)} == case["ix_to_ans"]


@pytest.mark.parametrize("case", CASES["soft_scores"])
def test_soft_scores(case):
    answer_list = AnswerList(tuple(case["dictionary"]))
    scores = answer_list.soft_scores(case["human_answers"])
    assert scores.dtype == np.float32
    assert scores.shape == (len(answer_list),)
    found = {answer: float(score) for answer, score in zip(answer_list.answers, scores, strict=True) if score}
    assert found == {answer: float(np.float32(score)) for answer, score in case["scores"].items()}


@pytest.mark.parametrize(
    ("rule", "human", "expected"),
    [
        ("soft", ["yes"], [1, 0]),
        ("soft", ["yes", "no"], [1 / 2, 1 / 2]),
        ("soft", ["yes", "yes", "blue"], [2 / 3, 0]),
        ("soft", ["yes", "no", "no", "no"], [1 / 4, 3 / 4]),
        ("soft", ["yes"] * 4, [1, 0]),
        ("soft", ["yes"] * 3 + ["no"] * 4, [6 / 7, 1]),
        ("soft", ["yes"] * 2 + ["no"] * 3 + ["blue"] * 5, [0.6, 0.9]),
        ("soft", ["yes"] * 12, [1, 0]),
        ("counts", ["yes"], [0.3, 0]),
        ("counts", ["yes", "yes", "no"], [0.6, 0.3]),
        ("exact", ["yes", "no"], [1, 1]),
        *((rule, [], [0, 0]) for rule in ANSWER_RULES),
    ],
)
def test_targets_by_rule_and_number_of_annotators(rule, human, expected):
    scores = AnswerList(("yes", "no")).scores(human, rule)
    np.testing.assert_allclose(scores, np.float32(expected), rtol=1e-6)
    # Where the target is an accuracy, it is that of the answer itself.
    if rule == "soft" and human:
        accuracies = [fair_to_few(question_accuracy)(answer, human) for answer in ("yes", "no")]
        np.testing.assert_allclose(scores, accuracies, rtol=1e-6)


def test_exact_scores():
    answer_list = AnswerList(("yes", "2", "red"))
    assert answer_list.exact_scores(["Two"]).tolist() == [0, 1, 0]
    assert answer_list.exact_scores(["blue"]).tolist() == [0, 0, 0]
    assert answer_list.exact_scores([]).tolist() == [0, 0, 0]


def test_from_file_reads_both_forms(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["net", "", "café"]))
    assert AnswerList.from_file(path).answers == ("net", "", "café")
    path.write_text(json.dumps([{"": 1, "net": 0}, {"1": "", "0": "net"}]))
    assert AnswerList.from_file(path).answers == ("net", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"net": 0}', "found dict of another form"),
        ("[1, 2]", "found list of another form"),
        ('[{"net": 0}, {"1": "net"}]', "indices are not 0 to 0"),
        ('[{"net": 1}, {"0": "net"}]', "do not agree"),
        ('["net", "net"]', "more than once: \\['net'\\]"),
    ],
)
def test_from_file_names_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        AnswerList.from_file(path)


def test_from_file_missing(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        AnswerList.from_file(tmp_path / "answer_dict.json")
