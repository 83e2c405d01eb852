"""Pickled arrays are read, and nothing else that a pickle can do is done."""

import io
import os
import pickle

import numpy as np
import pytest

from jaxvqa.convert import numpy_pickle
from jaxvqa.errors import CheckpointError

ARRAYS = {
    "conv": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "column_major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "half": np.arange(4, dtype=np.float16),
    "number": np.ones(()),
    "flags": np.array([True, False]),
}


def write(path, content, protocol=3):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path, protocol):
    arrays = numpy_pickle.read(write(tmp_path / "x.weights", ARRAYS, protocol))
    assert list(arrays) == list(ARRAYS)
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
        assert arrays[key].dtype == value.dtype.newbyteorder("=")


def test_files_of_older_numpy_are_read(tmp_path):
    content = pickle.dumps(ARRAYS, 3)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    (tmp_path / "x").write_bytes(old)
    np.testing.assert_array_equal(numpy_pickle.read(tmp_path / "x")["conv"], ARRAYS["conv"])


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("hidden", [lambda x: x, lambda x: {"conv": x}, lambda x: {"conv": [np.ones(2), x]}])
def test_no_code_is_run(tmp_path, protocol, hidden):
    marker = tmp_path / "ran"
    path = write(tmp_path / "evil.weights", hidden(Calls(os.mkdir, str(marker))), protocol)
    with pytest.raises(CheckpointError, match=r"names (posix|nt)\.mkdir.* not called"):
        numpy_pickle.read(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert marker.exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, np.load, np.frombuffer, pickle.loads, complex])
def test_other_names_are_refused(tmp_path, function):
    with pytest.raises(CheckpointError, match="not called"):
        numpy_pickle.read(write(tmp_path / "x", {"conv": Calls(function, "1")}))


def test_arrays_of_objects_are_refused(tmp_path):
    path = write(tmp_path / "x", {"conv": np.array([1, "a"], dtype=object)})
    with pytest.raises(CheckpointError, match=r"without its type or its bytes|not of plain numbers"):
        numpy_pickle.read(path)
    for array in (np.array(["text"]), np.zeros(2, [("a", "f4")]), np.zeros(1, "datetime64[s]")):
        with pytest.raises(CheckpointError, match=r"not of plain numbers|names numpy"):
            numpy_pickle.read(write(tmp_path / "x", {"conv": array}))


def tampered(shape, data):
    """A pickled array whose state says something else than its bytes."""
    out = io.BytesIO()
    out.write(b"\x80\x03}X\x04\x00\x00\x00convcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR")
    out.write(b"(K\x01" + pickle.dumps(shape, 3)[2:-1] + b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4K\x00K\x01tR")
    out.write(pickle.dumps((3, "<", None, None, None, -1, -1, 0), 3)[2:-1] + b"b\x89")
    out.write(pickle.dumps(data, 3)[2:-1] + b"tbs.")
    return out.getvalue()


@pytest.mark.parametrize(
    ("shape", "data"), [((2, 1000), b"1234"), ((-1,), b"1234"), ((1,), b"123"), ("ab", b"1234"), ((1,), [1.0])]
)
def test_states_that_do_not_fit_are_refused(tmp_path, shape, data):
    (tmp_path / "x").write_bytes(tampered((1,), b"\0\0\x80?"))
    np.testing.assert_array_equal(numpy_pickle.read(tmp_path / "x")["conv"], [1.0])
    (tmp_path / "x").write_bytes(tampered(shape, data))
    with pytest.raises(CheckpointError, match="damaged"):
        numpy_pickle.read(tmp_path / "x")


def test_a_file_cannot_change_how_the_next_is_read(tmp_path):
    # BUILD with a pair of states sets attributes of whatever is on top: here of a name that is admitted.
    evil = b"\x80\x03cnumpy\ndtype\n(N}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xstb."
    (tmp_path / "evil").write_bytes(evil)
    with pytest.raises(CheckpointError):
        numpy_pickle.read(tmp_path / "evil")
    np.testing.assert_array_equal(numpy_pickle.read(write(tmp_path / "x", ARRAYS))["conv"], ARRAYS["conv"])


def test_errors_say_what_the_file_is(tmp_path):
    with pytest.raises(CheckpointError, match="There is no pickle of NumPy arrays"):
        numpy_pickle.read(tmp_path / "missing")
    path = write(tmp_path / "x", ARRAYS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"no readable pickle.*cut off"):
        numpy_pickle.read(path)
    for content, words in (
        ([1, 2], "holds one list"),
        ({}, "holds one dict"),
        ({"a": np.ones(1), "b": 3.0}, "'b' .float."),
        ({1: np.ones(1)}, "1 .Array."),
    ):
        with pytest.raises(CheckpointError, match=words):
            numpy_pickle.read(write(path, content))
