import dataclasses
import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import checkpoints
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import CheckpointError, DataError
from jaxvqa.explain.attention import explain
from jaxvqa.explain.explanation import question_spans
from jaxvqa.explain.overlay import figure
from jaxvqa.explain.pages import write
from jaxvqa.report import examples, page
from jaxvqa.runs import Run
from jaxvqa.tasks.predictions import Prediction
from tests import runs

command = importlib.import_module("jaxvqa.explain.__main__")


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory):
    config = runs.tiny_config(phantoms)
    workdir = tmp_path_factory.mktemp("run")
    task, state = runs.write(config, workdir)
    (workdir / "config.json").unlink()  # only a checkpoint, as of a converted model
    return workdir, config, task, state.params


@pytest.fixture(scope="module")
def explained(run):
    return explain(Run.open(run[0]), positions=[5, 0, 63])


def test_explanations_are_the_models_own_numbers(run, explained):
    _, config, task, params = run
    source = DataSet(config.data).split("val")
    raw = source.read([5, 0, 63])
    examples = raw
    for transform in task.transforms(train=False):
        examples = [transform(example) for example in examples]
    batch = {key: jnp.stack([example[key] for example in examples]) for key in ("regions", "question")}
    logits, out = jax.jit(task.model.apply)({"params": params}, regions=batch["regions"], question=batch["question"])
    for i, (record, e) in enumerate(zip(raw, explained, strict=True)):
        assert e.id == record["question_id"]
        assert e.question == record["question"]
        assert e.annotators == tuple(record["answers"])
        assert e.size == (128, 128)
        assert e.image == record["image"]
        np.testing.assert_array_equal(e.boxes, record["boxes"])
        (one,) = e.maps
        np.testing.assert_allclose(one.weights, out["region_attention"][i, : len(e.boxes)], atol=1e-5)
        np.testing.assert_allclose(e.word_attention, out["question_attention"][i, : len(e.words)], atol=1e-5)
        assert one.weights.sum() == pytest.approx(1, abs=1e-4)
        assert e.word_attention.sum() == pytest.approx(1, abs=1e-4)
        best = np.argsort(-np.asarray(logits[i]), kind="stable")[:5]
        assert [name for name, _ in e.answers] == [task.assets["answers"][k] for k in best]
        np.testing.assert_allclose([p for _, p in e.answers], 1 / (1 + np.exp(-logits[i][best])), atol=1e-5)


def test_ids_come_in_the_order_asked(run, explained):
    again = explain(Run.open(run[0]), ids=[e.id for e in explained])
    assert [e.id for e in again] == [e.id for e in explained]


def test_batches_change_nothing(run, explained):
    workdir, config, *_ = run
    examples = DataSet(config.data).split("val").read([5, 0, 63])
    predictions = Run.open(workdir).predict("explain", examples, batch_size=2)
    for e, prediction in zip(explained, predictions, strict=True):
        np.testing.assert_allclose(e.maps[0].weights, prediction.outputs["region_attention"][: len(e.boxes)], atol=1e-5)


def test_a_map_for_each_word(run, explained, monkeypatch):
    opened = Run.open(run[0])
    weights = np.random.default_rng(0).dirichlet(np.ones(99), 50).astype(np.float32)
    stub = Prediction((("yes", 0.5),), outputs={"region_attention": weights})
    monkeypatch.setattr(opened, "predict", lambda name, examples: [stub] * len(examples))
    (e,) = explain(opened, positions=[5])
    assert tuple(one.label for one in e.maps) == e.words
    for row, one in zip(weights, e.maps, strict=False):
        np.testing.assert_array_equal(one.weights, row[: len(e.boxes)])
    titles = [axes.get_title() for axes in figure(e).axes]
    assert set(e.words) < set(titles)


def test_count_is_spread_over_the_split(run):
    workdir, config, *_ = run
    source = DataSet(config.data).split("test")
    found = explain(Run.open(workdir), split="test", count=3)
    assert [e.id for e in found] == [source.read_records([i])[0]["question_id"] for i in (0, 32, 63)]


def test_unknown_ids_are_all_named(run, tmp_path, capsys):
    workdir, *_ = run
    with pytest.raises(DataError, match=r"no question with the id 5, 999999999\.") as error:
        explain(Run.open(workdir), ids=[999999999, 32000, 5])
    assert "phantom_vqa/tiny_questions (val)" in str(error.value)
    assert command.main([f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--ids=5,32000"]) == 2
    assert "no question with the id 5." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places_outside_the_split_are_named(run):
    with pytest.raises(DataError, match=r"\[-1, 64\]: the split has 64"):
        explain(Run.open(run[0]), positions=[0, -1, 64])


def test_command_writes_a_picture_for_each_question_and_a_page(run, tmp_path, capsys):
    workdir, config, *_ = run
    output = tmp_path / "deep" / "out"
    assert command.main([f"--workdir={workdir}", f"--output={output}", "--ids=32000,32005,32000"]) == 0
    assert sorted(p.name for p in output.iterdir()) == ["32000.png", "32005.png", "index.html"]
    page = (output / "index.html").read_text()
    question = DataSet(config.data).split("val").read_records([0])[0]["question"]
    assert question in page
    assert 'src="32005.png"' in page
    assert capsys.readouterr().out.strip() == str(output / "index.html")


def test_page_escapes_what_it_shows(explained, tmp_path):
    e = dataclasses.replace(explained[0], question='is <script>x</script> & "y"?')
    write([e], tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;x" in page


@pytest.mark.parametrize("arguments", [["--ids=1,two,3x"], ["--count=0"]])
def test_command_says_what_is_wrong_with_its_arguments(run, tmp_path, capsys, arguments):
    assert command.main([f"--workdir={run[0]}", f"--output={tmp_path}", *arguments]) == 2
    message = capsys.readouterr().err
    assert "two, 3x" in message or "--count=0: expected at least 1" in message


def test_a_folder_without_checkpoint_is_named(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        Run.open(tmp_path)
    assert command.main([f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_without_sight_there_are_no_boxes_and_without_pictures_no_picture(phantoms, tmp_path):
    config = runs.tiny_config(phantoms, data__blind=True)
    runs.write(config, tmp_path)
    blind = explain(Run.open(tmp_path), count=1)[0]
    # What the data hold now stands in config.json, which goes before the config in the checkpoint.
    with config.unlocked():
        config.data.images = ""
    (tmp_path / "config.json").write_text(config.to_json())
    text_alone = explain(Run.open(tmp_path), count=1)[0]
    assert blind.image.startswith(b"\x89PNG")
    assert (text_alone.image, text_alone.size) == (b"", (0, 0))
    for e in (blind, text_alone):
        assert e.boxes.shape == (0, 4)
        assert e.maps == ()
        assert e.word_attention.sum() == pytest.approx(1, abs=1e-4)


def test_report_of_a_real_checkpoint_has_pictures_parameters_and_versions(run):
    workdir, config, _, params = run
    questions = DataSet(config.data).split("val").read_records(range(64))
    rows = [
        {
            "id": q["question_id"],
            "image_id": q["image_id"],
            "question": q["question"],
            "question_type": q["question_type"],
        }
        | {"answer": "yes", "probability": 0.5, "annotators": q["answers"], "accuracy": float("yes" in q["answers"])}
        for q in questions
    ]
    (workdir / "predictions").mkdir()
    (workdir / "predictions" / "val_0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "config.json").write_text(config.to_json())
    html = page.write(workdir).read_text()
    assert html.count('src="data:image/jpeg') == 2 * (examples.EXAMPLES + examples.MISTAKES)
    assert "cannot be shown" not in html
    assert f"orbax-checkpoint {checkpoints.versions()['orbax-checkpoint']}" in html
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}" in html


def test_question_spans_keep_the_text_and_give_each_word_its_weight():
    words = ("is", "there", "a", "t1", "weighted", "mri")
    weights = np.arange(1, 7, dtype=np.float32)
    text = "Is there, a T1-weighted  (MRI)?"
    spans = question_spans(text, words, weights)
    assert "".join(piece for piece, _ in spans) == text
    assert [(piece, w) for piece, w in spans if w is not None] == [
        ("Is", 1), ("there,", 2), ("a", 3), ("T1", 4), ("weighted", 5), ("(MRI)?", 6),
    ]  # fmt: skip
    # A word beyond those that the model read has no weight; punctuation alone is no word.
    assert question_spans("a ? b", ("a",), np.ones(1, np.float32)) == [
        ("a", 1.0), (" ", None), ("?", None), (" ", None), ("b", None),
    ]  # fmt: skip
    assert question_spans("", (), np.zeros(0, np.float32)) == []


def test_question_spans_follow_other_tokenizers():
    # VQA-RAD's: "x ray" is one word, "'s" one of its own, and remarks at the end are not read.
    words, weights = ("patient", "'s", "x-ray"), np.asarray([0.5, 0.25, 0.125], np.float32)
    spans = [(piece, w) for piece, w in question_spans("Patient's X ray? -yes/no", words, weights) if w is not None]
    assert spans == [("Patient's", 0.75), ("X", 0.125), ("ray?", 0.125)]


def test_drawing_uses_no_global_figures(explained, tmp_path):
    write(explained[:1], tmp_path)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
