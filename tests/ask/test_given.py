"""Tables of images and questions, folders, and files of regions: what is read, and what is wrong with them."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxvqa.ask import given, results
from jaxvqa.ask.model import Answer
from jaxvqa.errors import ConfigError, DataError


def test_a_table_of_each_kind_is_read(tmp_path):
    (tmp_path / "a.csv").write_text(
        '\ufeffid,Image,question\n1,x.png,"a mass, or a cyst?"\n\n2,sub/y.png,\n', encoding="utf-8"
    )
    (tmp_path / "a.jsonl").write_text(
        '{"image": "x.png", "question": "why?", "id": 3}\n{"image": "/y.png", "regions": "y.npz"}\n'
    )
    columns = {"Image": ["x.png", "/y.png"], "question": ["why?", None], "id": [b"3", None], "regions": [None, "y.npz"]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = given.read_table(tmp_path / "a.csv")
    assert (first.image, first.question) == (tmp_path / "x.png", "a mass, or a cyst?")
    assert (second.image, second.question, second.regions) == (tmp_path / "sub/y.png", "", "")
    assert second.where == f"{tmp_path / 'a.csv'}, line 4"
    for name in ("a.jsonl", "a.parquet"):
        first, second = given.read_table(tmp_path / name)
        assert (first.image, first.question) == (tmp_path / "x.png", "why?")
        assert (str(second.image), second.question, second.regions) == ("/y.png", "", tmp_path / "y.npz")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.csv",
            "image,question\n,why?\nx.png,a,b\n,\n",
            ["line 2: no image", "line 3: 3 values for 2", "line 4: no image"],
        ),
        (
            "a.csv",
            "imag,question\nx.png,why?\n",
            ["the columns imag, question; expected image", "Did you mean 'imag'?"],
        ),
        ("a.csv", "", ["the columns (none)"]),
        ("a.csv", "image,question\n", ["has no row"]),
        (
            "a.jsonl",
            '{"image": 3}\n{"question": "why?"}\n[}\n',
            ["line 1", "image: expected text", "image: missing", "line 3"],
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_one_message(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        given.read_table(tmp_path / name)
    for word in words:
        assert word in str(caught.value)


def test_a_folders_images_are_asked_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "c.tiff", "notes.txt", ".hidden.png", "t.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in given.images_in(tmp_path)] == ["a.JPG", "b.png", "c.tiff"]
    with pytest.raises(DataError, match=r"d\.png holds no image"):
        given.images_in(tmp_path / "d.png")


def test_regions_go_with_their_images(tmp_path):
    for name in ("x.npz", "y.png.npz"):
        (tmp_path / name).write_bytes(b"")
    images = [tmp_path / "x.png", tmp_path / "y.png"]
    found = given.pairs(images, ["why?", "where?"], tmp_path)
    assert [(one.image.name, one.question, one.regions.name) for one in found] == [
        ("x.png", "why?", "x.npz"),
        ("x.png", "where?", "x.npz"),
        ("y.png", "why?", "y.png.npz"),
        ("y.png", "where?", "y.png.npz"),
    ]
    assert given.pairs(images[:1], [], tmp_path / "x.npz")[0].regions == tmp_path / "x.npz"
    with pytest.raises(DataError, match="one file of regions, for 2 images"):
        given.pairs(images, [], tmp_path / "x.npz")
    with pytest.raises(DataError, match=r"no z\.png\.npz or z\.npz") as caught:
        given.pairs([tmp_path / "z.png", *images, tmp_path / "v.png"], [], tmp_path)
    assert "v.png.npz" in str(caught.value)


ANSWERS = [Answer("a, b.png", 'is it "large"?', (("yes", 0.75), ("no", 0.125)), 0.1), Answer("c.png", "", (), 0.1)]


def test_results_are_written_in_the_order_of_the_questions(tmp_path):
    results.write(tmp_path / "deep/out.csv", ANSWERS)
    assert (tmp_path / "deep/out.csv").read_text() == (
        'image,question,answer,probability\n"a, b.png","is it ""large""?",yes,0.750000\nc.png,,,0.000000\n'
    )
    results.write(tmp_path / "out.jsonl", ANSWERS)
    first, second = (tmp_path / "out.jsonl").read_text().splitlines()
    assert '"answers": [["yes", 0.75], ["no", 0.125]]' in first
    assert '"answer": ""' in second
    assert results.text_of(ANSWERS[0]) == "  75.0 %  yes\n  12.5 %  no\n0.10 s"
    assert results.text_of(ANSWERS[1]) == "no answer\n0.10 s"
    with pytest.raises(ConfigError, match=r"the ending is '.cvs': choose .csv or .jsonl. Did you mean '.csv'"):
        results.check_output(tmp_path / "out.cvs")
