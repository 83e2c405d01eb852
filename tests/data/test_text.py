"""The text rules against the golden cases, and reading of vector files."""

import gzip
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.data.text import Vocabulary, load_glove, tokenise
from jaxvqa.errors import DataError, UserError

CASES = json.loads((Path(__file__).parents[1] / "golden/rwsan/text_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["tokenise"], ids=lambda case: case["question"][:30])
def test_tokenise(case):
    assert tokenise(case["question"]) == case["tokens"]


@pytest.mark.parametrize("case", CASES["vocabulary"])
def test_vocabulary(case):
    vocabulary = Vocabulary.build(case["questions"])
    assert vocabulary.index == case["token_to_ix"]
    assert len(vocabulary) == len(case["token_to_ix"])
    for encode in case["encode"]:
        ids = vocabulary.encode(encode["question"], encode["max_token"])
        assert ids.dtype == np.int32
        assert ids.tolist() == encode["ids"]


def test_vocabulary_survives_json():
    vocabulary = Vocabulary.build(["What is this?"])
    assert Vocabulary(tuple(json.loads(json.dumps(vocabulary.tokens)))) == vocabulary


def test_vocabulary_rejects_lists_that_are_none():
    with pytest.raises(DataError, match="starts with 'PAD' and 'UNK'"):
        Vocabulary(("what", "is"))
    with pytest.raises(DataError, match="more than once: \\['is'\\]"):
        Vocabulary(("PAD", "UNK", "is", "is"))


VOCABULARY = Vocabulary(("PAD", "UNK", "what", "at", "zzz", "café"))
LINES = [
    ", 9 9 9",
    "what 0.5 -1 2e-3",
    ". . . 7 7 7",
    "at name@domain.com 8 8 8",
    "at 1 2 3",
    "PAD 4 5 6",
    "pad 7 7 7",
    "café 3 2 1",
    "what 6 6 6",
]
EXPECTED = np.array([[4, 5, 6], [0, 0, 0], [0.5, -1, 2e-3], [1, 2, 3], [0, 0, 0], [3, 2, 1]], np.float32)


def write(path: Path, lines: list[str]) -> Path:
    content = ("\n".join(lines) + "\n").encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("glove.txt", content)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz", "glove.zip"])
@pytest.mark.parametrize("width", [None, 3])
def test_load_glove(tmp_path, name, width):
    table = load_glove(write(tmp_path / name, LINES), VOCABULARY, width=width)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, EXPECTED)


@pytest.mark.parametrize("name", ["vectors.vec", "vectors.vec.gz", "vectors.zip"])
@pytest.mark.parametrize("before", [f"{len(LINES)} 3\n", "\ufeff", f"\ufeff{len(LINES)} 3\r\n"], ids=ascii)
def test_a_header_and_a_byte_order_mark_are_no_word(tmp_path, name, before):
    """word2vec's and fastText's text files begin with the counts of words and values."""
    path = write(tmp_path / name, [before + LINES[0], *LINES[1:]])
    np.testing.assert_array_equal(load_glove(path, VOCABULARY, width=3), EXPECTED)


def test_a_header_tells_the_width_and_whether_the_file_is_whole(tmp_path):
    with pytest.raises(DataError, match=r"expected a word and 300 values.*found 3"):
        load_glove(write(tmp_path / "a.vec", [f"{len(LINES)} 3", *LINES]), VOCABULARY, width=300)
    with pytest.raises(DataError, match=r"count of 99 words, and has \d+.*cut off"):
        load_glove(write(tmp_path / "b.vec", ["99 3", *LINES]), VOCABULARY)


def test_load_glove_reports_coverage(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="jaxvqa"):
        load_glove(write(tmp_path / "glove.txt", LINES), VOCABULARY)
    assert "vectors for 4 of 6 words (66.7 %); zero vectors for the rest, such as UNK, zzz" in caplog.text


def test_load_glove_names_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"No GloVe file at .*glove\.840B"):
        load_glove(tmp_path / "nowhere.txt", VOCABULARY)
    with pytest.raises(DataError, match="expected a word and 300 values separated by blanks, found 3"):
        load_glove(write(tmp_path / "narrow.txt", LINES), VOCABULARY, width=300)
    with pytest.raises(DataError, match="line 10: 1 values instead of 3"):
        load_glove(write(tmp_path / "cut.txt", [*LINES, "unseen 1"]), VOCABULARY)
    with pytest.raises(DataError, match="line 10: not a number"):
        load_glove(write(tmp_path / "words.txt", [*LINES, "zzz 1 2 x"]), VOCABULARY)
    with pytest.raises(DataError, match="line 10: a value is not finite"):
        load_glove(write(tmp_path / "nan.txt", [*LINES, "zzz 1 2 nan"]), VOCABULARY)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="is empty"):
        load_glove(tmp_path / "empty.txt", VOCABULARY)


@pytest.mark.parametrize("name", ["glove.txt.gz", "glove.zip"])
def test_load_glove_notices_a_broken_download(tmp_path, name):
    path = write(tmp_path / name, [f"w{i} {i} {i * i} {i**3}" for i in range(1000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cut off or damaged"):
        load_glove(path, VOCABULARY)


def test_load_glove_asks_which_file_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "glove.6B.zip", "w") as archive:
        archive.writestr("glove.6B.50d.txt", "a 1 2")
        archive.writestr("glove.6B.100d.txt", "a 1 2 3")
    with pytest.raises(UserError, match="holds 2 text files"):
        load_glove(tmp_path / "glove.6B.zip", VOCABULARY)
