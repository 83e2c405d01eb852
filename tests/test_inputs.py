"""Paths and files that a user gives."""

import json
from typing import Any

import pytest

from jaxvqa import inputs
from jaxvqa.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_home(home):
    assert inputs.user_path("~/runs/x") == home / "runs/x"
    assert inputs.user_path("~") == home
    assert inputs.expand_home("~root").startswith("/")


@pytest.mark.parametrize("text", ["gpt2", "openai/clip~x", "a/~/b", "./~/x", "/a~b", ""])
def test_other_texts_stay(text):
    assert inputs.expand_home(text) == text


@pytest.mark.parametrize(("text", "words"), [("", "empty"), ("~nobody_of_that_name/x", "no home folder is known")])
def test_paths_that_mean_nothing(text, words):
    with pytest.raises(ConfigError, match=words):
        inputs.user_path(text)


def test_a_folder_that_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody_here").mkdir()
    assert inputs.expand_home("~nobody_here/x") == "~nobody_here/x"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_marks_and_line_ends(mark, end, tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(mark + end.join([b"caf\xc3\xa9", b"two", b""]))
    assert inputs.read_text(file) == "café\ntwo\n"


def test_a_pointer_of_git_lfs_is_called_so(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for read in (inputs.read_text, inputs.read_json):
        with pytest.raises(DataError, match=r"a\.json is a pointer of Git LFS, not the list: run `git lfs pull`"):
            read(file, "the list")


VQA = {"questions": [{"question": str, "image_id?": int}]}
FAULTS = {
    "nothing": (None, Any, "No such file"),
    "cut off": (b'{"a": [1, 2', Any, "is not JSON"),
    "empty": (b"", Any, "is not JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), Any, "byte 0 is 0xff"),
    "Latin-1": (b'["caf\xe9"]', Any, "not in UTF-8"),
    "half a pair": (b'["\\ud800"]', Any, "surrogates"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, Any, "nested too deeply"),
    "digits": (b"[" + b"9" * 5000 + b"]", Any, "is not JSON"),
    "a list": (b"[1]", {str: int}, "the whole: expected an object, got [1]"),
    "a map": (b"{}", [str], "the whole: expected a list, got {}"),
    "null": (b'["a", null]', [str], "[1]: expected text, got null"),
    "inner": (b'{"a": 1, "b": "2"}', {str: int}, "['b']: expected a whole number, got \"2\""),
    "true": (b"[true]", [int], "[0]: expected a whole number, got true"),
    "NaN": (b"[NaN]", [float], "[0]: expected a number, got NaN"),
    "inf": (b"[1e999]", [float], "[0]: expected a number"),
    "a key": (b'{"question": []}', VQA, 'questions: missing; the keys are ["question"]'),
    "deeper": (b'{"questions": [{"question": "a"}, {"question": 1}]}', VQA, "questions[1].question: expected text"),
    "may be absent": (b'{"questions": [{"question": "a", "image_id": "b"}]}', VQA, "questions[0].image_id: expected"),
    "one of": (b"[1, null]", [(str, int)], "[1]: expected text or a whole number, got null"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_json(case, tmp_path):
    content, form, words = FAULTS[case]
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as error:
        inputs.read_json(file, "the made-up list", form)
    assert words in str(error.value)
    assert str(file) in str(error.value)
    assert "xpected the made-up list" in str(error.value)


def test_all_faults_at_once(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([1, "a", None, *range(100)]))
    with pytest.raises(DataError) as error:
        inputs.read_json(file, "texts", [str])
    assert "[0]:" in str(error.value)
    assert "[2]:" in str(error.value)
    assert len(str(error.value).splitlines()) == 12  # not a hundred


@pytest.mark.parametrize(
    ("content", "form"),
    [
        ([], [str]),
        ({"a": [1, 2]}, {str: [int]}),
        ({"questions": [{"question": "q", "more": 1}]}, VQA),
        ([1, 2.5], [float]),
        (["a", 1], [(str, int)]),
        ({"a": 1}, ([str], {str: int})),
        (None, (str, type(None))),
        ([{"a": None}], [{"a": Any}]),
        ("\ud83d\ude00", str),
    ],
)
def test_forms(content, form, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert inputs.read_json(str(file), "it", form) == json.loads(json.dumps(content))


def test_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1}\r\n\r\n{"id": 2}\n{"id"')
    assert inputs.read_json_lines(file, "rows", {"id": int}, cut=True) == [{"id": 1}, {"id": 2}]
    with pytest.raises(DataError, match=r"rows.jsonl:4 is not JSON"):
        inputs.read_json_lines(file, "rows", {"id": int})
    file.write_text('{"id": 1}\n{"id": "a"}\n{"id": 2}')
    with pytest.raises(DataError, match=r"rows.jsonl:2 .*\n.*id: expected a whole number"):
        inputs.read_json_lines(file, "rows", {"id": int}, cut=True)
