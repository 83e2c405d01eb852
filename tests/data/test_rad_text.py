"""VQA-RAD's text rules against the golden cases, the "tf-idf" matrix against its definition, and vector files."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.data.rad_text import (
    MAX_TOKENS,
    RadAnswerList,
    RadVocabulary,
    character_ngrams,
    fasttext_hash,
    load_fasttext,
    load_vectors,
    normalise_rad_answer,
    second_embedding,
    tfidf,
    tokenise,
)
from jaxvqa.errors import DataError
from jaxvqa.golden import runner

GOLDEN = Path(__file__).parents[1] / "golden/cmsa"
CASES = json.loads((GOLDEN / "text_cases.json").read_text())
WORDS = RadVocabulary(tuple(CASES["vqa_rad"]["words"]))
ANSWERS = RadAnswerList(tuple(CASES["vqa_rad"]["answers"]))


# Questions.


@pytest.mark.parametrize("case", CASES["questions"], ids=lambda case: case["question"][:30])
def test_questions(case):
    assert tokenise(case["question"]) == case["tokens"]
    ids = WORDS.encode(case["question"], MAX_TOKENS)
    assert ids.dtype == np.int32
    assert ids.tolist() == case["ids"]


@pytest.mark.parametrize(
    ("question", "tokens"),
    [
        ("Is the patient's T1.5 image... normal? -yes/no", ["is", "the", "patient", "'s", "t15", "image", "normal"]),
        ("X ray, or X-ray ? - Open", ["x-ray", "or", "x-ray"]),
        ("What? - open", ["what"]),
        ("Why? -open", ["why"]),
        (" \tliver \tspleen ", ["liver", "spleen"]),
        ("", []),
    ],
)
def test_tokenise(question, tokens):
    assert tokenise(question) == tokens


def test_vocabulary():
    vocabulary = RadVocabulary.build(["Is this normal?", "Is it a CT?"])
    assert vocabulary.tokens == ("is", "this", "normal", "it", "a", "ct")
    assert len(vocabulary) == vocabulary.pad == 6
    assert vocabulary.encode("A normal heart?", 4).tolist() == [4, 2, 5, 6]  # the last word stands for unknown ones
    assert vocabulary.encode("is is is", 2).tolist() == [0, 0]
    assert RadVocabulary(tuple(json.loads(json.dumps(vocabulary.tokens)))) == vocabulary


def test_vocabulary_rejects_lists_that_are_none():
    with pytest.raises(DataError, match="starts with a word"):
        RadVocabulary.build([])
    with pytest.raises(DataError, match="more than once: \\['is'\\]"):
        RadVocabulary(("is", "it", "is"))


# Answers.


@pytest.mark.parametrize("case", CASES["answers"], ids=lambda case: repr(case["answer"])[:30])
def test_normalise(case):
    assert normalise_rad_answer(case["answer"]) == case["normalised"]


@pytest.mark.parametrize("case", CASES["targets"], ids=lambda case: repr(case["answer"]))
def test_targets(case):
    scores = ANSWERS.exact_scores([str(case["answer"])])
    assert scores.dtype == np.float32
    labels = np.flatnonzero(scores).tolist()
    assert labels == case["labels"]
    assert scores[labels].tolist() == case["scores"]
    assert ANSWERS.label(case["answer"]) == (labels[0] if labels else -1)


def test_answer_list():
    answers = RadAnswerList.build(["Yes", "no", "X-ray", 4, "yes", "the x ray"])
    assert answers.answers == ("yes", "no", "xray", "4")
    assert RadAnswerList.build(["Yes", "no", "X-ray", "yes", "the x ray"], min_count=2).answers == ("yes", "xray")
    assert answers.exact_scores(["An X-ray"]).tolist() == [0, 0, 1, 0]
    assert answers.exact_scores(["chest"]).tolist() == [0, 0, 0, 0]


def test_soft_scores():
    answers = RadAnswerList(("xray", "ct"))
    for count, score in CASES["score_of_count"]:
        np.testing.assert_array_equal(answers.soft_scores(["X-ray"] * count), np.float32([score, 0]))
    np.testing.assert_array_equal(answers.soft_scores(["CT", "mri", "x ray", "ct"]), np.float32([0.3, 0.6]))


# The second embedding table.


def tfidf_by_definition(questions, vocabulary):
    """Section 2.2 step by step on lists."""
    entries, frequency = [], [0] * len(vocabulary)
    for question in questions:
        ids = [vocabulary.index[token] for token in tokenise(question)]
        for word in ids:
            frequency[word] += 1
        for i in range(len(ids)):
            for j in range(i + 1, len(ids)):
                entries += [(ids[i], ids[j]), (ids[j], ids[i])]
    values = [1.0] * len(entries)
    for _, column in entries:
        values[column] /= frequency[column]
    sums = [0.0] * len(vocabulary)
    for (row, _), value in zip(entries, values, strict=True):
        sums[row] += value
    matrix = np.zeros((len(vocabulary), len(vocabulary)))
    for (row, column), value in zip(entries, values, strict=True):
        matrix[row, column] += value / sums[row]
    return matrix


def test_tfidf_of_random_questions():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(15)]
    # Fewer words than pairs: the slip of the original has an index for each word only then.
    questions = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(20)]
    vocabulary = RadVocabulary.build(questions)
    matrix = tfidf(questions, vocabulary)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, tfidf_by_definition(questions, vocabulary), rtol=1e-6, atol=1e-12)
    together = matrix.sum(axis=1)
    np.testing.assert_allclose(together[together > 0], 1, rtol=1e-6)


def test_tfidf_of_next_to_nothing():
    alone = RadVocabulary(("lung",))
    np.testing.assert_array_equal(tfidf(["Lung?"], alone), [[0]])
    np.testing.assert_array_equal(tfidf([], alone), [[0]])
    pair = RadVocabulary(("normal", "lung", "heart"))
    np.testing.assert_array_equal(tfidf(["Normal lung?", "Heart"], pair), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    with pytest.raises(DataError, match="lacks 'spleen' of the question 'Normal spleen"):
        tfidf(["Normal spleen?"], pair)


def test_second_embedding():
    matrix, vectors = np.float32([[0, 1], [0.5, 0.5]]), np.float32([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(second_embedding(matrix, vectors), [[4, 5, 6], [2.5, 3.5, 4.5], [0, 0, 0]])


# Golden cases as a whole.


def test_golden_cases_all_pass(jaxvqa_data):
    rows = runner.run(GOLDEN / "text_cases.json")
    assert len(rows) == 10
    assert all(row.passed for row in rows), rows
    rows = [row for row in runner.run(jaxvqa_data / "reference/metrics/cases.json") if row.output == "vqa_rad"]
    assert [row.passed for row in rows] == [True, True]


def test_golden_cases_without_data(monkeypatch):
    monkeypatch.delenv("JAXVQA_DATA", raising=False)
    rows = runner.run(GOLDEN / "text_cases.json")
    assert all(row.passed is not False for row in rows), rows
    skipped = [row for row in rows if row.passed is None]
    assert {row.output for row in skipped} == {"questions", "targets", "tfidf_vqa_rad", "vqa_rad"}
    assert all("JAXVQA_DATA" in row.note for row in skipped)


# Vector files.


def test_glove(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("lung 1 2\nPAD 9 9\nct 3 4\n")
    vocabulary = RadVocabulary(("ct", "spleen", "lung"))
    for vectors in (load_vectors(path, vocabulary), load_vectors(path, vocabulary, width=2)):
        np.testing.assert_array_equal(vectors, np.float32([[3, 4], [0, 0], [1, 2]]))
    with pytest.raises(DataError, match="expected a word and 300 values"):
        load_vectors(path, vocabulary, width=300)


def test_ngrams():
    assert [n.decode() for n in character_ngrams(b"ab", 1, 3)] == ["<a", "<ab", "a", "ab", "ab>", "b", "b>"]
    assert [n.decode() for n in character_ngrams("éa".encode(), 3, 6)] == ["<éa", "<éa>", "éa>"]
    assert list(character_ngrams(b"lung", 0, 0)) == []


def test_hash():
    assert fasttext_hash(b"") == 2166136261
    assert fasttext_hash(b"a") == 0xE40C292C  # the published FNV-1a value
    # By hand: the byte 0xc3 is -61 as a signed one, so that all upper bits flip.
    assert fasttext_hash(b"\xc3") == ((2166136261 ^ (-61 & 0xFFFFFFFF)) * 16777619) % 2**32


BUCKETS = 11


def write_model(path, *, words=("lung", "größe"), labels=(), lengths=(3, 4), pruned=None, version=12, kind=2, quant=0):
    """Writes a fastText model with random rows, and returns the rows."""
    ngrams = BUCKETS if pruned is None else len(pruned)
    rows = np.random.default_rng(1).standard_normal((len(words) + ngrams, 5)).astype(np.float32)
    content = struct.pack("<ii", 793712314, version)
    content += struct.pack("<12id", 5, 5, 5, 1, 5, 1, 2, kind, BUCKETS, *lengths, 100, 1e-4)
    content += struct.pack(
        "<iiiqq", len(words) + len(labels), len(words), len(labels), 99, -1 if pruned is None else ngrams
    )
    for entries, entry_kind in ((words, 0), (labels, 1)):
        content += b"".join(word.encode() + b"\0" + struct.pack("<qb", 3, entry_kind) for word in entries)
    for bucket, row in (pruned or {}).items():
        content += struct.pack("<ii", bucket, row)
    content += struct.pack("<?qq", quant, *rows.shape) + rows.tobytes()
    content += struct.pack("<?qq", 0, 1, 5) + bytes(20)  # the output side, which is not read
    path.write_bytes(content)
    return rows


def bucket(ngram):
    return fasttext_hash(ngram.encode()) % BUCKETS


def test_fasttext(tmp_path):
    path = tmp_path / "model.bin"
    rows = write_model(path)
    vectors = load_fasttext(path, RadVocabulary(("lung", "lun", "größe", "ö")), width=5)
    pieces = {
        "lung": ["<lu", "<lun", "lun", "lung", "ung", "ung>", "ng>"],
        "lun": ["<lu", "<lun", "lun", "lun>", "un>"],
        "größe": ["<gr", "<grö", "grö", "größ", "röß", "röße", "öße", "öße>", "ße>"],
        "ö": ["<ö>"],
    }
    own = {"lung": [0], "größe": [1]}
    for vector, (word, ngrams) in zip(vectors, pieces.items(), strict=True):
        where = own.get(word, []) + [2 + bucket(ngram) for ngram in ngrams]
        np.testing.assert_allclose(vector, rows[where].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(load_vectors(path, RadVocabulary(("lung",)))[0], vectors[0])


def test_fasttext_without_ngrams(tmp_path):
    path = tmp_path / "model.bin"
    for options in ({"lengths": (0, 0)}, {"version": 11, "kind": 3}, {"pruned": {}}):
        rows = write_model(path, labels=("__label__ct", "spleen"), **options)
        vectors = load_fasttext(path, RadVocabulary(("größe", "spleen")))  # a label is no word
        np.testing.assert_array_equal(vectors, [rows[1], np.zeros(5)])


def test_pruned_fasttext(tmp_path):
    path = tmp_path / "model.bin"
    kept = {bucket("<ct"): 1, bucket("ct>"): 0}  # bucket -> row; the bucket of "<ct>" was dropped
    assert bucket("<ct>") not in kept
    rows = write_model(path, pruned=kept)
    vectors = load_fasttext(path, RadVocabulary(("ct",)))
    np.testing.assert_allclose(vectors[0], rows[2:4].mean(axis=0), rtol=1e-6)


def test_damaged_fasttext(tmp_path):
    path, vocabulary = tmp_path / "model.bin", RadVocabulary(("lung",))
    with pytest.raises(DataError, match=r"No fastText model at .*BioWordVec"):
        load_fasttext(path, vocabulary)
    write_model(path)
    whole = path.read_bytes()
    for length in (5, 30, 80, 100, 125, 150, 300):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut off or damaged"):
            load_fasttext(path, vocabulary)
    path.write_bytes(b"4 5\nlung " + whole)
    with pytest.raises(DataError, match="is not a fastText model"):
        load_fasttext(path, vocabulary)
    write_model(path, quant=1)
    with pytest.raises(DataError, match="quantised"):
        load_fasttext(path, vocabulary)
    write_model(path)
    with pytest.raises(DataError, match="vectors of 5 values, expected 200"):
        load_fasttext(path, vocabulary, width=200)
