"""What the system's errors and interrupts become: one message and an exit code."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxvqa import errors
from jaxvqa.errors import DataError, StorageError, UserError, choose, from_os_error, os_errors, run_command


def _file_for_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "file").mkdir(exist_ok=True)


def _file_above_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "file" / "a" / "b").mkdir(parents=True)


def _folder_for_file(tmp_path):
    tmp_path.read_text()


def _nothing(tmp_path):
    (tmp_path / "none").read_text()


def _broken_link(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "link").mkdir(exist_ok=True)


def _circle(tmp_path):
    (tmp_path / "link").symlink_to("link")
    (tmp_path / "link" / "x").read_text()


def _long_name(tmp_path):
    (tmp_path / ("x" * 300)).write_text("")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_file_for_folder, ["file: a folder was expected, and", "Give another path"]),
        (_file_above_folder, ["a folder was expected, and", "file is a file"]),
        (_folder_for_file, ["Is a directory", "Give the path of a file"]),
        (_nothing, ["none: No such file", "Check the path"]),
        (_broken_link, ["link: ", "is a symbolic link to gone, which does not exist"]),
        (_circle, ["links", "Mend the links"]),
        (_long_name, ["xxx: File name too long", "shorter"]),
    ],
)
def test_a_path_that_is_not_what_it_should_be(function, words, tmp_path, capsys):
    assert run_command("prog", lambda: function(tmp_path)) == 2
    message = capsys.readouterr().err
    assert message.startswith("prog: ")
    assert message.count("\n") == 1
    assert all(word in message for word in words), message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO])
def test_a_disk_at_fault(number, capsys):
    def fail():
        raise OSError(number, os.strerror(number), "/some/path")

    assert run_command("prog", fail) == 74
    assert capsys.readouterr().err.startswith(f"prog: /some/path: {os.strerror(number)}. ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError("Not enough disk space. Needed: 1 MiB (download: 0, generated: 1 MiB)"),
        RuntimeError("INTERNAL: write failed: No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]"),
    ],
)
def test_a_library_that_only_passes_the_words_on(error, tmp_path):
    with pytest.raises(StorageError, match="Free space") as found, os_errors(tmp_path, "room"):
        raise error
    assert str(found.value).startswith(f"{tmp_path}: ")
    assert "Expected room." in str(found.value)


def test_a_class_for_the_reader():
    error = from_os_error(FileNotFoundError(errno.ENOENT, "No such file", "x.json"), expected="a list", kind=DataError)
    assert type(error) is DataError
    assert str(error) == "x.json: No such file. Expected a list. Check the path."


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_keeps_its_traceback(error, tmp_path):
    def fail():
        with os_errors(tmp_path):
            raise error

    with pytest.raises(type(error), match="a bug"):
        run_command("prog", fail)


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("so"), 2), (StorageError("so"), 74), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(error, code, capsys):
    def fail():
        raise error

    assert run_command("prog", fail) == code
    assert capsys.readouterr().err == ("prog: interrupted\n" if code == 130 else "prog: so\n")
    assert run_command("prog", lambda: None) == 0
    assert run_command("prog", lambda: 5) == 5


def test_a_reader_that_has_enough():
    program = (
        "import sys; from jaxvqa.errors import run_command\n"
        "def lines():\n    for i in range(100000): print(i)\n"
        "sys.exit(run_command('prog', lines))"
    )
    command = f'{sys.executable} -c "{program}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    assert (done.stdout, done.stderr) == ("0\n141\n", "")


def test_what_is_not_known_is_answered_with_what_is():
    assert choose("bart", ("gpt2", "bert", "palm")) == ": choose gpt2, bert or palm. Did you mean 'bert'?"
    assert choose(19, (18, 34)) == ": choose 18 or 34."
    assert choose("x", ("flamingo",)) == ": choose flamingo."
    assert choose("x", ()) == ", and there are none."


def test_an_extra_is_installed_from_what_is_there(monkeypatch, tmp_path):
    assert errors.install("dicom").endswith(" -e '.[dicom]'")
    assert "-c constraints/cuda.txt" in errors.install("cuda13")
    assert "-c" not in errors.install("beam")
    monkeypatch.setattr(errors, "CHECKOUT", tmp_path)  # as where a wheel was installed
    for extra in ("dicom", "cuda13", "beam"):
        assert errors.install(extra) == f"python -m pip install 'jaxvqa[{extra}]'"
