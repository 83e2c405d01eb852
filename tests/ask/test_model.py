"""A run that is asked: what it reads of an image of a user's own is what its evaluation reads of a data set's."""

import functools
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvqa import evaluate
from jaxvqa.ask import model as model_module
from jaxvqa.ask import results
from jaxvqa.ask.given import Question
from jaxvqa.ask.model import Model, load
from jaxvqa.errors import CheckpointError, ConfigError, DataError
from jaxvqa.runs import Run
from tests.ask.conftest import SYSTEMS
from tests.runs import ROOT


@pytest.fixture(scope="module")
def opened():
    """Opens a run once for all pages."""
    return functools.cache(load)


ANSWERING = [name for name in SYSTEMS if name not in ("blind", "few_shot", "retrieval")]


@pytest.fixture(scope="module")
def model_of(asked_run):
    return functools.cache(lambda name: load(asked_run(name)))


def examples_of(run, count=3):
    return run.data.split("val").read(range(count))


def region_file(folder, example, name="regions.npz"):
    """The file of a data set's regions, as a detector would write it."""
    np.savez(folder / name, x=example["features"].T.astype(np.float32), bbox=example["boxes"])
    return folder / name


def given(model, example, folder):
    """What is asked of an example: its encoded image, question and regions."""
    regions = region_file(folder, example) if model.task.reads == "regions" else ""
    return example["image"], "" if model.task.asks == "description" else example.get("question", ""), regions


@pytest.mark.parametrize("name", ANSWERING)
def test_the_batch_is_that_of_the_evaluation(model_of, name, tmp_path):
    model = model_of(name)
    transforms = model.task.transforms(train=False)
    for example in examples_of(model.run):
        own = model.checked([Question(*given(model, example, tmp_path))]).read([0])[0]
        ready = []
        for raw in (example, own):
            raw = dict(raw) | {"draw": (0, 0)}
            for transform in transforms:
                raw = transform(raw)
            ready.append(raw)
        for key in set(model._predict.keys) - set(model.task.unknown):
            # A text that is read to its end has the annotated answer in evaluation, behind what is looked at.
            if name == "flamingo_classify" and key in ("text", "text_mask"):
                end = int(ready[0]["question_end"]) + 1
                ready = [one | {key: one[key][:end]} for one in ready]
            np.testing.assert_array_equal(ready[0][key], ready[1][key], err_msg=key)


@pytest.mark.parametrize("name", ["cmsa", "sysu_hcp", "flamingo", "blip_vqa"])
def test_a_built_splits_question_has_the_evaluations_answer(model_of, name, tmp_path):
    model = model_of(name)
    examples = examples_of(model.run, 2)
    expected = model.run.predict(model._name, examples, batch_size=1)
    for example, wanted in zip(examples, expected, strict=True):
        found = model.answer(*given(model, example, tmp_path))
        assert found.answer == wanted.answer
        assert found.probability == pytest.approx(wanted.probability, rel=1e-5)
        assert [p for _, p in found.answers] == sorted((p for _, p in found.answers), reverse=True)
        assert len(found.answers) == (1 if model._predict.text else 5)


def test_predictions_files_hold_the_same(model_of, tmp_path):
    """By the program's own evaluation, with its batches and its file."""
    model = model_of("rwsan")
    evaluate.evaluate(model.run.config, model.run.folder, "test")
    _, rows = model.run.predictions("test")
    examples = model.run.data.split("test").read(range(3))
    asked = [Question(*given(model, e, tmp_path)) for e in examples[:1]]
    many = [(e["image"], e["question"], region_file(tmp_path, e, f"{i}.npz")) for i, e in enumerate(examples)]
    found = [model.answer(asked[0].image, asked[0].question, asked[0].regions)]
    found += model.answer_many([Question(*one) for one in many], batch_size=2)
    for row, answer in zip([rows[0], *rows], found, strict=False):
        assert (answer.question, answer.answer) == (row["question"], row["answer"])
        assert answer.probability == pytest.approx(row["probability"], abs=2e-6)
    assert model.answer_many([]) == []


def test_opening_a_run_warns_of_nothing(asked_run, caplog):
    load(asked_run("cmsa"))
    assert [record.getMessage() for record in caplog.records] == []


def test_examples_stand_before_the_question(model_of):
    """The images most similar to the one asked about, by the model's own encoder, as in evaluation."""
    model = model_of("few_shot")
    (example,) = examples_of(model.run, 1)
    source = model.checked([Question(example["image"], example["question"])])
    asked = source.read([0])[0] | {"draw": (0, 0, 0)}
    for transform in model._transforms(source):
        asked = transform(asked)
    assert asked["image"].shape == (2, 32, 32, 3)
    assert asked["prompt_mask"].sum() > 20
    one = model.answer(example["image"], example["question"])
    assert len(one.answers) == len(one.examples) == 1
    (before,) = one.examples
    support = model.run.data.split(model.run.final.data.shots_split).read(range(16))
    assert before in {(e["question"], e["multiple_choice_answer"]) for e in support}
    assert " ".join(before) in results.text_of(one)
    many = model.answer_many([(example["image"], example["question"])] * 2, batch_size=2)
    assert many[0].examples == one.examples
    assert len(many[1].examples) == 1  # of the same image, another draw of its questions


@pytest.mark.parametrize("name", ["flamingo_captions", "blip_caption"])
def test_captions_are_written(model_of, name):
    model = model_of(name)
    (example,) = examples_of(model.run, 1)
    (expected,) = model.run.predict("answers", [example])
    assert model.caption(example["image"]) == expected.answer
    with pytest.raises(DataError, match="describes an image, and reads no question"):
        model.answer(example["image"], "is there a mass?")


def test_an_image_may_come_in_any_form(model_of, tmp_path):
    model = model_of("cmsa")
    (example,) = examples_of(model.run, 1)
    encoded, question = example["image"], example["question"]
    path = tmp_path / "scan.png"
    path.write_bytes(encoded)
    picture = Image.open(io.BytesIO(encoded))
    pixels = np.asarray(picture)
    forms = (path, str(path), encoded, picture, pixels, pixels[..., None], pixels.astype(np.uint16) * 257)
    answers = [model.answer(form, question) for form in forms]
    assert {answer.answers for answer in answers} == {answers[0].answers}
    assert [answer.image for answer in answers[:3]] == [str(path), str(path), "the image"]
    colour = model.answer(np.stack([pixels] * 3, axis=-1), question)
    assert colour.answers == answers[0].answers


def test_all_faults_are_one_message(model_of, tmp_path):
    model = model_of("cmsa")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG cut")
    asked = [
        (tmp_path / "none.png", "is there a mass?"),
        (tmp_path / "broken.png", " "),
        (np.zeros((3, 3, 2), np.uint8), "is there a mass?"),
        (np.full((3, 3), 2.5), "is there a mass?"),
        (np.full((3, 3), 0.5), "is there a mass?"),
    ]
    with pytest.raises(DataError) as caught:
        model.answer_many(asked)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for line, words in zip(
        lines,
        [
            "none.png: No such file",
            "broken.png is ",
            "broken.png: the question is missing",
            "[3, 3, 2]; expected uint8",
            "2.5",
        ],
        strict=True,
    ):
        assert words in line


def test_regions_that_are_missing_or_wrong_are_named(model_of, tmp_path):
    model = model_of("rwsan")
    (example,) = examples_of(model.run, 1)
    image, question = example["image"], example["question"]
    with pytest.raises(DataError, match=r"reads regions.*--regions=FILE.npz.*'shapes'"):
        model.answer(image, question)
    np.savez(tmp_path / "narrow.npz", x=np.ones((7, 3)))
    with pytest.raises(DataError, match=r"narrow.npz: 'x' has shape \[7, 3\], expected \[320, regions\]"):
        model.answer(image, question, tmp_path / "narrow.npz")
    with pytest.raises(DataError, match="no such file"):
        model.answer(image, question, tmp_path / "none.npz")
    with pytest.raises(DataError, match="reads no files of regions"):
        model_of("cmsa").answer(image, question, tmp_path / "narrow.npz")


def test_a_question_only_baseline_answers_by_the_question(model_of):
    model = model_of("blind")
    (example,) = examples_of(model.run, 1)
    answer, other = (model.answer(np.full((9, 9), grey, np.uint8), example["question"]) for grey in (0, 255))
    assert answer.answers == other.answers
    explanation = model.explain(example["image"], example["question"])
    assert (explanation.answers, explanation.maps, explanation.blind) == (answer.answers, (), True)


def test_explanations_have_maps_over_the_image(model_of, tmp_path):
    for name, cells in (("proposed", 20), ("cmsa", 4)):
        model = model_of(name)
        (example,) = examples_of(model.run, 1)
        explanation = model.explain(example["image"], example["question"])
        assert explanation.boxes.shape == (cells, 4)
        assert explanation.maps[0].weights.shape == (cells,)
        assert (explanation.size, explanation.annotators) == ((128, 128), ())
        assert explanation.image == example["image"]
        assert explanation.answers == model.answer(example["image"], example["question"]).answers


def test_another_predict_function_may_answer(asked_run):
    example, *_ = examples_of(Run.open(asked_run("sysu_hcp")))
    mirrored = load(asked_run("sysu_hcp"), "answers_flip")
    assert len(mirrored.answer(example["image"]).answers) == 1
    with pytest.raises(ConfigError, match=r"'rank' that answers: choose .*Did you mean 'ranked'"):
        load(asked_run("blip_vqa"), "rank")


def test_runs_that_answer_nothing_are_refused(asked_run, phantoms, tmp_path):
    with pytest.raises(ConfigError, match="'image_text', which answers nothing"):
        load(asked_run("retrieval"))
    with pytest.raises(CheckpointError, match="holds no checkpoints and no config"):
        load(tmp_path)
    config = Run.open(asked_run("rwsan")).config
    Run.start(tmp_path / "fresh", config)
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        load(tmp_path / "fresh")
    with config.unlocked():
        config.members = "runs/a,runs/b"
    with pytest.raises(ConfigError, match=r"is an ensemble of runs\. Ask one of them: runs/a, runs/b"):
        Model(Run(tmp_path, config))


@pytest.mark.parametrize("page", ["README.md", "docs/asking.md"])
def test_the_lines_of_the_pages_run(page, opened, asked_run, tmp_path, monkeypatch, capsys):
    """As they stand, in a folder with such a run and such images."""
    code = re.search(r"```python\n(import jaxvqa\n.*?)```", (ROOT / page).read_text(), re.DOTALL)[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/vqa_rad").symlink_to(asked_run("cmsa"))
    for name in ("scan.png", "a.png", "b.png"):
        Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_module, "load", lambda folder, predict: opened(str(Path(folder).resolve())))
    exec(compile(code, page, "exec"), {})
    best, probability = re.match(r"(.+?) (\d\.\d+) \((?:.*)", capsys.readouterr().out).groups()
    assert best
    assert 0 <= float(probability) <= 1
    assert (tmp_path / "looked.png").exists() == (page == "docs/asking.md")
