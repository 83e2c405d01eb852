"""PyTorch's files without PyTorch: every form, damaged ones, and those that would do harm."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxvqa.convert import files, torch_files
from jaxvqa.errors import CheckpointError
from tests import runs
from tests.checkpoint_files import load, save
from tests.oracle import torch

FOLDER = Path(__file__).parents[1] / "golden/torch_files"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
STATE = ("zip.pth", "legacy.pth")


def assert_expected(path, expected):
    found = files.read(path).tensors
    assert list(found) == [key for key, *_ in expected]
    for key, kind, shape, digits in expected:
        assert found[key].dtype == torch_files.DTYPES[kind], key
        assert (list(found[key].shape), found[key].tobytes().hex()) == (shape, digits), key


@pytest.mark.parametrize("name", EXPECTED)
def test_every_form_gives_what_pytorch_gives(name):
    assert_expected(FOLDER / name, EXPECTED[name])


@pytest.mark.parametrize("name", STATE)
def test_the_rest_of_a_file_is_plain_python_and_what_is_not_is_named(name):
    file = files.read(FOLDER / name)
    assert file.extra == {"epoch": 3, "best": 0.5, "name": "α", "sizes": [1, (2, None)]}
    assert [type(file.extra[key]) for key in ("epoch", "best")] == [int, float]
    assert file.notes == ("left out, being neither tensor, number nor text: args (argparse.Namespace)",)


@pytest.mark.parametrize("name", STATE)
def test_tensors_of_one_storage_are_of_one_memory_and_stay_so_in_a_file_of_ours(name, tmp_path):
    found = files.read(FOLDER / name).tensors
    assert np.shares_memory(found["base"], found["rows"])
    assert not np.shares_memory(found["base"], found["parameter"])
    tied = {"a": found["base"], "b": found["base"], "c": found["base"].copy()}
    save(tied, tmp_path / "tied.pth")
    with zipfile.ZipFile(tmp_path / "tied.pth") as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 2
    again = load(tmp_path / "tied.pth")
    assert np.shares_memory(again["a"], again["b"])


def test_optimisers_and_prefixes_come_along():
    file = files.read(FOLDER / "parallel.pth")
    assert (file.prefixed, file.weights_entry) == (True, "model_state")
    state, groups = file.extra["optimizer_state"]["state"], file.extra["optimizer_state"]["param_groups"]
    assert (sorted(state[0]), float(state[0]["step"])) == (["exp_avg", "exp_avg_sq", "step"], 1)
    assert (groups[0]["lr"], groups[0]["betas"], groups[0]["params"][:2]) == (0.01, (0.9, 0.999), [0, 1])


CONTENT = {
    "state_dict": {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10, dtype=np.int64)[::3],
        "half": np.ones(3, np.float16),
        "brain": np.ones((2, 1), ml_dtypes.bfloat16),
        "big_endian": np.arange(3, dtype=">i4"),
        "scalar": np.asarray(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.asarray([True, False]),
        "bytes": np.arange(4, dtype=np.uint8),
        "complex": np.asarray([1 + 2j], np.complex64),
    },
    "numbers": [0, 1, -1, 255, 65536, 2**40, -(2**70), 0.1, True, None, "text α", (), [], {}, {"a": {3: (1, 2)}}],
    "best": np.float64(0.5),
}


def same(ours, theirs):
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype.newbyteorder("="), theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs
        assert type(ours) is (float if isinstance(theirs, np.float64) else type(theirs))


def test_what_is_written_is_read_again_and_always_the_same_bytes(tmp_path):
    save(CONTENT, tmp_path / "a.pth")
    save(CONTENT, tmp_path / "b.pth")
    same(load(tmp_path / "a.pth"), CONTENT)
    content = (tmp_path / "a.pth").read_bytes()
    assert content == (tmp_path / "b.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", content, info.header_offset + 26)
            assert (info.header_offset + 30 + sum(lengths)) % torch_files.ALIGNMENT == 0


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, np.asarray(["text"]), np.zeros(1, np.uint16)], ids=["object", "set", "texts", "uint16"]
)
def test_what_pytorchs_files_cannot_hold_is_named(value, tmp_path):
    with pytest.raises(CheckpointError, match=r"state_dict\.w\.$"):
        save({"state_dict": {"w": value}}, tmp_path / "x.pth")


# --- damage ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EXPECTED, "ours"])
def test_a_file_that_is_cut_off_anywhere_is_an_error(name, tmp_path):
    source = FOLDER / name
    if name == "ours":
        source = tmp_path / "whole.pth"
        save(CONTENT, source)
    content, path = source.read_bytes(), tmp_path / "cut.pth"
    for end in {*range(0, len(content), max(len(content) // 40, 1)), len(content) - 1}:
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            files.read(path)


@pytest.mark.parametrize("name", EXPECTED)
def test_damage_anywhere_is_an_error_or_changes_numbers_only(name, tmp_path):
    content, random = (FOLDER / name).read_bytes(), np.random.default_rng(0)
    path = tmp_path / "damaged.pth"
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            files.read(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in", "web page"),
        (b"<html>404", "web page"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "compressed archive.*unpack"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03", "GGUF"),
        (b"\x93NUMPY\x01", "one NumPy array"),
        (bytes(257) + b"ustar\x0000", r"tar archive.*before PyTorch 0\.1\.10"),
        (b'{"weights": 1}', "text file"),
        (b"PK\x03\x04" + bytes(40), r"zip archive.*cut off"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "cut off"),
        (b"\x00\x01\x02\x03", "not a readable (checkpoint|safetensors) file"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("ending", ["pth", "pkl", "ckpt", "safetensors"])
def test_what_a_file_is_instead_is_reported(content, words, ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.{ending}.*" + words):
        files.read(path)


def test_folders_missing_files_and_other_archives_are_reported(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint file .*absent\.pth"):
        files.read(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "folder.pth/data.txt").touch()
    with pytest.raises(CheckpointError, match=r"is a folder.*data\.txt"):
        files.read(tmp_path / "folder.pth")
    np.savez(tmp_path / "x.npz", w=np.ones(1))
    with pytest.raises(CheckpointError, match=r"zip archive without data\.pkl.*w\.npy"):
        files.read(tmp_path / "x.npz")
    with (
        zipfile.ZipFile(FOLDER / "zip.pth") as old,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed, which PyTorch never does"):
        files.read(tmp_path / "packed.pth")


# --- harm ------------------------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def as_archive(pickled, numbers=b"\0\0\x80?" * 4):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (("data.pkl", pickled), ("data/0", numbers), ("version", b"3\n")):
                archive.writestr(f"archive/{name}", data)

    return write


def as_row(pickled):
    def write(path):
        start = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(start + pickled + pickle.dumps([], 2))

    return write


def alone(pickled):
    return lambda path: path.write_bytes(pickled)


@pytest.mark.parametrize("form", [as_archive, as_row, alone])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["weights", "beside", "whole", "key", "list"])
def test_nothing_that_a_file_names_is_called(form, protocol, where, tmp_path):
    marker = tmp_path / "ran"
    evil = Calls(os.mkdir, str(marker))
    weights = {"w": np.ones(2, np.float32)}
    content = {
        "weights": {"state_dict": weights | {"x": evil}},
        "beside": {"state_dict": weights, "x": evil},
        "whole": evil,
        "key": {"state_dict": weights, evil: 1},
        "list": {"state_dict": weights, "x": [1, (evil,)]},
    }[where]
    form(pickle.dumps(content, protocol))(tmp_path / "evil.pth")
    if where == "whole":
        with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
            files.read(tmp_path / "evil.pth")
    else:
        file = files.read(tmp_path / "evil.pth")
        assert list(file.tensors) == ["w"]
        assert "(posix.mkdir)" in " ".join(file.notes)
    assert not marker.exists()


def tensor(
    size=b"K\x02\x85",
    stride=b"K\x01\x85",
    offset=b"K\x00",
    count=b"K\x04",
    key=b"X\x01\x00\x00\x000",
    kind=b"FloatStorage",
):
    storage = b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\n" + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}tR"


def of(value):
    return b"\x80\x02}X\x01\x00\x00\x00w" + value + b"s."


MANY, HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little"), b"\x8a\x09" + (2**63).to_bytes(9, "little")
REFUSED = {
    "reaches beyond its numbers": of(tensor(size=b"K\x05\x85")),
    "an offset beyond its numbers": of(tensor(offset=b"K\x03")),
    "a stride beyond its numbers": of(tensor(stride=b"K\x04\x85")),
    "a negative size": of(tensor(size=b"J\xff\xff\xff\xff\x85")),
    "a negative stride": of(tensor(stride=b"J\xff\xff\xff\xff\x85")),
    "a negative offset": of(tensor(offset=b"J\xff\xff\xff\xff")),
    "a size of 2**63": of(tensor(size=HUGE + b"\x85")),
    "one number repeated 2**40 times": of(tensor(size=MANY + b"\x85", stride=b"K\x00\x85")),
    "more numbers than the file has": of(tensor(count=b"K\x05")),
    "2**63 numbers": of(tensor(count=HUGE)),
    "a path for a key": of(tensor(key=b"X\x09\x00\x00\x00../secret")),
    "sizes that are texts": of(tensor(size=b"X\x01\x00\x00\x002\x85")),
    "fewer strides than sizes": of(tensor(stride=b")")),
    "quantised": of(tensor(kind=b"QInt8Storage")),
    "sparse": of(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"),
    "quantised, by its function": of(b"ctorch._utils\n_rebuild_qtensor\n)R"),
    "of arguments that are none": of(b"ctorch._utils\n_rebuild_tensor_v2\nK\x01R"),
    "a call of a tensor": of(tensor() + b")R"),
    "a call of a number": of(b"K\x01)R"),
    "a state for a name": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",
    "a state for a number": of(b"K\x01}b"),
    "a list within itself": of(b"]q\x00h\x00a"),
    "a dict within itself": b"\x80\x02}q\x00X\x01\x00\x00\x00wh\x00s.",
    "a module within itself": of(b"c__main__\nM\n)\x81q\x00}(X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00mh\x00sub"),
    "lists of lists, 2**60 entries": of(b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))),
    "lists 20,000 deep": of(b"]" * 20_000 + b"a" * 19_999),
    "a key of tuples 20,000 deep": b"\x80\x02}" + b")" + b"\x85" * 20_000 + b"K\x01s.",
    "a memory of places that was never filled": of(b"h\x07"),
    "the place 2**31 of the memory, not of it": of(b"K\x01r\xff\xff\xff\x7fj\x00\x00\x00\x7f"),
    "an extension": of(b"\x82\x01"),
    "a buffer from elsewhere": of(b"\x97"),
    "an object from elsewhere": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02\x85.",
    "no mark": b"\x80\x02t.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_pickles_that_would_do_harm_are_refused(name, tmp_path):
    as_archive(of(tensor()))(tmp_path / "good.pth")
    np.testing.assert_array_equal(files.read(tmp_path / "good.pth").tensors["w"], [1, 1])
    as_archive(REFUSED[name])(tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        files.read(tmp_path / "evil.pth")


# --- pickled NumPy arrays --------------------------------------------------------------------------------------------------

ARRAYS = {
    "conv": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "column_major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "half": np.arange(4, dtype=np.float16),
    "number": np.ones(()),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_of_every_protocol_are_read(protocol, module, tmp_path):
    content = pickle.dumps(ARRAYS, protocol)
    if protocol < 4:  # from there on the names' lengths stand before them
        content = content.replace(b"numpy._core.multiarray", module)
    (tmp_path / "x.weights").write_bytes(content)
    arrays = files.read(tmp_path / "x.weights").tensors
    assert list(arrays) == list(ARRAYS)
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], value)
        assert arrays[key].dtype == value.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "array",
    [np.array([1, "a"], dtype=object), np.array(["text"]), np.zeros(2, [("a", "f4")]), np.zeros(1, "datetime64[s]")],
    ids=["objects", "texts", "records", "dates"],
)
def test_pickled_arrays_of_other_things_than_numbers_are_refused(array, tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({"conv": array, "other": np.ones(1)}))
    with pytest.raises(CheckpointError, match=r"tensors that are not read here: conv"):
        files.read(tmp_path / "x")


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
def test_arrays_whose_states_do_not_fit_are_refused(shape, data, tmp_path):
    (tmp_path / "x").write_bytes(tampered((1,), b"\0\0\x80?"))
    np.testing.assert_array_equal(files.read(tmp_path / "x").tensors["conv"], [1.0])
    (tmp_path / "x").write_bytes(tampered(shape, data))
    with pytest.raises(CheckpointError):
        files.read(tmp_path / "x")


def test_a_file_that_asks_for_places_of_memory_gets_none(tmp_path):
    """The library's own unpickler would make room for 2**31 of them."""
    as_archive(of(tensor() + b"r\xff\xff\xff\x7f"))(tmp_path / "x.pth")
    assert files.read(tmp_path / "x.pth").tensors["w"].size == 2


def test_programs_of_an_archive_are_not_unpacked_without_end(tmp_path):
    shutil.copy(FOLDER / "scripted.pt", tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/code/bomb.py", bytes(torch_files.MAX_CODE + 1))
    with pytest.raises(CheckpointError, match="bytes of program"):
        files.read(tmp_path / "bomb.pt")


def test_no_module_needs_pytorch(tmp_path):
    """In a process that has none: every module is imported, and files are read and written."""
    save(CONTENT, tmp_path / "x.pth")
    program = (
        "import importlib, pkgutil, sys\n"
        "import jaxvqa\n"
        "for module in pkgutil.walk_packages(jaxvqa.__path__, 'jaxvqa.'):\n"
        "    '.__main__' in module.name or importlib.import_module(module.name)\n"
        "import jaxvqa.convert.__main__\n"
        "from jaxvqa.convert import files\n"
        "file = files.read(sys.argv[1])\n"
        "files.write(sys.argv[2], file)\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    import torch\nexcept ImportError:\n    sys.exit(0)\nsys.exit('there is a PyTorch')\n"
    )
    done = runs.run([sys.executable, "-c", program, str(tmp_path / "x.pth"), str(tmp_path / "y.pth")])
    assert done.returncode == 0, done.stderr
    same(load(tmp_path / "y.pth"), {key: CONTENT[key] for key in ("state_dict", "numbers", "best")})


# --- beside PyTorch --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and old forms are
def test_files_of_the_installed_pytorch_are_read(tmp_path):
    from tests import write_torch_files

    write_torch_files.main(tmp_path)
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert expected.keys() == EXPECTED.keys()
    for name, tensors in expected.items():
        assert_expected(tmp_path / name, tensors)
        assert [key for key, *_ in tensors] == [key for key, *_ in EXPECTED[name]]


@pytest.mark.oracle
@pytest.mark.parametrize("mapped", [False, True])
def test_pytorch_reads_ours_with_weights_only(mapped, tmp_path):
    save(CONTENT, tmp_path / "x.pth")
    found = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped)
    assert found["numbers"] == CONTENT["numbers"]
    for key, value in CONTENT["state_dict"].items():
        theirs = found["state_dict"][key]
        assert theirs.is_contiguous()
        theirs = theirs.float() if theirs.dtype == torch.bfloat16 else theirs
        np.testing.assert_array_equal(theirs.numpy(), value.astype(theirs.numpy().dtype), err_msg=key)


@pytest.mark.oracle
def test_pytorchs_modules_and_optimisers_load_ours_strictly(tmp_path):
    from tests.write_torch_files import Small

    file = files.read(FOLDER / "parallel.pth")
    files.write(tmp_path / "x.ckpt", file)
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    module = torch.nn.DataParallel(Small())
    module.load_state_dict(content["model_state"], strict=True)
    original = torch.load(FOLDER / "parallel.pth", weights_only=True)
    optimiser = torch.optim.Adam(module.parameters())
    optimiser.load_state_dict(content["optimizer_state"])
    assert optimiser.state_dict()["param_groups"] == original["optimizer_state"]["param_groups"]
    for i, entry in original["optimizer_state"]["state"].items():
        assert all(torch.equal(optimiser.state_dict()["state"][i][name], value) for name, value in entry.items())
    for key, value in original["model_state"].items():
        assert torch.equal(module.state_dict()[key], value)
