"""Runs that answer together: votes, masks, files and numbers of a whole command; and which runs may not."""

import json

import jax
import numpy as np
import pytest

from jaxvqa import configs, logs, main
from jaxvqa.convert import workdir
from jaxvqa.ensembles import evaluation as ensemble
from jaxvqa.errors import ConfigError
from jaxvqa.report.page import write as write_report
from jaxvqa.tasks import task_class, task_with_assets
from tests import vqa_med_files
from tfds_builders.build import build
from tfds_builders.vqa_med.vqa_med_dataset_builder import Builder

CONFIG = "configs/sysu_hcp_ensemble.py"

CLASSES = GOUT, CYST, UPPER = "gout", "spine, \u00a0cyst", "Gout"
IMAGES = ("synpic22", "synpic23")  # of the test split; "… in the mri?" is asked about the first

# Members that say the same of every picture -> their logits. Only the last is above the threshold of the masks.
SAY = {"gout": (0.4, 0.3, 0.2), "gout_too": (0.4, 0.3, 0.2), "cyst": (0.1, 0.4, 0.3), "surely_cyst": (0.0, 9.0, 1.0)}

TINY = {"model__sizes": {"blocks": (1, 1, 1, 1), "widths": (4, 4, 4, 4, 4), "folded": True}, "data__image_size": 32}
WIDER = {"blocks": (1, 1, 1, 1), "widths": (4, 4, 4, 6, 6), "folded": True}


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """A folder with the data set, members, and masks. (`phantoms` brings a cache of compiled programs.)"""
    folder = tmp_path_factory.mktemp("ensemble")
    vqa_med_files.write(folder / "manual")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "EXPECTED_COUNTS", {})
        for part in ("questions_sysu_hcp", "images_sysu_hcp"):
            build("vqa_med", part, manual_dir=folder / "manual", data_dir=folder / "data")
    for name, logits in SAY.items():
        write_run(folder / name, says=logits, **TINY)
    (folder / "modelmask.json").write_text(json.dumps({"ct": [1], "mri": [0, 2]}))
    return folder


def write_run(folder, *, config="configs/sysu_hcp.py:vqa_med_2021,RepVGG-B0", says=None, classes=CLASSES, **fields):
    """A run of a tiny network as a conversion leaves it: of random weights, or one that says the same of every picture."""
    config = configs.load(config)
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        config.data.dir = str(folder.parent / "data")
    assets = task_class(config.task).stand_in_assets(config) | {"answers": list(classes)}
    shapes = jax.eval_shape(task_with_assets(config, assets).init, jax.random.key(0))
    random = np.random.default_rng(len(folder.name))
    variables = jax.tree.map(lambda s: np.abs(random.normal(0, 0.5, s.shape)).astype(s.dtype), shapes)
    if says:
        head = variables["params"]["head"]["classifier"]
        head |= {"kernel": np.zeros_like(head["kernel"]), "bias": np.float32(says)}
    workdir.write(folder, config, variables, None, assets, {})


def changes(runs, *members, **fields):
    everything = {"members": ",".join(str(runs / member) for member in members), "data.dir": runs / "data"}
    everything |= {name.replace("__", "."): value for name, value in fields.items()}
    return [(name, str(value)) for name, value in everything.items()]


def evaluate(runs, folder, *members, split="test", **fields):
    """The answers and all values of members together."""
    config = configs.load(CONFIG)
    configs.override(config, changes(runs, *members, **fields))
    values = ensemble.evaluate(config, folder, split)
    return rows_of(folder), values


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions/test_0.jsonl").read_text().splitlines()]


def answers(rows):
    return [row["answer"] for row in rows]


def test_two_networks_from_the_command_line(runs, phantoms, tmp_path, capsys):
    write_run(runs / "narrow", **TINY)
    write_run(runs / "wider", model__sizes=WIDER, data__image_size=40)
    options = [f"--config.{name}={value}" for name, value in changes(runs, "narrow", "wider")]
    command = [f"--config={CONFIG}", f"--workdir={tmp_path}", "--mode=predict", "--split=test", *options]
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    (values,) = logs.read_metrics(tmp_path)
    rows = rows_of(tmp_path)
    assert [row["image_name"] for row in rows] == list(IMAGES)
    # A member's vote is its answer at its own size, and its score its own.
    assert main.main(["--mode=predict", "--split=test", f"--workdir={runs / 'wider'}"]) == 0
    assert [row["votes"][1] for row in rows] == answers(rows_of(runs / "wider"))
    assert f"{values['test/members/wider/accuracy']:.2f}" in capsys.readouterr().out
    assert f"test/members/wider/bleu {values['test/members/wider/bleu']:.2f}" in " ".join(printed.split())
    best = max(values[f"test/members/{name}/accuracy"] for name in ("narrow", "wider"))
    assert values["test/over_best_member"] == values["test/accuracy"] - best
    assert values["test/over_best_member/low"] <= values["test/over_best_member"]
    assert values["test/controls/ceiling"] == 50  # "ulcer" is none of the classes
    assert values["test/controls/majority"] == values["test/controls/question_only"] == 50  # gout
    submission = (tmp_path / "predictions/test_0_imageclef.txt").read_text(encoding="utf-8")
    lines = [line.split("|") for line in submission.splitlines()]
    assert lines == [list(pair) for pair in zip(IMAGES, answers(rows), strict=True)]
    # The folder is enough to go on with.
    assert main.main([f"--workdir={tmp_path}", "--mode=predict", "--split=val"]) == 0
    assert (tmp_path / "predictions/val_0_imageclef.txt").read_text().startswith("synpic21|")
    page = " ".join(write_report(tmp_path).read_text().split())
    for words in ("Beside its members", "narrow", "wider", "the most that the answer list allows", "--mode=eval"):
        assert words in page
    assert "data:image/jpeg" in page
    for words in ("not finished", "after step", "cannot be shown", "attention"):
        assert words not in page


@pytest.mark.parametrize(
    ("members", "fields", "expected"),
    [
        (("gout", "cyst"), {}, [GOUT, GOUT]),  # the earlier vote wins
        (("cyst", "gout"), {}, [CYST, CYST]),
        (("gout", "cyst", "surely_cyst"), {"mask": True}, [GOUT, CYST]),  # votes for the mri: gout, Gout, cyst
        (("gout", "gout_too", "surely_cyst"), {}, [GOUT, GOUT]),
        (("gout", "gout_too", "surely_cyst"), {"vote": "mean_probabilities"}, [CYST, CYST]),
        (("gout", "gout_too", "surely_cyst"), {"vote": "mean_probabilities", "mask": True}, [GOUT, CYST]),
    ],
)
def test_votes(runs, tmp_path, members, fields, expected):
    mask = {"data__mask_file": runs / "modelmask.json"} if fields.pop("mask", False) else {}
    rows, values = evaluate(runs, tmp_path, *members, **fields, **mask)
    assert answers(rows) == expected
    votes = [vote == row["answer"] for row in rows for vote in row["votes"]]
    assert values["test/agreement"] == pytest.approx(100 * sum(votes) / len(votes))
    assert all(0 < row["probability"] < 1 for row in rows)


def test_as_written_leaves_out_what_the_original_stops_at(runs, tmp_path, caplog):
    fields = {"reading": "as_written", "data__mask_file": runs / "modelmask.json"}
    rows, values = evaluate(runs, tmp_path, "gout", "cyst", "surely_cyst", **fields)
    assert [(row["answer"], row.get("unanswered", False), row["votes"]) for row in rows] == [
        ("", True, ["", "", CYST]),
        (CYST, False, [GOUT, CYST, CYST]),
    ]
    assert values["test/unanswered"] == 50
    assert "1 of 2 questions have no answer" in caplog.text
    assert values["test/accuracy"] == rows[0]["accuracy"] == rows[0]["bleu"] == 0
    assert values["test/members/surely_cyst/accuracy"] == values["test/members/gout/accuracy"] == 0
    assert not list(tmp_path.rglob("*imageclef*"))  # the challenge takes no blank answer


def test_names_are_repaired_where_asked_and_garbled_lists_are_the_same(runs, tmp_path):
    garbled = "hodgkin’s".encode().decode("gbk")
    write_run(tmp_path / "published", says=SAY["surely_cyst"], **TINY, classes=(GOUT, garbled, UPPER))
    write_run(tmp_path / "own", says=SAY["gout"], **TINY, classes=(GOUT, "hodgkin’s", UPPER))
    members = tmp_path / "published", tmp_path / "own"
    rows, _ = evaluate(runs, tmp_path / "plain", *members)
    assert answers(rows) == [garbled, garbled]
    rows, _ = evaluate(runs, tmp_path / "repaired", *members, repair_names=True)
    assert answers(rows) == ["hodgkin’s", "hodgkin’s"]
    assert "synpic22|hodgkin’s\n" in (tmp_path / "repaired/predictions/test_0_imageclef.txt").read_text("utf-8")


def test_all_that_keeps_runs_from_voting_is_reported_at_once(runs, tmp_path):
    write_run(tmp_path / "fewer", **TINY, classes=CLASSES[:2], data__limit=1)
    write_run(tmp_path / "turned", **TINY, classes=(GOUT, UPPER, CYST))
    write_run(tmp_path / "rwsan", config="configs/rwsan.py:small", compile__vocab_size=2, compile__num_answers=3)
    members = ("gout", "gout", "nowhere", *(tmp_path / name for name in ("rwsan", "fewer", "turned")))
    with pytest.raises(ConfigError) as caught:
        evaluate(runs, tmp_path / "no", *members)
    first = runs / "gout"
    for part in (
        f"{first}: given twice",
        f"{runs / 'nowhere'} holds no checkpoints",
        f"{tmp_path / 'rwsan'}: its task, answer_classification, gives no logits",
        f"{tmp_path / 'fewer'}: config.data.limit is 1, that of {first} is 0; give --config.data.limit",
        f"{tmp_path / 'fewer'}: its classes are not those of {first}: 2 and 3; 2 is none, not 'Gout'",
        f"{tmp_path / 'turned'}: its classes are not those of {first}: 3 and 3 (the same ones in another order); "
        "1 is 'Gout', not 'spine, \\xa0cyst'",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "no").exists()
    with pytest.raises(
        ConfigError, match=r"rank_bug': choose intended or as_written(?s:.*)vote is 'most': choose majo"
    ):
        evaluate(runs, tmp_path / "no", *members, vote="most", reading="rank_bug")
    with pytest.raises(ConfigError, match="members is empty"):
        evaluate(runs, tmp_path / "no")
    with pytest.raises(ConfigError, match="by majority; it has no mean_probabilities"):
        evaluate(runs, tmp_path / "no", "gout", vote="mean_probabilities", reading="as_written")


def test_a_folder_of_another_run_is_left_alone(runs, tmp_path, capsys):
    before = (runs / "gout/config.json").read_text()
    with pytest.raises(ConfigError, match="another config"):
        evaluate(runs, runs / "gout", "gout", "cyst")
    assert (runs / "gout/config.json").read_text() == before
    assert main.main([f"--config={CONFIG}", "--config.members=a,b"]) == 2
    assert "nothing to train. Add --mode=eval or predict" in capsys.readouterr().err
