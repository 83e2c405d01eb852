import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.explain.explanation import AttentionMap, Explanation
from jaxvqa.metrics.bootstrap import confidence_interval
from jaxvqa.report import examples, numbers, results
from jaxvqa.report.__main__ import main
from jaxvqa.report.numbers import points
from jaxvqa.report.page import write
from jaxvqa.report.run import Record, facts, notes
from jaxvqa.runs import Run

TYPES = ("presence", "count", "size")


def train_row(step, loss):
    return {
        "step": step,
        "time": 1.7e9 + step,
        "train/loss": loss,
        "train/accuracy": 0.5,
        "train/learning_rate": 1e-3 / step,
        "train/gradient_norm": 100.0 / step,
        "train/examples_per_second": 64.0,
        "train/data_wait": 0.021,
    }


def eval_row(step, accuracy, name="val"):
    return {
        "step": step,
        "time": 1.7e9 + step,
        f"{name}/accuracy": accuracy,
        f"{name}/accuracy/low": accuracy - 1.25,
        f"{name}/accuracy/high": accuracy + 1.25,
        f"{name}/question_type/presence": 77.25,
        f"{name}/answer_type/yes/no": 66.5,
    }


def prediction_rows(rate, n=60):
    """Every third question of another type; a share `rate` of each type is answered rightly."""
    rows = []
    for i in range(n):
        right = (i // 3) < rate * n / 3
        rows.append(
            {
                "id": 1000 + i,
                "image_id": 500 + i % 30,
                "question": f"is question {i} clear?",
                "answer": "yes" if right else "no",
                "probability": 0.9 if right else 0.3 + 0.01 * (i % 30),
                "answer_type": "yes/no",
                "question_type": TYPES[i % 3],
                "annotators": ["yes"] * 8 + ["maybe"] * 2,
                "accuracy": float(right),
            }
        )
    return rows


def make_run(folder, *, rows=(), predictions=None, step=40, arg="small", total="40 steps", kind="vqa", **data):
    """A work directory of hand-made files, without checkpoint and data."""
    folder.mkdir(parents=True, exist_ok=True)
    config = configs.load(f"configs/rwsan.py:{arg}")
    with config.unlocked():
        config.total = total
        config.evals.val.type = kind
        config.data.dir = str(folder / "no_data")
        for key, value in data.items():
            config.data[key] = value
    (folder / "config.json").write_text(config.to_json_best_effort())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if predictions is not None:
        (folder / "predictions").mkdir()
        text = "".join(json.dumps(row) + "\n" for row in predictions)
        (folder / "predictions" / f"val_{step}.jsonl").write_text(text)
    return folder


def full_rows(accuracy=91.37):
    return [train_row(10, 12.5), train_row(20, 4.0), eval_row(20, 71.0), train_row(40, 1.75), eval_row(40, accuracy)]


class Page(HTMLParser):
    """The text of a page, its tags, and a check that they are closed in order."""

    VOID = ("meta", "img", "br", "link", "use")

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.tags, self.sources = "", [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def page_of(*arguments):
    return Page(write(*arguments).read_text())


def words_of(page):
    return " ".join(page.text.split())


def test_report_of_files_alone_shows_the_numbers_and_needs_no_network(tmp_path):
    workdir = make_run(tmp_path / "run", rows=full_rows(), predictions=prediction_rows(0.9))
    path = write(workdir)
    assert path == workdir / "report.html"
    page = Page(path.read_text())
    text = words_of(page)
    assert "91.4 %" in text  # the accuracy, with its interval
    assert "95 % interval 90.1 % to 92.6 %" in text
    assert "60 questions, after step 40" in text
    assert "phantom_vqa/questions" in text
    assert "40 s" in text  # 40 steps of 32 at 64 examples/s are 20 s, and 20 s
    assert "2.1 % of the time" in text
    assert "From 12.5 at step 10 to 1.75 at step 40." in text
    assert page.tags.count("svg") == 5
    assert not [s for s in page.sources if s and not s.startswith(("data:", "#"))]
    assert "http" not in re.sub(r'(?:xmlns(?::xlink)?)="[^"]*"', "", path.read_text()).replace("http-equiv", "")
    assert "Difference" not in text
    assert not list(workdir.glob("*.partial"))


def test_training_time_leaves_out_evaluations_and_pauses(tmp_path):
    rows = full_rows()
    rows[-1]["time"] += 1e6
    run = Record.read(make_run(tmp_path, rows=rows))
    assert run.training_seconds == pytest.approx(40 * 32 / 64)


def test_types_have_counts_intervals_and_the_baselines_column(tmp_path):
    ours, theirs = prediction_rows(0.9), prediction_rows(0.4)
    scored = {row["id"]: row["accuracy"] for row in theirs}
    tables = dict(results.groups(ours, scored))
    assert list(tables) == ["Question type", "Answer type"]  # no row has open_closed
    row = next(r for r in tables["Question type"] if r["name"] == "count")
    mine = [r["accuracy"] for r in ours if r["question_type"] == "count"]
    images = [r["image_id"] for r in ours if r["question_type"] == "count"]
    assert row["n"] == 20
    assert row["value"] == pytest.approx(100 * np.mean(mine))
    assert (row["low"], row["high"]) == pytest.approx(tuple(100 * x for x in confidence_interval(mine, images)))
    assert row["baseline"] == pytest.approx(40)
    assert row["difference"] == pytest.approx(row["value"] - 40)
    without = dict(results.groups(ours, {}))["Question type"][0]
    assert without["baseline"] is None
    assert without["difference"] is None


def test_baseline_is_compared_on_the_questions_that_both_answered(tmp_path):
    ours, theirs = prediction_rows(0.9), prediction_rows(0.4)[:30]
    workdir = make_run(tmp_path / "run", rows=full_rows(), predictions=ours)
    baseline = make_run(tmp_path / "blind", rows=full_rows(45.61), predictions=theirs, arg="blind,small")
    text = words_of(page_of(workdir, baseline))
    pairs = [a["accuracy"] - b["accuracy"] for a, b in zip(ours, theirs, strict=False)]
    low, high = (100 * x for x in confidence_interval(pairs, [row["image_id"] for row in theirs], paired=True))
    assert "45.6 %" in text
    assert "Question-only baseline" in text
    assert f"{100 * np.mean(pairs):+.1f} points" in text
    assert f"95 % interval {points(low)} to {points(high)}" in text
    assert "paired, on the same 30 questions" in text
    assert f"--baseline={baseline}" in text


def test_two_runs_of_one_name_are_called_by_their_folders(tmp_path):
    workdirs = [
        make_run(tmp_path / name, rows=full_rows(accuracy), predictions=prediction_rows(0.5))
        for name, accuracy in (("with_start", 91.0), ("from_nothing", 88.0))
    ]
    text = words_of(page_of(*workdirs))
    assert "Baseline from_nothing" in text
    assert "From_nothing: 88.0 % at its end." in text


def test_a_baseline_on_other_questions_is_refused(tmp_path):
    workdir = make_run(tmp_path / "run", rows=full_rows())
    baseline = make_run(tmp_path / "blind", rows=full_rows(), examples="vqa_v2/questions", limit=7)
    with pytest.raises(ConfigError) as error:
        write(workdir, baseline)
    assert "data.examples: 'phantom_vqa/questions'" in str(error.value)
    assert "data.limit: 512" in str(error.value)
    assert not (workdir / "report.html").exists()


def test_without_predictions_the_metrics_give_the_types(tmp_path):
    text = words_of(page_of(make_run(tmp_path, rows=full_rows())))
    assert "presence 77.2 %" in text
    assert "yes/no 66.5 %" in text  # the slash belongs to the type's name
    assert "Example answers" not in text
    assert "Calibration" not in text


def test_an_unfinished_run_says_so(tmp_path):
    text = words_of(page_of(make_run(tmp_path, rows=full_rows()[:2], total="1000 steps")))
    assert "not finished: step 20 of 1,000" in text
    assert "There is no evaluation in this run yet" in text
    assert "Training loss" in text


def test_a_run_without_any_row_or_file_says_so(tmp_path):
    workdir = make_run(tmp_path)
    assert "No metrics have been written yet" in words_of(page_of(workdir))
    (workdir / "metrics.jsonl").unlink()
    assert "No metrics have been written yet" in words_of(page_of(workdir))


def test_epochs_need_a_checkpoint_to_be_counted(tmp_path):
    text = words_of(page_of(make_run(tmp_path, rows=full_rows(), total="2 epochs")))
    assert "It is not known whether this run is finished" in text


def test_a_split_without_answers_shows_predictions_without_verdict(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in ("annotators", "accuracy")} for row in prediction_rows(0.5)]
    text = words_of(page_of(make_run(tmp_path, rows=full_rows()[:2], predictions=rows)))
    assert "its split has no annotated answers" in text
    assert "Example answers" in text
    assert "Most confident mistakes" not in text


@pytest.mark.parametrize(("organ", "measure"), [("abdomen", "iou"), ("brain", "accuracy")])
def test_a_pre_training_run_shows_its_scores(tmp_path, organ, measure):
    config = configs.load(f"configs/mtpt.py:{organ},small")
    workdir = make_run(tmp_path)
    (workdir / "config.json").write_text(config.to_json_best_effort())
    rows = [{"step": step, "time": 1.7e9 + step, "train/loss": 2.0 / step} for step in (10, 20)]
    for row in rows:
        for key, value in ((f"test/{measure}", 61.5), ("test/compatibility", 83.5)):
            row |= {key: value, f"{key}/low": value - 3, f"{key}/high": value + 3}
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "predictions").mkdir()
    (workdir / "predictions/test_20.jsonl").write_text(
        json.dumps({"id": 7, measure: 0.61, "compatibility": 1.0}) + "\n"
    )
    page = page_of(workdir)
    text = words_of(page)
    assert "Multi-task pre-training on mtpt/phantom_" in text
    assert f"test/{measure}61.5 %58.5 % to 64.5 %20" in text  # a row of the table
    assert "test/compatibility83.5 %80.5 % to 86.5 %20" in text
    assert f"Imagesmtpt/phantom_{organ}" in text
    for words in ("no accuracy", "no evaluation", "question only", "Example answers"):
        assert words not in text
    assert page.tags.count("svg") == 3  # both scores and the loss


def test_every_text_is_escaped(tmp_path):
    attack = "<script>alert(1)</script>"
    rows = prediction_rows(0.5)
    for row in rows:
        row |= {
            "question": f'is {attack} & "this" safe?',
            "answer": f"<img src=x onerror={attack}>",
            "question_type": f"type {attack}",
            "annotators": [attack] * 3,
        }
    workdir = make_run(tmp_path / "run", rows=full_rows(), predictions=rows, dir=f'"{attack}')
    config = json.loads((workdir / "config.json").read_text())
    config["name"] = f'name "{attack}" $x_1 & $'
    (workdir / "config.json").write_text(json.dumps(config))
    html = write(workdir).read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "&lt;script&gt;alert(1)" in html
    assert f'is {attack} & "this" safe?' in page.text


def test_missing_data_or_checkpoint_is_said_where_images_would_be(tmp_path, monkeypatch):
    workdir = make_run(tmp_path, rows=full_rows(), predictions=prediction_rows(0.9))
    assert "The images cannot be shown." in words_of(page_of(workdir))

    def unbuilt(*_, **__):
        raise DataError("The data set <x> is not built.")

    monkeypatch.setattr(examples, "explain", unbuilt)
    assert "The images cannot be shown. The data set <x> is not built." in words_of(page_of(workdir))


def test_images_of_other_questions_are_not_shown(tmp_path, monkeypatch):
    workdir = make_run(tmp_path, rows=full_rows(), predictions=prediction_rows(0.9))
    monkeypatch.setattr(examples, "explain", lambda *_, positions, **__: [])
    assert "the data set has changed" in words_of(page_of(workdir))


def explanation_of(row, **changes):
    fields = {
        "id": row["id"],
        "image_id": row["image_id"],
        "question": row["question"],
        "words": ("is", "question"),
        "word_attention": np.array([0.25, 0.75], np.float32),
        "answers": (("yes", 0.625), ("no", 0.25)),
        "annotators": (),
        "boxes": np.array([[1, 1, 30, 30], [20, 20, 50, 50]], np.float32),
        "maps": (AttentionMap(np.array([0.875, 0.125], np.float32)),),
        "image": b"",
        "size": (64, 48),
    }
    return Explanation(**(fields | changes))


def test_examples_show_attention_on_words_and_regions(tmp_path, monkeypatch):
    rows = prediction_rows(0.9)
    workdir = make_run(tmp_path, rows=full_rows(), predictions=rows)
    monkeypatch.setattr(examples, "explain", lambda *_, positions, **__: [explanation_of(rows[p]) for p in positions])
    html = write(workdir).read_text()
    page = Page(html)
    assert page.tags.count("img") == 2 * (12 + 6)
    assert 'title="75.0 % of the attention"' in html
    assert "attention over 2 regions; the strongest: 88 %, 12 %." in html
    assert "Empty canvas in the size of image" in html
    for words in ("Words are tinted", "warm areas"):
        assert words in html
    assert "62.5 %" in words_of(page)


def test_an_example_shows_a_map_for_each_word(tmp_path, monkeypatch):
    rows = prediction_rows(0.9)
    workdir = make_run(tmp_path, rows=full_rows(), predictions=rows)
    maps = tuple(AttentionMap(np.eye(2, dtype=np.float32)[i], word) for i, word in enumerate(("left <lung>", "heart")))
    with_maps = lambda *_, positions, **__: [explanation_of(rows[p], maps=maps) for p in positions]  # noqa: E731
    monkeypatch.setattr(examples, "explain", with_maps)
    page = page_of(workdir)
    assert page.tags.count("img") == 3 * (12 + 6)
    assert page.text.count("left <lung>") == page.text.count("heart") == 12 + 6


@pytest.mark.parametrize("part", ["questions", "image_disjoint"])
def test_protocols_stand_beside_what_needs_no_picture(tmp_path, part):
    values = {
        "val/strict_451": 62.5,
        "val/strict_451/low": 58.25,
        "val/strict_451/high": 66.75,
        "val/strict_451/open": 43.5,
    }
    values |= {"val/controls/ceiling": 90.5, "val/controls/majority": 29.5, "val/controls/question_only": 50.25}
    rows = [eval_row(40, 62.5) | values]
    workdir = make_run(tmp_path, rows=rows, kind="vqa_rad", examples=f"vqa_rad/{part}", limit=0)
    text = words_of(page_of(workdir))
    for words in (
        "strict_451free-form and paraphrased",
        "62.5 % (58.2 to 66.8)",
        "43.5 %",
        "allows90.5 %",
        "answer29.5 %",
        "reads no image50.2 %",
    ):
        assert words in text, words
    assert "same image and question type" not in text  # nothing was counted so
    assert ("not the 308 and 451 questions" in text) == (part == "image_disjoint")


def test_a_picture_that_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path, monkeypatch):
    rows = prediction_rows(0.9)
    workdir = make_run(tmp_path, rows=full_rows(), predictions=rows)
    broken = lambda *_, positions, **__: [explanation_of(rows[p], image=b"broken") for p in positions]  # noqa: E731
    monkeypatch.setattr(examples, "explain", broken)
    page = page_of(workdir)
    assert "An image of 6 bytes cannot be decoded" in words_of(page)
    assert "62.5 %" in words_of(page)
    assert "img" not in page.tags


def test_a_broken_checkpoint_does_not_stop_the_report(tmp_path):
    workdir = make_run(tmp_path, rows=full_rows(), predictions=prediction_rows(0.9))
    (workdir / "checkpoints" / "40" / "meta").mkdir(parents=True)
    text = words_of(page_of(workdir))
    assert "91.4 %" in text
    assert "The images cannot be shown." in text


def test_examples_are_fixed_varied_and_hold_mistakes():
    rows = prediction_rows(0.9)
    chosen = examples.choose_examples(rows)
    assert chosen == examples.choose_examples(rows)
    assert len({row["id"] for row in chosen}) == 12
    assert len({row["image_id"] for row in chosen}) == 12
    assert {row["question_type"] for row in chosen} == set(TYPES)
    assert sum(row["accuracy"] == 0 for row in chosen) == 4
    assert len(examples.choose_examples(rows[:5])) == 5
    assert len(examples.choose_examples(prediction_rows(0.0))) == 12
    assert sum(row["accuracy"] == 1 for row in examples.choose_examples(prediction_rows(1.0))) == 12
    same_picture = [row | {"image_id": 1} for row in rows]
    assert len({row["id"] for row in examples.choose_examples(same_picture)}) == 12
    assert examples.choose_examples([]) == []


def test_confident_mistakes_are_the_most_probable_wrong_answers():
    rows = prediction_rows(0.5)
    mistakes = examples.confident_mistakes(rows, 3)
    wrong = sorted((row["probability"] for row in rows if row["accuracy"] == 0), reverse=True)
    assert [row["probability"] for row in mistakes] == wrong[:3]
    assert all(row["accuracy"] == 0 for row in mistakes)


def test_calibration_error_of_known_answers():
    rows = [{"probability": 0.95, "accuracy": 1.0}] * 3 + [{"probability": 0.95, "accuracy": 0.0}]
    rows += [{"probability": 1.0, "accuracy": 1.0}] * 4 + [{"probability": 0.05, "accuracy": 0.3}] * 2
    found = results.calibration(rows)
    # The last bin: probability (4 * 0.95 + 4) / 8 = 0.975, accuracy 7/8; the first: 0.05 and 0.3.
    assert found["error"] == pytest.approx(100 * (8 * 0.1 + 2 * 0.25) / 10)
    assert found["verdict"] == "too sure"
    assert results.calibration([]) is None


def test_newest_predictions_of_the_right_evaluation_are_read(tmp_path):
    workdir = make_run(tmp_path, predictions=[{"id": 1}], step=9)
    (workdir / "predictions" / "val_100.jsonl").write_text('{"id": 2}\n')
    (workdir / "predictions" / "val_extra_200.jsonl").write_text('{"id": 3}\n')
    (workdir / "predictions" / "val_300_evalai.json").write_text("[]")
    assert Run.open(workdir).predictions("val") == (100, [{"id": 2}])
    assert Run.open(workdir).predictions("test") == (0, [])


def test_the_command_of_a_run_is_in_its_report(tmp_path):
    workdir = make_run(tmp_path / "run", rows=full_rows())
    assert "Make it again" not in words_of(page_of(workdir))
    command = "python -m jaxvqa.main --config=configs/rwsan.py:small '--config.data.dir=/a b'"
    (workdir / "run.json").write_text(json.dumps({"command": command}))
    assert f"Make it again {command} --workdir={workdir}-again" in words_of(page_of(workdir))


def test_numbers_as_text():
    assert [numbers.significant(v) for v in (0.0, 0.000624, 1.78e-5, 12.345, 1190.4, 123456.0)] == [
        "0", "0.000624", "1.78 × 10⁻⁵", "12.3", "1,190", "123,000",
    ]  # fmt: skip
    assert [numbers.duration(s) for s in (3.4, 65.0, 3600.0, 3 * 86400.0)] == [
        "3 s",
        "1 min 5 s",
        "1 h 0 min",
        "3 d 0 h",
    ]
    assert [numbers.points(v) for v in (1.25, -3.0, None)] == ["+1.2", "−3.0", "–"]
    assert numbers.percent(None) == "–"


def test_command_names_a_folder_that_is_no_run(tmp_path, capsys):
    assert main([f"--workdir={tmp_path}"]) == 2
    assert f"{tmp_path} holds no checkpoints and no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main([f"--workdir={tmp_path}"]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_command_prints_the_path(tmp_path, capsys):
    workdir = make_run(tmp_path, rows=full_rows())
    assert main([f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out.strip() == str(workdir / "report.html")


def test_curve_alone_is_a_whole_svg(tmp_path, capsys):
    workdir, target = make_run(tmp_path, rows=full_rows()), tmp_path / "curve.svg"
    assert main([f"--workdir={workdir}", f"--curve={target}"]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    root = ElementTree.parse(target).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in target.read_text()


REMARKS = {
    # config -> what its report says of starts that were not given, and what it does not say
    "cmsa.py:vqa_rad": ("lost 11 points", ""),
    "cmsa.py:vqa_rad,compact": ("here they start anew", "11 points"),
    "cmsa.py": ("here they start anew", "11 points"),
    "cmsa.py:vqa_rad,ban,distmodal,compact": ("here they start anew", "11 points"),
    "cmsa.py:small": ("", "Not given"),
    "sysu_hcp.py:vqa_med_2021": ("4,412 images are few", ""),
    "sysu_hcp.py:vqa_med_2019,plane": ("", "4,412"),
    "sysu_hcp.py:vqa_med_2021,small": ("", "Not given"),
    "flamingo.py:roco": ("GPT-2", ""),
    "flamingo.py:roco,small": ("", "Not given"),
    "flamingo.py:vqa_rad": ("too good", ""),
    "flamingo.py:vqa_rad,held_out": ("", "too good"),
    "rwsan.py": ("", "Not given"),
}


def folder_of(folder, name, changes=(), rows=(), meta=None):
    """The record of a run's folder of that config."""
    config = configs.load(f"configs/{name}")
    configs.override(config, list(changes))
    run = Run(folder, configs.from_json(config.to_json()))
    run.metrics = list(rows)
    return Record(run, meta or {})


def notes_of(record):
    return " ".join(notes(record))


@pytest.mark.parametrize("name", REMARKS)
def test_remarks_fit_the_variant(tmp_path, name):
    said, unsaid = REMARKS[name]
    notes = notes_of(folder_of(tmp_path, name))
    assert said in notes
    assert not unsaid or unsaid not in notes


@pytest.mark.parametrize("name", ["flamingo.py:vqa_rad", "cmsa.py:vqa_rad", "sysu_hcp.py:vqa_med_2021"])
def test_a_run_that_takes_all_of_another_lacks_nothing(tmp_path, name):
    assert "Not given" in notes_of(folder_of(tmp_path, name))
    assert "Not given" not in notes_of(folder_of(tmp_path, name, [("init_from.model.workdir", "runs/other")]))


@pytest.mark.parametrize(
    "name", ["rwsan.py:vqa_v2", "cmsa.py:vqa_rad", "sysu_hcp.py:vqa_med_2021", "flamingo.py:vqa_rad"]
)
def test_a_converted_folder_is_not_called_unfinished(tmp_path, name):
    run = folder_of(tmp_path, name, meta={"converted": {}, "data": {"size": None, "step": 0}})
    said, known = notes_of(run), dict(facts(run))
    assert "converted from another program's file" in said
    for wrong in ("not finished", "not known whether", "No metrics", "Not given"):
        assert wrong not in said
    assert not {"Steps", "Length", "Training time"} & known.keys()
    trained_on = folder_of(tmp_path, name, meta=dict(run.meta), rows=[train_row(5, 1.0)])
    assert "converted" not in notes_of(trained_on)


def test_the_folder_of_a_best_state_and_a_run_that_stopped_early_are_finished(tmp_path):
    best = folder_of(tmp_path, "rwsan.py", meta={"data": {"size": 100, "step": 40}})
    assert "state of a run at step 40 alone" in notes_of(best)
    changes = [("best.metric", "val/accuracy"), ("best.mode", "max"), ("best.patience", "2"), ("total", "99 steps")]
    rows = [eval_row(step, accuracy) for step, accuracy in ((1, 50), (2, 40), (3, 30))]
    ended = folder_of(tmp_path, "rwsan.py", changes, rows)
    assert "ended at step 3" in notes_of(ended)
    assert "not finished" not in notes_of(ended)
    assert "not finished" in notes_of(folder_of(tmp_path, "rwsan.py", changes, rows[:2]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rwsan.py", "need not add up"),
        ("cmsa.py", "need not add up"),
        ("sysu_hcp.py", "add up to 100 %; the most probable"),
        ("flamingo.py", "product of those of its tokens"),
        ("flamingo.py:imageclef,classify", "product of those of its tokens"),
    ],
)
def test_what_probabilities_are_is_said_by_system(tmp_path, name, said):
    run = folder_of(tmp_path, name)
    assert said in examples.probability_words(run, run.main)
    if "classify" in name:
        assert "add up to 100 %" in examples.probability_words(run, "classes")


def test_a_report_that_is_written_again_knows_its_baseline(tmp_path):
    ours = make_run(tmp_path / "ours", rows=[eval_row(40, 70)], predictions=prediction_rows(0.7))
    blind = make_run(tmp_path / "blind", rows=[eval_row(40, 50)], predictions=prediction_rows(0.5), blind=True)
    with_baseline = "Question-only baseline"
    assert with_baseline in write(ours, blind).read_text()
    assert with_baseline in write(ours).read_text()
    (tmp_path / "moved").mkdir()
    for folder in (ours, blind):
        folder.rename(tmp_path / "moved" / folder.name)
    ours, blind = (tmp_path / "moved" / folder.name for folder in (ours, blind))
    assert with_baseline in write(ours).read_text()
    blind.rename(tmp_path / "elsewhere")
    page = write(ours).read_text()
    assert with_baseline not in page
    assert "is not there any more" in page
    assert write(ours, tmp_path / "elsewhere").read_text().count(with_baseline)
    assert with_baseline not in write(ours, alone=True).read_text()
    assert with_baseline not in write(ours).read_text()


def test_both_rules_of_the_vqa_accuracy_are_shown(tmp_path):
    row = eval_row(40, 70.0) | {
        "val/accuracy_since_2021": 70.4,
        "val/accuracy_since_2021/low": 69.0,
        "val/accuracy_since_2021/high": 71.8,
    }
    page = write(make_run(tmp_path / "run", rows=[row])).read_text()
    assert "2015 to March 2021" in page
    assert "70.4 % (69.0 to 71.8)" in page


def test_an_interval_of_three_right_answers_has_a_width(tmp_path):
    page = write(make_run(tmp_path / "run", predictions=prediction_rows(1.0, n=3))).read_text()
    assert "29.2 % to 100.0 %" in page
