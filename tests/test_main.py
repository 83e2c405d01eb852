"""The program as a user meets it: modes, messages, exit codes."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxvqa import checkpoints, logs, main, train
from jaxvqa.errors import ConfigError, DivergedError, StorageError, os_errors
from tests import listening, runs


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, listening.Noted]:
    """A finished tiny run with an average of the parameters and a profile, and what was said while it ran."""
    workdir = tmp_path_factory.mktemp("finished")
    config = runs.tiny_config(phantoms, optim__ema=0.5, profile_steps="2:3")
    with listening.heard() as noted:
        train.train(config, workdir)
    return workdir, noted


@pytest.fixture(scope="module")
def finished(trained: tuple[Path, listening.Noted]) -> Path:
    return trained[0]


def call(phantoms: Path, **changes: object) -> list[str]:
    """The changes that make a run tiny, and others, with __ for a dot."""
    everything = runs.tiny_changes(phantoms) | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config.{name}={value}" for name, value in everything.items()]


def test_help_teaches(capsys):
    assert main.main(["--help", "--config=configs/rwsan.py:small"]) == 0
    text = capsys.readouterr().out
    assert "python -m jaxvqa.main --config=configs/rwsan.py" in text
    assert "--config.optim.lr=0.001" in text
    assert "IEEE TMM 2022" in text


def test_a_run_leaves_what_it_promises(finished):
    rows = logs.read_metrics(finished)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    evaluation = next(row for row in rows if "val/accuracy" in row)
    assert evaluation["val/accuracy/low"] <= evaluation["val/accuracy"] <= evaluation["val/accuracy/high"]
    assert any((finished / "tensorboard").iterdir())
    assert any((finished / "profile").rglob("*.xplane.pb"))
    predictions = [json.loads(line) for line in (finished / "predictions" / "val_6.jsonl").read_text().splitlines()]
    assert len(predictions) == 64
    assert len({row["id"] for row in predictions}) == 64
    mean = 100 * np.mean([row["accuracy"] for row in predictions])
    assert mean == pytest.approx(evaluation["val/accuracy"])
    results = json.loads((finished / "predictions" / "val_6_evalai.json").read_text())
    assert results == [{"answer": row["answer"], "question_id": row["id"]} for row in predictions]


def test_a_checkpoint_is_enough_to_evaluate_and_predict(finished, phantoms, tmp_path, capsys):
    # Only the checkpoint travels; the config comes from it.
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    with listening.heard() as noted:
        assert main.main([f"--workdir={tmp_path}", "--mode=eval"]) == 0
    restored = {"restore_model": "restoring the checkpoint of step 6 …"}
    listening.assert_lines_before(noted, restored | {r"jit\(function\)": "evaluating val: 0 of 3 …"})
    value = next(row for row in logs.read_metrics(finished) if "val/accuracy" in row)["val/accuracy"]
    assert f"{value:.2f}" in capsys.readouterr().out
    with listening.heard() as noted:
        assert main.main([f"--workdir={tmp_path}", "--mode=predict", "--split=test"]) == 0
    listening.assert_lines_before(noted, restored | {r"jit\(function\)": "evaluating test: 0 of 3 …"})
    assert (tmp_path / "predictions" / "test_6_evalai.json").exists()


def test_a_line_is_before_what_takes_long(trained):
    lines = {
        "split": "opening phantom_vqa/tiny_questions …",
        r"jit\(fresh\)": "making the parameters …",
        r"jit\(train_step\)": "step: 0 of 6, compiling the training step …",
        r"jit\(function\)": "evaluating val: 0 of 3 …",
    }
    listening.assert_lines_before(trained[1], lines)


def test_a_finished_run_is_not_evaluated_again(finished, phantoms, monkeypatch):
    monkeypatch.setattr(train, "run_evaluator", lambda name, *_: pytest.fail(f"{name} is evaluated again"))
    with listening.heard() as noted:
        values = train.train(runs.tiny_config(phantoms, optim__ema=0.5, profile_steps="2:3"), finished)
    listening.assert_lines_before(noted, {"restore": "restoring the checkpoint of step 6 …"})
    assert not [name for name, _ in noted if name in ("jit(train_step)", "jit(function)")]
    written = next(row for row in logs.read_metrics(finished) if "val/accuracy" in row)
    assert values == {name: value for name, value in written.items() if name.startswith("val/")}


def test_average_follows_the_parameters(finished):
    saved = checkpoints.Checkpoints(finished, read_only=True)
    model = saved.restore_model(saved.model_shapes())
    difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), model["params"], model["ema"]["params"])
    assert 0 < max(jax.tree.leaves(difference)) < 0.1
    saved.close()


def test_parameters_start_from_another_run(finished, phantoms, tmp_path):
    # A run of one step with a rate of 0 saves what it started from.
    config = runs.tiny_config(
        phantoms,
        total="1 steps",
        init_from__model__workdir=str(finished),
        init_from__model__table="((r'classifier/.*', False), (r'.*', True))",
        optim__ema=0.5,
        optim__lr=0.0,
    )
    train.train(config, tmp_path)
    ours, theirs = (checkpoints.Checkpoints(w, read_only=True) for w in (tmp_path, finished))
    assert theirs.latest_step() == 6
    a, b = (c.restore_model(c.model_shapes()) for c in (ours, theirs))
    for started in (a["params"], a["ema"]["params"]):
        np.testing.assert_array_equal(started["embed"]["embedding"], b["ema"]["params"]["embed"]["embedding"])
        assert not np.array_equal(started["classifier"]["kernel"], b["ema"]["params"]["classifier"]["kernel"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/rwsan.py", "--config.optim.lrr=1"], ["optim.lrr", "'optim.lr'"]),
        (["--confg=configs/rwsan.py"], ["--confg", "'config'", "--config is missing"]),
        (["--config=configs/rwsan.py:smal"], ["'smal'", "'small'"]),
        (["--config=configs/nothing.py"], ["configs/nothing.py", "choose blip_caption", "rwsan"]),
        (["--config=configs/rwsan.py", "--mode=trian"], ["trian", "'train'"]),
        (["--config=configs/rwsan.py", "--config.optim.lr=1", "--config.optim.lr=2"], ["optim.lr: given 2 times"]),
        (["--config=configs"], ["'configs' is a folder", "choose blip_caption", "rwsan"]),
        (["--mode=eval"], ["--workdir"]),
        (["--mode=predict", "--workdir=x"], ["--split"]),
        (["--mode=eval", "--workdir=/nonexistent"], ["/nonexistent", "no checkpoints"]),
        (["--config=configs/rwsan.py", "--config.mesh.data=3"], ["data=3", "1 devices"]),
        (["--config=configs/rwsan.py:small", "--config.microbatches=3"], ["batch_size = 16", "multiple of 3"]),
        (["--config=configs/rwsan.py:small", "--config.total=soon"], ["'soon'", "duration"]),
        (["--config=configs/rwsan.py:small", "--config.task=answer"], ["'answer'", "answer_classification"]),
        (["--config=configs/rwsan.py:small", "--config.model.name=rwsn"], ["'rwsn'", "rwsan"]),
        (["--config=configs/rwsan.py:small", "--config.dtype=float8"], ["float8", "bfloat16"]),
        (["--config=configs/rwsan.py:small", "--config.data.train_split=trian"], ["'trian'", "'train'"]),
        (["--config=configs/rwsan.py:small", "--config.optim.freeze=(('x', True),)"], ["optim.freeze", "'x'"]),
        (["--config=configs/rwsan.py:small", "--config.batch_size=4096"], ["fewer than one batch"]),
    ],
)
def test_mistakes_are_reported_in_one_message(phantoms, tmp_path, capsys, arguments, words):
    changes = [c for c in call(phantoms) if c.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    with_run = arguments if "--mode" in arguments[0] else [*changes, f"--workdir={tmp_path}", *arguments]
    assert main.main(with_run) == 2
    text = capsys.readouterr().err
    assert all(word in text for word in words), text
    assert "Traceback" not in text
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def test_a_data_set_that_is_not_built(phantoms, tmp_path, capsys):
    arguments = [
        *call(phantoms, data__dir=tmp_path),
        "--config=configs/rwsan.py:small",
        f"--workdir={tmp_path}",
    ]
    assert main.main(arguments) == 2
    assert "python -m tfds_builders.build phantom_vqa --config=tiny_questions" in capsys.readouterr().err


def copied(phantoms, folder):
    """The same data sets in a folder of their own."""
    shutil.copytree(phantoms / "phantom_vqa", folder / "phantom_vqa")
    return [*call(phantoms, data__dir=folder), "--config=configs/rwsan.py:small", f"--workdir={folder}"]


def test_a_data_set_without_random_access(phantoms, tmp_path, capsys):
    arguments = copied(phantoms, tmp_path)
    info = next((tmp_path / "phantom_vqa/tiny_questions").glob("*/dataset_info.json"))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    assert main.main(arguments) == 2
    text = capsys.readouterr().err
    assert "stored as tfrecord" in text
    assert "--file_format=array_record" in text


def test_a_record_that_is_damaged(phantoms, tmp_path, capsys):
    arguments = copied(phantoms, tmp_path)
    for file in (tmp_path / "phantom_vqa/tiny_images").glob("*/*train.array_record*"):
        content = bytearray(file.read_bytes())
        content[4096 : len(content) // 2] = bytes(len(content) // 2 - 4096)
        file.write_bytes(content)
    assert main.main(arguments) == 2
    text = capsys.readouterr().err
    assert "phantom_vqa/tiny_images (" in text
    assert "cannot be read" in text
    assert "--overwrite" in text


def test_a_workdir_of_another_config(finished, phantoms, capsys):
    arguments = ["--config=configs/rwsan.py:small", f"--workdir={finished}", *call(phantoms), "--config.optim.lr=0.5"]
    assert main.main(arguments) == 2
    text = capsys.readouterr().err
    assert f"optim.lr: was {runs.tiny_config(phantoms).optim.lr}, now 0.5" in text
    assert "optim.ema: was 0.5, now 0.0" in text


def test_a_checkpoint_of_another_model(finished, phantoms, capsys):
    arguments = ["--mode=eval", f"--workdir={finished}", "--config.model.width=64"]
    assert main.main(arguments) == 2
    text = capsys.readouterr().err
    assert "shape: params/" in text
    assert "does not fit" in text


def test_a_checkpoint_that_was_cut(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "6" / "model").rglob("*"):
        if file.is_file() and file.stat().st_size > 2000:
            os.truncate(file, 100)
    assert main.main(["--mode=eval", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(phantoms, tmp_path):
    schedule = {"optim__schedule__name": "cosine", "optim__schedule__warmup": "4 steps"}
    config = runs.tiny_config(phantoms, optim__lr=1e30, checkpoint__every="1 steps", **schedule)
    with pytest.raises(DivergedError, match=r"Step \d: .*loss") as error:
        train.train(config, tmp_path)
    assert error.value.exit_code == 3
    saved = checkpoints.Checkpoints(tmp_path, read_only=True)
    step = saved.latest_step()
    assert step is not None
    assert f"step {step} is kept" in str(error.value)
    model = saved.restore_model(saved.model_shapes())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model["params"]))


def test_a_full_disk_keeps_the_earlier_checkpoints(phantoms, tmp_path, monkeypatch):
    config = runs.tiny_config(phantoms)
    real, calls = shutil.disk_usage, []

    def fuller_each_time(path):
        calls.append(path)
        return real(path) if len(calls) == 1 else SimpleNamespace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", fuller_each_time)
    with pytest.raises(StorageError, match="No room for a checkpoint") as error:
        train.train(config, tmp_path)
    assert error.value.exit_code == 74
    assert checkpoints.Checkpoints(tmp_path, read_only=True).latest_step() == 2


def test_a_write_that_fails_is_reported(tmp_path):
    with pytest.raises(StorageError, match="Free space"), os_errors(tmp_path):
        raise OSError(28, "No space left on device")


def test_a_compilation_cache_that_others_can_write(phantoms, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    arguments = ["--config=configs/rwsan.py:small", *call(phantoms, compilation_cache=folder)]
    assert main.main([*arguments, f"--workdir={tmp_path}"]) == 2
    assert "others can write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "field", "kept"),
    [
        ({}, "{tmp}/field", "{tmp}/field"),
        ({"JAX_COMPILATION_CACHE_DIR": "{tmp}/own"}, "{tmp}/field", "{tmp}/own"),
        ({"JAX_COMPILATION_CACHE_DIR": "{tmp}/own"}, "", "{tmp}/own"),
        ({"JAX_COMPILATION_CACHE_DIR": "~/own"}, "{tmp}/field", "{tmp}/home/own"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, "{tmp}/field", None),
        ({"JAX_COMPILATION_CACHE_DIR": "gs://bucket/xla"}, "{tmp}/field", "gs://bucket/xla"),
        ({}, "gs://bucket/xla", "gs://bucket/xla"),
        ({}, "~/.cache/jaxvqa/xla", "{tmp}/home/.cache/jaxvqa/xla"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "~/.cache/jaxvqa/xla", "{tmp}/xdg/jaxvqa/xla"),
        ({"XDG_CACHE_HOME": "relative"}, "~/.cache/jaxvqa/xla", "{tmp}/home/.cache/jaxvqa/xla"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "{tmp}/field", "{tmp}/field"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg", "JAX_COMPILATION_CACHE_DIR": "{tmp}/own"}, "~/.cache/jaxvqa/xla", "{tmp}/own"),
    ],
)
def test_where_compiled_programs_are_kept(tmp_path, monkeypatch, variables, field, kept):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "{tmp}/home"} | variables).items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    main.use_compilation_cache(field.format(tmp=tmp_path))
    assert asked.get("jax_compilation_cache_dir") == (kept and kept.format(tmp=tmp_path))
    if kept and "://" not in kept:
        assert (Path(asked["jax_compilation_cache_dir"]).stat().st_mode & 0o777) == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {Path(kept.format(tmp=tmp_path)).relative_to(tmp_path).parts[0]} if kept and "://" not in kept else ()
    )


def test_a_cache_of_the_environment_that_others_can_write(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"JAX_COMPILATION_CACHE_DIR = .*: others can write"):
        main.use_compilation_cache("")


def test_data_that_changed_since(finished, phantoms, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    file = next((tmp_path / "run" / "checkpoints" / "6" / "meta").rglob("metadata"))
    file.write_text(file.read_text().replace('"size": 64', '"size": 63'))
    arguments = ["--config=configs/rwsan.py:small", f"--workdir={tmp_path / 'run'}", *call(phantoms, total="8 steps")]
    assert main.main([*arguments, "--config.optim.ema=0.5"]) == 2
    assert "size: was 63, now 64" in capsys.readouterr().err


@pytest.mark.slow
def test_bfloat16_trains(phantoms, tmp_path):
    train.train(runs.tiny_config(phantoms, dtype="bfloat16", total="4 steps"), tmp_path)
    losses = [row["train/loss"] for row in logs.read_metrics(tmp_path) if "train/loss" in row]
    assert losses[-1] < losses[0]
