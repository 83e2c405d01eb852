"""`python -m jaxvqa.ask`: one question, many, a table, a conversation, a map, and what cannot be asked."""

import io
import json

import pytest
from PIL import Image

from jaxvqa.ask import __main__ as command
from jaxvqa.ask.model import load
from jaxvqa.errors import DataError


@pytest.fixture(scope="module")
def asked(asked_run, tmp_path_factory):
    """A model, its folder, and a folder with two images."""
    model = load(asked_run("cmsa"))
    folder = tmp_path_factory.mktemp("images")
    for name, example in zip(("a.png", "b.png"), model.run.data.split("val").read([0, 10]), strict=True):
        (folder / name).write_bytes(example["image"])
    return model, asked_run("cmsa"), folder


@pytest.fixture(autouse=True)
def one_model(asked, monkeypatch):
    """Programs are compiled once for all commands."""
    monkeypatch.setattr(
        command, "load", lambda folder, predict: asked[0] if folder == asked[1] else load(folder, predict)
    )
    monkeypatch.setattr(command, "use_compilation_cache", lambda folder: None)


def ask(asked, *words):
    return command.main([f"--workdir={asked[1]}", *map(str, words)])


def test_one_question_has_its_best_answers_and_the_time(asked, capsys):
    model, _, folder = asked
    assert ask(asked, folder / "a.png", "is there a mass?") == 0
    *lines, seconds = capsys.readouterr().out.splitlines()
    expected = model.answer(folder / "a.png", "is there a mass?").answers
    assert lines == [f"{100 * p:6.1f} %  {text}" for text, p in expected]
    assert seconds.endswith(" s")


def test_a_map_is_drawn(asked, capsys, tmp_path):
    assert ask(asked, asked[2] / "a.png", "is there a mass?", f"--explain={tmp_path / 'deep/out.png'}") == 0
    with Image.open(tmp_path / "deep/out.png") as drawn:
        assert drawn.size[0] > 500
    assert ask(asked, asked[2] / "a.png", "is there a mass?", f"--explain={tmp_path / 'out.mp3'}") == 2
    assert "the ending is '.mp3'; choose one of " in capsys.readouterr().err


def test_a_folder_and_several_questions_are_asked_each_about_each(asked, capsys, tmp_path):
    questions = ["is there a mass?", "which plane?"]
    assert ask(asked, asked[2], *questions) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    names = [str(asked[2] / name) for name in ("a.png", "b.png")]
    assert [row[:2] for row in rows] == [[name, question] for name in names for question in questions]
    assert rows[1][2] == asked[0].answer(names[0], questions[1]).answer


def test_a_table_becomes_a_file_of_results(asked, capsys, tmp_path):
    table, output = tmp_path / "asked.csv", tmp_path / "out.jsonl"
    images = [asked[2] / name for name in ("b.png", "a.png", "b.png")]
    table.write_text("image,question\n" + "".join(f"{image},is it large?\n" for image in images))
    assert ask(asked, table, f"--output={output}", "--batch_size=2") == 0
    assert capsys.readouterr().out.strip() == str(output)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["image"] for row in rows] == [str(image) for image in images]
    assert rows[0] == rows[2]
    assert rows[1]["answers"][0] == [rows[1]["answer"], rows[1]["probability"]]
    table.write_text(f"image,question\n{images[0]},\nnone.png,why?\n")
    assert ask(asked, table, f"--output={tmp_path / 'other.csv'}") == 2
    message = capsys.readouterr().err
    assert f"{table}, line 2: {images[0]}: the question is missing" in message
    assert f"{table}, line 3: {tmp_path / 'none.png'}: No such file" in message
    assert not (tmp_path / "other.csv").exists()


def test_a_conversation_is_about_one_image(asked, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("is there a mass?\n\nwhich plane?\n"))
    assert ask(asked, asked[2] / "a.png") == 0
    assert capsys.readouterr().out.count(" s\n") == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert ask(asked, asked[2] / "a.png") == 2
    assert "the question is missing. Write it behind the image" in capsys.readouterr().err
    assert ask(asked, asked[2] / "none.png") == 2
    assert "none.png: No such file" in capsys.readouterr().err
    assert ask(asked, asked[2] / "a.png", "--output=a.csv") == 2
    assert "--explain and --output take one" in capsys.readouterr().err


def test_lines_of_standard_input_are_utf_8_with_or_without_a_mark(monkeypatch):
    def lines(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return list(command._lines())

    assert lines(b"\xef\xbb\xbfis it a m\xc3\xa8che?\r\n\r\nwhere?") == ["is it a mèche?", "where?"]
    with pytest.raises(DataError, match=r"standard input is not in UTF-8 \(.*0xff"):
        lines(b"\xff\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["is there a mass?"], "no image: name a file"),
        (["{folder}", "why?", "--explain=a.png", "--batch_size=0"], "--batch_size=0: expected at least 1"),
        (["{folder}", "why?", "--explain=a.png"], "--explain=a.png draws one answer, and 2 are asked for"),
        (["{folder}", "--output=a.txt", "why?"], "--output=a.txt: the ending is '.txt': choose .csv or .jsonl"),
        (["{folder}/none.csv", "{folder}/a.png"], "none.csv holds images and questions"),
        (["{folder}", "why?", "--regions={folder}/a.png"], "is one file of regions, for 2 images"),
        (["{folder}"], "a.png: the question is missing"),
        (["{folder}", "~5 cm or more?", "--explain=a.png"], "--explain=a.png draws one answer, and 2 are asked for"),
        (["~nobody_of_that_name/a.png", "why?"], "no home folder is known of ~nobody_of_that_name"),
    ],
)
def test_what_cannot_be_asked_is_one_message(asked, words, message, capsys):
    assert ask(asked, *(word.format(folder=asked[2]) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(asked, tmp_path, capsys):
    assert command.main([f"--workdir={tmp_path}", str(asked[2] / "a.png"), "why?"]) == 2
    assert f"{tmp_path} holds no checkpoints" in capsys.readouterr().err
