"""Conversion of checkpoints: tables, files, RWSAN's layout, and the command."""

import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxvqa.convert import Rule, Table, __main__, adam, files, nested, rwsan, to_jax, to_torch, torch_files
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import TOKEN
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import options, weights
from tests.checkpoint_files import load, save
from tests.oracle import torch

# --- tables ------------------------------------------------------------------------------------------------------------

LAYERS = Table(
    rules=(
        Rule("embed.weight", "embed/table"),
        Rule("layers.{i}.q.weight", "block_{i}/query/kernel", "(h d) i -> i h d"),
        Rule("layers.{i}.parts.{j}.bias", "block_{i}/part_{j}/bias"),
        Rule("layers.{i}.parts.{j}.conv", "block_{i}/part_{j}/kernel", "o i 1 1 -> i o"),
        Rule("head.weight", "embed/table"),
    ),
    excused=(r".*\.position_ids",),
)


def layers_tensors():
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (5, 4)}
    for i in range(11):  # more than ten: "10" comes after "9", not after "1"
        shapes[f"layers.{i}.q.weight"] = (6, 4)
        for j in range(2):
            shapes |= {f"layers.{i}.parts.{j}.bias": (3,), f"layers.{i}.parts.{j}.conv": (3, 2, 1, 1)}
    shapes |= {"head.weight": (5, 4)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def layers_target():
    part = {"bias": np.zeros(3, np.float32), "kernel": np.zeros((2, 3), np.float32)}
    block = {"query": {"kernel": np.zeros((4, 2, 3), np.float32)}, "part_0": part, "part_1": part}
    return {"embed": {"table": np.zeros((5, 4), np.float32)}} | {f"block_{i}": block for i in range(11)}


def test_table_goes_both_ways_in_the_originals_order():
    tensors = layers_tensors()
    tensors["embed.weight"] = tensors["head.weight"]
    params, report = to_jax(tensors | {"x.position_ids": np.arange(3)}, LAYERS, layers_target())
    kernel = params["block_10"]["query"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["layers.10.q.weight"].reshape(2, 3, 4).transpose(2, 0, 1))
    back = to_torch(params, LAYERS)
    assert list(back) == list(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value)
    assert report.excused == ("x.position_ids",)
    assert len(report.used) == 1 + 11 * 5
    assert report.shadowed
    assert report.differing == ()
    assert "layers.10.q.weight" in str(report)


@pytest.mark.parametrize("last", ["embed.weight", "head.weight"])
def test_of_tied_names_the_last_in_the_file_wins(last):
    tensors = layers_tensors()
    tensors[last] = tensors.pop(last)
    other = {"embed.weight": "head.weight", "head.weight": "embed.weight"}[last]
    params, report = to_jax(tensors, LAYERS, layers_target())
    np.testing.assert_array_equal(params["embed"]["table"], tensors[last])
    assert report.shadowed == report.differing == ((other, last),)
    back = to_torch(params, LAYERS, report.dtypes)
    assert list(back) == list(tensors)
    np.testing.assert_array_equal(back[other], tensors[last])


def test_dtypes_are_restored():
    tensors = layers_tensors()
    tensors["embed.weight"] = tensors["head.weight"] = tensors["head.weight"].astype(ml_dtypes.bfloat16)
    tensors["layers.3.q.weight"] = tensors["layers.3.q.weight"].astype(np.float16)
    params, report = to_jax(tensors, LAYERS, layers_target())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    back = to_torch(params, LAYERS, report.dtypes)
    assert {k: v.dtype for k, v in back.items()} == {k: v.dtype for k, v in tensors.items()}
    np.testing.assert_array_equal(back["layers.3.q.weight"], tensors["layers.3.q.weight"])


def test_all_faults_come_at_once():
    tensors = layers_tensors()
    tensors["layers.4.q.wieght"] = tensors.pop("layers.4.q.weight")
    tensors["layers.5.q.weight"] = np.zeros((6, 5), np.float32)
    tensors["layers.6.q.weight"] = np.zeros((7, 4), np.float32)
    tensors["layers.11.q.weight"] = np.zeros((6, 4), np.float32)
    tensors["layers.7.parts.1.bias"] = np.zeros(3, np.int64)
    with pytest.raises(CheckpointError) as error:
        to_jax(tensors, LAYERS, layers_target())
    for part in (
        "6 faults",
        "missing layers.4.q.weight for block_4/query/kernel [4, 2, 3]. Did you mean 'layers.4.q.wieght'",
        "unexpected layers.4.q.wieght [6, 4]",
        "wrong shape: layers.5.q.weight [6, 5]",
        "wrong shape: layers.6.q.weight [7, 4]",
        "unexpected layers.11.q.weight [6, 4]: the model has no block_11/query/kernel",
        "wrong type: layers.7.parts.1.bias is int64",
    ):
        assert part in str(error.value)


def test_writing_is_strict_too():
    params, report = to_jax(layers_tensors(), LAYERS, layers_target())
    with pytest.raises(CheckpointError) as error:
        to_torch(params | {"extra": {"kernel": np.zeros(2)}}, LAYERS)
    assert "no rule of this system takes extra/kernel [2]" in str(error.value)
    del params["block_3"]
    with pytest.raises(CheckpointError, match=r"asks for layers\.3\.q\.weight"):
        to_torch(params, LAYERS, report.dtypes)


def test_placeholders_have_to_agree_and_rules_not_to_overlap():
    with pytest.raises(ValueError, match="placeholders"):
        Rule("a.{i}", "b_{j}")
    table = Table((Rule("a.{i}", "b_{i}"), Rule("a.1", "c")))
    with pytest.raises(ValueError, match="Two rules"):
        to_jax({"a.1": np.zeros(1)}, table, {"c": np.zeros(1)})
    assert nested("x", "y", [Rule("w", "k")]) == [Rule("x.w", "y/k")]


# --- files -------------------------------------------------------------------------------------------------------------


def test_files_keep_bfloat16_order_prefix_and_the_rest(tmp_path):
    tensors = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), ml_dtypes.bfloat16)}
    path = tmp_path / "x.pth"
    files.write(path, files.TorchFile(tensors, prefixed=True, extra={"epoch": 3}))
    content = load(path)
    assert list(content) == ["state_dict", "epoch"]
    assert list(content["state_dict"]) == ["module.b", "module.a"]
    assert content["state_dict"]["module.a"].dtype == ml_dtypes.bfloat16
    file = files.read(path)
    assert (list(file.tensors), file.prefixed, file.extra) == (["b", "a"], True, {"epoch": 3})
    assert file.tensors["a"].dtype == ml_dtypes.bfloat16


def test_plain_state_dicts_and_safetensors(tmp_path):
    tensors = {"w": np.ones(2, np.float32), "b": np.zeros((), ml_dtypes.bfloat16)}
    for name in ("x.pth", "x.safetensors"):
        files.write(tmp_path / name, files.TorchFile(tensors))
        file = files.read(tmp_path / name)
        assert (sorted(file.tensors), file.extra) == (["b", "w"], None)
        for key, value in tensors.items():
            assert (file.tensors[key].dtype, file.tensors[key].shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(file.tensors[key], value)


class Malicious:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_file_is_named_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"state_dict": {"w": np.ones(1)}, "x": Malicious(trace)}))
    file = files.read(tmp_path / "a.pkl")
    assert (list(file.tensors), file.extra) == (["w"], {})
    assert f"x ({open.__module__}.open)" in file.notes[0]  # io.open in Python 3.11, _io.open later
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(
        CheckpointError, match=rf"holds all of it \({open.__module__}\.open\).*torch\.save\(model\.state_dict\(\)"
    ):
        files.read(tmp_path / "b.pkl")
    assert not trace.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    files.write(path, files.TorchFile({"w": np.ones(1, np.float32)}))
    monkeypatch.setattr(torch_files, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.write(path, files.TorchFile({"w": np.zeros(1, np.float32)}))
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]
    assert files.read(path).tensors["w"][0] == 1


# --- RWSAN -------------------------------------------------------------------------------------------------------------

OPTIONS = {"HIDDEN_SIZE": 8, "MULTI_HEAD": 2, "SRWSA_LAYER": 1, "SGRWSA_LAYER": 1, "WORD_EMBED_SIZE": 6}
OPTIONS |= {"FLAT_MLP_SIZE": 5, "FLAT_OUT_SIZE": 7, "SRWSA_MIDSIZE": 2, "SGRWSA_SA_MIDSIZE": 3, "SGRWSA_GA_MIDSIZE": 4}
OPTIONS |= {"DROPOUT_R": 0.1, "token_size": 9, "answer_size": 4, "IMG_FEAT_SIZE": 10, "MAX_TOKEN": 5}


def target():
    regions = jax.ShapeDtypeStruct((1, 1, OPTIONS["IMG_FEAT_SIZE"]), np.float32)
    return rwsan.ORIGINAL.shapes(options.rwsan(OPTIONS), {"regions": regions, "question": TOKEN})


@pytest.fixture(scope="module")
def original(request):
    """An original checkpoint's tensors: the golden list of keys with small shapes."""
    golden = request.config.rootpath / "tests/golden/rwsan/small.manifest.json"
    keys = [t["key"] for t in json.loads(golden.read_text())["tensors"]]
    shapes = target()
    tensors = to_torch(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), rwsan.KEYS)
    assert list(tensors) == keys  # the order in which the original writes
    return {key: weights.tensor(key, tensors[key].shape, "float32") for key in keys}


def stepped_adam(tensors, steps=3):
    """The state of a torch.optim.Adam as the original has it, after some steps, with made-up moments."""
    rng = np.random.default_rng(0)
    settings = adam.ADAM | {"lr": 2.5e-5, "betas": (0.9, 0.98), "eps": 1e-9}
    state = {
        i: {
            "step": np.asarray(steps, np.float32),
            "exp_avg": rng.standard_normal(value.shape, np.float32),
            "exp_avg_sq": rng.random(value.shape, np.float32),
        }
        for i, value in enumerate(tensors.values())
    }
    return {"state": state, "param_groups": [settings | {"params": list(range(len(tensors)))}]}


def assert_same(ours, theirs):
    """Of contents of files: the same order, types and bits."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    else:
        assert ours == theirs


def test_round_trip_of_a_whole_checkpoint(original, tmp_path):
    content = {"state_dict": original, "optimizer": stepped_adam(original), "lr_base": 2e-5}
    save(content, tmp_path / "epoch3.pkl")
    loaded = rwsan.ORIGINAL.load(tmp_path / "epoch3.pkl", {"name": "rwsan", "heads": 2})
    assert (loaded.entries["lr_base"], loaded.adam.step) == (2e-5, 3)
    key = "RWSA_layer.sgrwsa.dec1.mhatt2.linear_v.weight"
    moment = content["optimizer"]["state"][list(original).index(key)]["exp_avg"]
    ours = loaded.adam.mu["decoder"]["unit"]["cross_attention"]["value"]["kernel"]
    np.testing.assert_array_equal(ours, moment.T)
    rwsan.ORIGINAL.save(tmp_path / "again.pkl", loaded)
    assert_same(load(tmp_path / "again.pkl"), content)


@pytest.mark.oracle
def test_pytorch_goes_on_from_our_file_as_from_its_own(original, tmp_path):
    values = {key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in original.items()}
    optimizer = torch.optim.Adam(values.values(), lr=2.5e-5, betas=(0.9, 0.98), eps=1e-9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for value in values.values():
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()
    state = optimizer.state_dict()
    tensors = {key: value.detach() for key, value in values.items()}
    torch.save({"state_dict": tensors, "optimizer": state, "lr_base": 2e-5}, tmp_path / "epoch3.pkl")
    loaded = rwsan.ORIGINAL.load(tmp_path / "epoch3.pkl", {"name": "rwsan", "heads": 2})
    rwsan.ORIGINAL.save(tmp_path / "again.pkl", loaded)
    again = torch.load(tmp_path / "again.pkl", weights_only=True)
    assert list(again["state_dict"]) == list(original)
    assert all(torch.equal(again["state_dict"][key], value) for key, value in tensors.items())
    assert again["optimizer"]["param_groups"] == state["param_groups"]
    for i, entry in state["state"].items():
        for name, value in entry.items():
            torch.testing.assert_close(again["optimizer"]["state"][i][name], value, rtol=0, atol=0)
    other = torch.optim.Adam(values.values())
    other.load_state_dict(again["optimizer"])
    assert other.state_dict()["param_groups"] == state["param_groups"]


@pytest.mark.oracle
def test_a_fresh_adam_is_what_pytorch_writes():
    theirs = torch.optim.Adam([torch.zeros(1)]).state_dict()
    layout = Layout(Table((Rule("w", "params/w"),)))
    assert adam.Optimizer().write(None, {"params": {"w": np.zeros(1)}}, layout) == theirs


def test_sizes_come_from_the_shapes(original):
    sizes = rwsan.ORIGINAL.infer(files.TorchFile(original), {"heads": 2})
    model = options.rwsan(OPTIONS)
    assert sizes == {name: model[name] for name in rwsan.SIZES}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_and_prefixed_files_give_the_same(original, tmp_path, suffix, prefix):
    path = tmp_path / f"weights{suffix}"
    files.write(path, files.TorchFile({prefix + key: value for key, value in original.items()}))
    loaded = rwsan.ORIGINAL.load(path, options.rwsan(OPTIONS))
    assert (loaded.adam, loaded.entries["lr_base"]) == (None, None)
    back = to_torch(loaded.variables, rwsan.KEYS)
    assert list(back) == list(original)
    for key, value in original.items():
        np.testing.assert_array_equal(back[key], value)


def test_a_checkpoint_that_does_not_fit_lists_every_fault(original, tmp_path):
    tensors = dict(original)
    del tensors["proj.weight"]
    tensors["proj.wheight"] = np.zeros((4, 7), np.float32)
    tensors["proj_norm.a_2"] = np.zeros(8, np.float32)
    save(tensors, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        rwsan.ORIGINAL.load(tmp_path / "x.pth", options.rwsan(OPTIONS))
    for part in ("missing proj.weight", "Did you mean 'proj.wheight'", "unexpected proj.wheight", "proj_norm.a_2 [8]"):
        assert part in str(error.value)
    save({"some.other": np.zeros(1, np.float32)}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="74 faults"):
        rwsan.ORIGINAL.load(tmp_path / "y.pth", {"name": "rwsan"})


def test_broken_optimiser_states_are_refused(original):
    optimizer, layout, shapes = rwsan.ORIGINAL.entries["optimizer"], Layout(rwsan.KEYS), target()["params"]
    keys = list(original)
    whole = stepped_adam(original)
    assert optimizer.read({"state": {}}, keys, layout, shapes) is None
    uneven = whole | {"state": whole["state"] | {3: whole["state"][3] | {"step": np.float32(9)}}}
    partial = whole | {"state": {i: entry for i, entry in whole["state"].items() if i != 5}}
    short = whole | {"param_groups": [whole["param_groups"][0] | {"params": [0, 1]}]}
    for broken, message in (
        (uneven, "different steps"),
        (partial, keys[5]),
        (short, "holds 2"),
        ({}, "not that of one"),
    ):
        with pytest.raises(CheckpointError, match=message):
            optimizer.read(broken, keys, layout, shapes)


# --- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def epoch_file(original, tmp_path):
    save({"state_dict": original, "optimizer": stepped_adam(original), "lr_base": 2e-5}, tmp_path / "epoch3.pkl")
    config = tmp_path / "two_heads.py"
    config.write_text(
        "from jaxvqa.configs import rwsan\n\n\ndef get_config(arg=None):\n"
        "    config = rwsan.get_config('vqa_v2')\n    config.model.heads = 2\n    return config\n"
    )
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    questions = {"questions": [{"question": "What is this, a red dog?"}, {"question": "what is THAT"}]}
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    return tmp_path / "epoch3.pkl"


def command(*arguments):
    return __main__.main(["--system=rwsan", *map(str, arguments)])


def test_command_there_and_back(epoch_file, tmp_path, capsys):
    given = [f"--answers={tmp_path}/answers.json", "--questions", tmp_path / "questions.json"]
    config = f"--config={tmp_path}/two_heads.py"
    assert command(f"--from={epoch_file}", f"--to={tmp_path}/run", config, *given) == 0
    output = capsys.readouterr().out
    assert "73 arrays" in output
    assert "step 3, with the state of its optimiser, 9 words, 4 answers" in output
    assert command(f"--from={tmp_path}/run", f"--to={tmp_path}/back.pkl") == 0
    before, after = load(epoch_file), load(tmp_path / "back.pkl")
    assert list(after) == list(before)
    assert_same(after["state_dict"], before["state_dict"])
    assert_same(after["optimizer"]["state"], before["optimizer"]["state"])
    assert after["lr_base"] == 2e-5
    # A folder with checkpoints is never written over.
    assert command(f"--from={epoch_file}", f"--to={tmp_path}/run", config, *given) == 2
    assert "already holds checkpoints" in capsys.readouterr().err


def test_command_checks_words_and_answers(epoch_file, tmp_path, capsys):
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    (tmp_path / "words.json").write_text(json.dumps(["PAD", "UNK", "what"]))
    given = [f"--answers={tmp_path}/answers.json", f"--vocabulary={tmp_path}/words.json"]
    assert command(f"--from={epoch_file}", f"--to={tmp_path}/run", f"--config={tmp_path}/two_heads.py", *given) == 2
    message = capsys.readouterr().err
    assert "9 vocabulary" in message
    assert "4 answers" in message
    assert not (tmp_path / "run").exists()
