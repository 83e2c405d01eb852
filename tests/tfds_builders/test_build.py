"""The build command: names, verification, clean starts, missing files, exit codes."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvqa.configs import common
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.records import Records
from jaxvqa.errors import DataError, StorageError
from tfds_builders.build import build, builder_names, config_names, main, verify
from tfds_builders.manual import ManualFile, missing_files, require_files
from tfds_builders.phantom_vqa.phantom_vqa_dataset_builder import Builder

TINY = ["phantom_vqa", "--config=tiny_questions"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data_dir with tiny_questions built."""
    data_dir = tmp_path_factory.mktemp("built")
    assert main([*TINY, f"--data_dir={data_dir}"]) == 0
    return data_dir


def folder(data_dir, config="tiny_questions"):
    return Path(data_dir) / "phantom_vqa" / config / str(Builder.VERSION)


def modified(path):
    return {file.name: file.stat().st_mtime_ns for file in path.iterdir()}


def test_names_and_default_configs():
    assert "phantom_vqa" in builder_names()
    assert config_names("phantom_vqa") == ["questions", "images", "captions", "pairs"]
    assert config_names("phantom_vqa", ["tiny_images"]) == ["tiny_images"]


def test_unknown_names_are_answered_with_the_nearest(capsys, tmp_path):
    assert main(["fantom_vqa", f"--data_dir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "No data set 'fantom_vqa'" in message
    assert "Did you mean 'phantom_vqa'" in message
    assert "Traceback" not in message
    assert main(["phantom_vqa/tiny_question", f"--data_dir={tmp_path}"]) == 2
    assert "Did you mean 'tiny_questions'" in capsys.readouterr().err
    # A wrong name stops the command before the right ones are built.
    assert main(["phantom_vqa/tiny_questions", "nothing_like_it", f"--data_dir={tmp_path}"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_second_build_verifies_and_leaves_the_files_alone(built, capsys):
    before = modified(folder(built))
    assert main([*TINY, f"--data_dir={built}"]) == 0
    assert modified(folder(built)) == before
    table = capsys.readouterr().out
    assert "verified" in table
    assert str(folder(built)) in table
    rows = {line.split()[1]: line.split()[2] for line in table.splitlines() if "/tiny_questions " in line}
    assert rows == {"train": "480", "val": "160", "test": "160"}


def test_overwrite_builds_again_the_same(built, tmp_path):
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 0
    before, first = modified(folder(tmp_path)), contents(folder(tmp_path))
    assert main([*TINY, f"--data_dir={tmp_path}", "--overwrite"]) == 0
    assert modified(folder(tmp_path)) != before
    assert contents(folder(tmp_path)) == first == contents(folder(built))


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if "array_record" in file.name}


def test_num_shards(tmp_path):
    build("phantom_vqa", "tiny_questions", data_dir=tmp_path, num_shards=3)
    assert len(list(folder(tmp_path).glob("*train.array_record-*-of-00003"))) == 3
    assert verify(Builder(data_dir=tmp_path, config="tiny_questions")) == {"train": 480, "val": 160, "test": 160}


def test_leftovers_of_an_interrupted_build_are_removed(tmp_path, capsys):
    leftover = tmp_path / "phantom_vqa" / "tiny_questions" / "incomplete.ABC123_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "phantom_vqa-train.array_record-00000-of-00001").write_bytes(b"half")
    other = tmp_path / "phantom_vqa" / "tiny_images" / "incomplete.XYZ999_1.0.0"
    other.mkdir(parents=True)
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 0
    assert not leftover.exists()
    assert other.exists(), "another config's build may be running"
    assert str(leftover) in capsys.readouterr().err


def test_killed_build_leaves_nothing_that_counts_as_built(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfds_builders.phantom_vqa.phantom_vqa_dataset_builder.make_questions", stop)
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 130
    assert not folder(tmp_path).exists()
    monkeypatch.undo()
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 0


def test_two_builds_at_once_are_refused(tmp_path, capsys):
    lock = tmp_path / "phantom_vqa" / "tiny_questions" / ".build.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main([*TINY, f"--data_dir={tmp_path}"]) == 2
    assert "Another process" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["delete", "truncate", "count"])
def test_damaged_data_set_is_named_and_not_taken_for_good(tmp_path, capsys, damage):
    build("phantom_vqa", "tiny_questions", data_dir=tmp_path)
    shard = next(folder(tmp_path).glob("*val.array_record*"))
    if damage == "delete":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:1000])
    else:
        info = folder(tmp_path) / "dataset_info.json"
        stated = json.loads(info.read_text())
        stated["splits"][1]["shardLengths"] = ["159"]
        info.write_text(json.dumps(stated))
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert shard.name in message
    assert "--overwrite" in message
    assert main([*TINY, f"--data_dir={tmp_path}", "--overwrite"]) == 0


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "metadata.json"])
@pytest.mark.parametrize("content", [b"[1]", b'{"a": [1, 2'])
def test_a_damaged_description_is_named(built, tmp_path, capsys, file, content):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / file).write_bytes(content)
    with pytest.raises(DataError, match=r"tiny_questions.*cannot be read: .*Move the folder away, and build it anew"):
        Records("phantom_vqa/tiny_questions", "val", folder=str(tmp_path))
    if file == "dataset_info.json":
        assert main([*TINY, f"--data_dir={tmp_path}"]) == 2
        assert f"{tmp_path}/phantom_vqa/tiny_questions cannot be read" in capsys.readouterr().err
        config = common.data_section(
            dir=str(tmp_path), examples="phantom_vqa/tiny_questions", images="phantom_vqa/tiny_questions"
        )
        with pytest.raises(DataError, match=r"dataset_info\.json"):
            DataSet(config).split("val")


def test_counts_are_checked_against_the_builders_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "EXPECTED_COUNTS", {"tiny_questions": {"train": 481, "extra": 1}})
    with pytest.raises(DataError, match=r"(?s)train: 480 records, expected 481.*extra: 0 records, expected 1"):
        build("phantom_vqa", "tiny_questions", data_dir=tmp_path)


def needs_files(self):
    return [
        ManualFile(("questions.json", "questions.zip"), "https://example.org/questions.zip", "CC BY 4.0"),
        ManualFile(("images/*.jpg",), "https://example.org/images.zip"),
    ]


def test_missing_manual_files_are_all_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Builder, "manual_files", needs_files, raising=False)
    manual = tmp_path / "manual"
    arguments = [*TINY, f"--data_dir={tmp_path}/data", f"--manual_dir={manual}"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    for part in ("2 needed files", f"{manual}/questions.json or {manual}/questions.zip", "CC BY 4.0", "images/*.jpg"):
        assert part in message
    assert "https://example.org/questions.zip" in message
    assert "https://example.org/images.zip" in message
    assert "Traceback" not in message
    # Either of the alternatives will do, and a pattern is met by any file.
    (manual / "images").mkdir(parents=True)
    (manual / "questions.zip").touch()
    (manual / "images" / "1.jpg").touch()
    assert main(arguments) == 0


def test_manual_dir_defaults_to_the_rule_of_tfds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Builder, "manual_files", needs_files, raising=False)
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 2
    assert f"{tmp_path}/downloads/manual/questions.json" in capsys.readouterr().err


def test_missing_files_in_order(tmp_path):
    files = needs_files(None)
    assert missing_files(tmp_path, files) == files
    (tmp_path / "questions.json").touch()
    assert missing_files(tmp_path, files) == files[1:]
    with pytest.raises(DataError, match="1 needed file is missing"):
        require_files("some", tmp_path, files)


def test_overwrite_keeps_what_is_built_when_files_are_missing(tmp_path, monkeypatch):
    build("phantom_vqa", "tiny_questions", data_dir=tmp_path)
    monkeypatch.setattr(Builder, "manual_files", needs_files, raising=False)
    with pytest.raises(DataError, match=r"questions\.json"):
        build("phantom_vqa", "tiny_questions", data_dir=tmp_path, overwrite=True)
    assert folder(tmp_path).exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("INTERNAL: write failed: No space left on device")],
)
def test_full_disk(tmp_path, capsys, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("tfds_builders.phantom_vqa.phantom_vqa_dataset_builder.make_questions", full)
    with pytest.raises(StorageError, match="Free space"):
        build("phantom_vqa", "tiny_questions", data_dir=tmp_path)
    assert main([*TINY, f"--data_dir={tmp_path}"]) == 74
    assert "No space left" in capsys.readouterr().err
    assert not folder(tmp_path).exists()


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr("tfds_builders.phantom_vqa.phantom_vqa_dataset_builder.make_questions", broken)
    with pytest.raises(RuntimeError, match="something else"):
        build("phantom_vqa", "tiny_questions", data_dir=tmp_path)


def test_beam_only_where_it_is_offered_and_installed(tmp_path, capsys, monkeypatch):
    assert main([*TINY, f"--data_dir={tmp_path}", "--beam"]) == 2
    assert "does not offer Apache Beam" in capsys.readouterr().err
    monkeypatch.setattr(Builder, "OFFERS_BEAM", True, raising=False)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    assert main([*TINY, f"--data_dir={tmp_path}", "--beam_pipeline_options=runner=DirectRunner"]) == 2
    assert "pip install -e '.[beam]'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--num_shards=0", "--workers=-1"])
def test_numbers_must_be_positive(option, tmp_path, capsys):
    assert main([*TINY, f"--data_dir={tmp_path}", option]) == 2
    assert "expected a positive number" in capsys.readouterr().err


def test_module_command(built):
    command = [sys.executable, "-m", "tfds_builders.build"]
    environment = {**os.environ, "TFDS_DATA_DIR": str(built)}
    done = subprocess.run([*command, *TINY], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "verified" in done.stdout) == (0, True), done.stderr
    wrong = subprocess.run([*command, "phantom"], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.strip().splitlines()[-1].startswith("tfds_builders.build: No data set 'phantom': choose ")


def test_worker_processes_give_the_same_records(tmp_path, monkeypatch):
    build("phantom_vqa", "tiny_images", data_dir=tmp_path / "one")
    monkeypatch.setattr("tfds_builders.phantom_vqa.phantom_vqa_dataset_builder._LEAST_FOR_WORKERS", 40)
    build("phantom_vqa", "tiny_images", data_dir=tmp_path / "two", workers=2)
    assert contents(folder(tmp_path / "one", "tiny_images")) == contents(folder(tmp_path / "two", "tiny_images"))


def test_the_standard_command_finds_the_builder():
    """`tfds build` (whose command line needs TensorFlow) imports NAME.NAME_dataset_builder from the folder above."""
    name = "phantom_vqa"
    code = (
        "import tensorflow_datasets as tfds;"
        f"cls = tfds.core.community.builder_cls_from_module('{name}.{name}_dataset_builder');"
        "builder = cls(data_dir='unused'); print(cls.name, builder.info.description[:1] != '')"
    )
    folder_above = Path(__file__).parents[2] / "tfds_builders"
    environment = {**os.environ, "PYTHONPATH": str(folder_above)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [name, "True"], done.stderr
