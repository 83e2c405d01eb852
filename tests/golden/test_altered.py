"""Golden cases as others may write them: other names, parts of the sections, short lists, other options, broken rows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxvqa.golden import cases, runner, training

GOLDEN = Path(__file__).parents[1] / "golden"


def failures(rows):
    return [(row.case, row.output, row.note) for row in rows if row.passed is False]


def altered(folder, source, name, change=lambda content: None):
    """Writes a copy of a case's file under another name, with its results if it has any, and returns its path."""
    source = GOLDEN / source
    content = json.loads(source.read_text())
    change(content)
    path = folder / name
    path.write_text(json.dumps(content))
    results = source.with_name(source.name.removesuffix(".json").removesuffix(".manifest") + ".npz")
    if results.exists():
        shutil.copy(results, folder / (name.removesuffix(".json").removesuffix(".manifest") + ".npz"))
    return path


def keep(*names):
    def change(content):
        for name in content.keys() - set(names):
            del content[name]

    return change


# --- what a file is follows from what it holds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "change", "outputs"),
    [
        ("sysu_hcp/reading.json", "lines.json", lambda c: None, {"files", "classes", "bad"}),
        ("sysu_hcp/reading.json", "a.json", keep("files", "val"), {"files"}),
        ("sysu_hcp/reading.json", "b.json", keep("bad_lines"), {"bad"}),
        ("sysu_hcp/preprocess.json", "pictures.json", lambda c: None, {"resized_0", "test_1", "train_1_3"}),
        ("cmsa/text_cases.json", "text.json", keep("answers"), {"answers"}),
        ("cmsa/text_cases.json", "rates.json", keep("schedule"), {"schedule"}),
        ("rwsan/text_cases.json", "other.json", keep("answers", "schedule"), {"answers", "schedule"}),
    ],
)
def test_files_of_any_name_with_a_part_of_the_sections(source, name, change, outputs, tmp_path):
    altered(tmp_path, source, name, change)
    rows = runner.run(tmp_path)
    assert not failures(rows)
    assert {row.output for row in rows if row.passed} >= outputs


def test_losses_under_another_name_and_without_schedule(tmp_path):
    altered(tmp_path, "sysu_hcp/losses.json", "numbers.json", keep("inputs", "mixup"))
    rows = runner.run(tmp_path / "numbers.npz")
    assert not failures(rows)
    assert {"nll_0", "label_smoothing_grad_1", "mixed"} <= {row.output for row in rows if row.passed}


def test_a_section_of_two_systems_in_one_file(tmp_path):
    ours, theirs = (json.loads((GOLDEN / f"{name}/text_cases.json").read_text()) for name in ("rwsan", "cmsa"))
    content = {"tokenise": ours["tokenise"], "score_of_count": theirs["score_of_count"], "schedule": theirs["schedule"]}
    (tmp_path / "mixed_cases.json").write_text(json.dumps(content))
    rows = runner.run(tmp_path)
    assert [row.passed for row in rows] == [True] * 3


# --- short and empty lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [[], [0, 0, 0], None])
@pytest.mark.parametrize("epochs", [0, 1, 3, 12, 30])
def test_short_schedules(epochs, saved, tmp_path):
    rates = ([0.0025, 0.005, 0.0075] + [0.01] * 7)[:epochs] + [
        0.01 * 0.75 ** (i - 9) for i in range(10, min(epochs, 12))
    ]
    if epochs == 30:  # falls every fourth epoch
        rates += [0.01 * 0.75 ** ((i - 10) // 4 + 1) for i in range(12, 30)]
        rates[10:12] = [0.0075] * 2
    case = {"epochs": epochs, "lr": rates, "saved_epochs": saved}
    (tmp_path / "cases.json").write_text(json.dumps({"schedule": [case]}))
    (row,) = runner.run(tmp_path)
    assert row.passed, row.note
    case["lr"] = [*rates[:-1], 1.0]
    (tmp_path / "cases.json").write_text(json.dumps({"schedule": [case]}))
    assert runner.run(tmp_path)[0].passed is False


def test_the_first_saved_epoch(tmp_path):
    case = {"epochs": 31, "saved_epochs": [30, 30, 1]}
    (tmp_path / "cases.json").write_text(json.dumps({"schedule": [case]}))
    assert runner.run(tmp_path)[0].passed


@pytest.mark.parametrize(
    ("content", "passed"),
    [
        ({"answers": []}, [None]),
        ({"vqa_med_2021": {"pairs": []}}, [None]),
        ({"vqa_med_2021": {"pairs": [{"prediction": "a", "references": ["a"], "accuracy": 1, "bleu": 1.0}]}}, [True]),
        ({"vqa_rad": {"answer_normalisation": [["No.", "no"]]}}, [True]),
        ({"vqa_rad": {"something": 1}}, [False]),
        ({"vqa_v2": {"cases": []}}, [None]),
        ({"unheard_of": [1]}, [False]),
    ],
)
def test_parts_of_metric_cases(content, passed, tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps(content))
    assert [row.passed for row in runner.run(tmp_path)] == passed


def test_an_evaluation_without_some_of_its_results(tmp_path):
    def change(content):
        keep("evaluation")(content)
        part = content["evaluation"]
        part["result"] = {"ALL": part["result"]["ALL"]}
        del part["question_types_with_count"], part["modality_accuracy"]

    altered(tmp_path, "cmsa/text_cases.json", "cases.json", change)
    (row,) = runner.run(tmp_path)
    assert (row.passed, row.note) == (True, "1/1")


# --- errors ----------------------------------------------------------------------------------------------------------------


def test_a_row_that_raises_is_a_miss_and_the_rest_goes_on(tmp_path):
    content = json.loads((GOLDEN / "rwsan/text_cases.json").read_text())
    content["tokenise"][0]["question"] = None
    content["schedule"][0]["data_size"] = "many"
    (tmp_path / "text_cases.json").write_text(json.dumps(content))
    rows = runner.run(tmp_path)
    assert {output for _, output, _ in failures(rows)} == {"tokenise", "schedule"}
    assert all("Error: " in note for _, _, note in failures(rows))
    assert sum(row.passed is True for row in rows) == len(content) - 3  # these and "about"


def test_a_case_that_raises_keeps_the_rows_before(tmp_path):
    altered(tmp_path, "rwsan/small.manifest.json", "made.manifest.json", lambda c: c["inputs"].clear())
    with np.load(tmp_path / "made.npz") as stored:
        arrays = {name: value for name, value in stored.items() if name != "in_ques_ix"}
    np.savez(tmp_path / "made.npz", **arrays)
    (tmp_path / "broken.json").write_text("{")
    rows = runner.run(tmp_path)
    assert [row.output for row in rows if row.passed] == ["(checkpoint and back)"]
    notes = {output: note for case, output, note in failures(rows) if case == "made"}
    assert "KeyError: 'ques_ix'" in notes[""]
    assert "stopped" in notes["logits"]


@pytest.mark.slow
def test_an_option_that_is_not_known_is_a_miss(tmp_path):
    def change(content):
        content["train"]["optimizer"]["amsgrad"] = True
        content["train"]["ema"] = 0.9
        content["train"]["mode"] = "train, dropout 0.5"
        content["base"] = "small.manifest.json"
        del content["train"]["trajectory"]

    altered(tmp_path, "rwsan/small_train.manifest.json", "any.manifest.json", change)
    altered(tmp_path, "rwsan/small.manifest.json", "small.manifest.json")
    rows = runner.run(tmp_path / "any.manifest.json")
    named = {output for _, output, _ in failures(rows)}
    assert {"(train.optimizer.amsgrad)", "(train.ema)", "(train.mode.dropout 0.5)"} <= named
    assert {row.output for row in rows if row.passed} >= {"loss", "grad_norm"}
    # The results of the run that the manifest does not ask for are not passed over.
    assert named - {"(train.optimizer.amsgrad)", "(train.ema)", "(train.mode.dropout 0.5)"} == {
        *("traj_lr", "traj_loss", "traj_loss_end", "traj_param_norm")
    }


def test_only_what_has_a_seed_is_a_recipe(tmp_path):
    def change(content):
        content["inputs"] = {spec["name"]: spec for spec in content["inputs"]}
        content["inputs"]["ques_ix"] = {"stored": True, "padding": 0}

    path = altered(tmp_path, "rwsan/small.manifest.json", "other.manifest.json", change)
    assert not failures(runner.run(path))


# --- retrieval -------------------------------------------------------------------------------------------------------------


def test_retrieval_cases_of_other_sizes_and_with_parts_left_out(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.permutation(12).reshape(3, 4).astype(float)

    def change(content):
        content["retrieval"][0].pop("scores_t2i")
        content["retrieval"][1]["expected"] = {"img_r5": content["retrieval"][1]["expected"]["img_r5"]}
        best = 100 * np.mean([scores[0].argmax() in (0, 1), scores[1].argmax() == 2, scores[2].argmax() == 3])
        small = {"image_to_captions": [[0, 1], [2], [3]], "scores_i2t": scores.tolist(), "expected": {"txt_r1": best}}
        content["retrieval"].append(small)

    (row,) = runner.run(altered(tmp_path, "metrics/retrieval_cases.json", "found.json", change))
    assert row.passed, row.note
    assert row.note == "29/29"


@pytest.mark.parametrize("name", ["txt_r5", "img_r1", "r_mean", "a measure that nobody knows"])
def test_another_recall_is_a_miss(name, tmp_path):
    def change(content):
        expected = content["retrieval"][2]["expected"]
        expected[name] = expected.get(name, 0.0) - 1e-5

    (row,) = runner.run(altered(tmp_path, "metrics/retrieval_cases.json", "found.json", change))
    assert row.passed is False
    assert f"case 2, {name}" in row.note


# --- summaries -------------------------------------------------------------------------------------------------------------


def test_summaries_of_a_case_of_any_name(tmp_path):
    path = altered(tmp_path, "flamingo/flamingo_report_small.manifest.json", "reports.manifest.json")
    with np.load(tmp_path / "reports.npz") as stored:
        arrays = dict(stored)
    logits, last = arrays.pop("out_logits"), arrays["in_mask"].sum(1) - 1

    def summary(x):
        return [x.mean(), x.std(), np.abs(x).max(), np.sqrt(np.square(x).mean())]

    kept = {name: arrays[name] for name in arrays if name.startswith("in_")}
    kept |= {
        "out_logits_slice": logits[:, :3, :50],
        "out_logits_stats": np.asarray([logits.mean(), logits.std(), logits.min(), logits.max(), *logits.flat[:5]]),
        "out_logits_summary": np.stack([summary(row) for row in logits]),
        "out_last_logits_summary": np.asarray(summary(logits[np.arange(2), last])),
        "out_hidden_norms": np.linalg.norm(arrays["out_hidden"], axis=-1),
    }
    np.savez(tmp_path / "reports.npz", **kept)
    rows = runner.run(path)
    assert not failures(rows)
    assert len(rows) == 6  # and the checkpoint's way there and back


# --- training is decided in float64 ----------------------------------------------------------------------------------------


ALL = np.ones(4, bool), np.zeros(4, bool)
"""All of four parameters count, and none has a gradient of 0."""


class Numbers:
    """What the original is taken to have computed."""

    expected = np.asarray([1.0, 2.0, 4.0, 0.001])

    def rows(self, change, *, moved=False, own=0.0):
        """float32 and float64 rows of a norm, a loss and an array that are off by a share of each entry."""
        stored = dict.fromkeys(("norm", "loss", "array"), self.expected)
        case = cases.Case("made", {"float32_error": {"out_norm": own, "out_array": own}}, {}, stored, {})

        def compute(precision):
            ours = self.expected * (1 + np.asarray(change))
            for kind, name in (("moved" if moved else "norms", "norm"), ("loss", "loss"), ("values", "array")):
                yield from precision.rows(kind, name, ours, *ALL)

        rows = list(training.in_both(case, compute))
        return {(row.precision, row.output): row.passed for row in rows if row.decides}, rows


def test_float64_decides_and_float32_by_losses_and_medians():
    decided, rows = Numbers().rows([0, 0, 0, 5e-3])
    assert decided == {
        ("float32", "norm, median"): True,
        ("float32", "loss"): True,
        ("float64", "norm"): False,
        ("float64", "loss"): True,
        ("float64", "array"): True,  # 5e-6 of 4
    }
    assert len(rows) == len(decided) + 2
    decided, _ = Numbers().rows([3e-4] * 4)
    assert not any(decided.values())


def test_norms_after_a_step_count_on_the_scale_of_the_largest_and_by_the_median():
    decided, _ = Numbers().rows([0, 0, 0, 5e-3], moved=True)
    assert decided["float64", "norm"]
    assert decided["float64", "norm, median"]
    decided, _ = Numbers().rows([0, 2e-3, 2e-4, 2e-4], moved=True)
    assert not decided["float64", "norm"]
    assert not decided["float64", "norm, median"]


def test_numbers_that_are_off_in_the_original_itself_do_not_decide():
    decided, rows = Numbers().rows([0, 0, 2e-4, 0], moved=True, own=2e-4)
    assert decided["float64", "norm, median"]
    assert ("float64", "norm") not in decided
    assert any("own error: 2.0e-04" in row.note for row in rows)


def test_the_originals_float64_decides_where_its_float32_is_off():
    exact = Numbers.expected
    stored = {"norm": exact * (1 + np.asarray([0, 0, 0, 2e-4])), "norm_float64": exact}
    case = cases.Case("made", {}, {}, stored, {})
    rows = list(
        training.in_both(case, lambda precision: (r for n in stored for r in precision.rows("norms", n, exact, *ALL)))
    )
    decided = {row.output: row.passed for row in rows if row.decides and row.precision == "float64"}
    assert decided == {"norm, median": True, "norm_float64": True}


def test_a_gradient_of_zero_has_to_be_0():
    case = cases.Case("made", {}, {}, {"norm": np.asarray([1.0, 2.0, 0.0, 4.0])}, {})
    zero = np.asarray([False, False, True, False])
    for noise, passed in ((1e-7, True), (1e-4, False)):
        ours = np.asarray([1.0, 2.0, noise, 4.0])
        rows = list(training.Precision(case, np.float64).rows("gradients", "norm", ours, ~zero, zero))
        assert [(row.output, row.passed) for row in rows] == [("norm", True), ("(norm of zero)", passed)]


def test_a_value_that_raises_is_a_miss():
    case = cases.Case("made", {}, {}, {"norm": np.ones(4)}, {})
    (row,) = training.Precision(case, np.float64).rows("norms", "norm", lambda: {}["a parameter"], *ALL)
    assert (row.passed, row.note) == (False, "KeyError: 'a parameter'")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails_in_both(value):
    decided, _ = Numbers().rows([0, 0, 0, value])
    assert {key for key, passed in decided.items() if not passed} >= {
        (precision, name) for precision in ("float32", "float64") for name in ("norm", "loss", "array")
    }


def test_rows_for_information_count_neither_way(capsys, monkeypatch, tmp_path):
    shown = cases.Row("a", "b", None, 1.0, 1e-4, precision="float32", decides=False)
    (tmp_path / "cases.json").write_text("{}")
    monkeypatch.setattr(runner, "run", lambda path: [shown])
    assert runner.main([str(tmp_path)]) == 1
    monkeypatch.setattr(runner, "run", lambda path: [shown, cases.Row("a", "c", True)])
    assert runner.main([str(tmp_path)]) == 0
    assert "1 passed, 0 failed, 0 skipped, 1 for information" in capsys.readouterr().out


# --- Flamingo's smoothing --------------------------------------------------------------------------------------------------


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["options", "training", "manifest"])
def test_flamingo_takes_its_smoothing_from_the_manifest(where, tmp_path):
    # The logits of the case without training have no formula in common with the losses: the originals', here in NumPy.
    words, classes = 0.02, 0.3

    def change(content):
        stated = {"label_smoothing": classes, "token_label_smoothing": words}
        {"options": content["options"], "training": content.setdefault("training", {}), "manifest": content}[
            where
        ].update(stated)
        content["runs"] = {"one_finetune": {}}
        content["gradients"] = {}

    path = altered(tmp_path, "flamingo/flamingo_train_small.manifest.json", "rates.manifest.json", change)
    with np.load(tmp_path / "rates.npz") as stored:
        arrays = {name: value for name, value in stored.items() if name.startswith("in_")}
    ours = flamingo_logits(path, arrays)
    nll = -log_softmax(ours["logits"][0].astype(np.float64))
    right = nll[np.arange(len(nll)), arrays["in_targets"][0]]
    each = (1 - words) * right + words * nll.mean(-1)
    mask = arrays["in_mask"][0]
    generation = (each * mask).sum() / mask.sum()
    nll = -log_softmax(ours["class_logits"][0].astype(np.float64))
    classification = (1 - classes) * nll[arrays["in_labels"][0]] + classes * nll.mean()
    content = json.loads(path.read_text())
    content["runs"]["one_finetune"] = {"generation_loss": generation, "classification_loss": classification}
    content["runs"]["one_finetune"]["loss"] = generation + classification
    path.write_text(json.dumps(content))
    np.savez(tmp_path / "rates.npz", **arrays)
    rows = runner.run(path)
    assert not failures(rows)
    assert len(rows) == 7
    content["options"]["ema"] = 1
    path.write_text(json.dumps(content))
    assert [output for _, output, _ in failures(runner.run(path))] == ["(options.ema)"]


def flamingo_logits(path, arrays):
    """Our model's outputs of a training case's texts."""
    from jaxvqa.convert import flamingo
    from jaxvqa.golden.flamingo import _forward

    case = cases.Case.read(path)
    config = flamingo.model_config({k: v for k, v in case.manifest["options"].items() if "smoothing" not in k})
    found = case.through_file(case.checkpoint(), {"epoch": 3}, lambda file: flamingo.load(file, config))
    ours = _forward(case, found.config, found.params)
    return {name: np.asarray(ours[name]) for name in ("logits", "class_logits")}
