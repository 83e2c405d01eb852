"""The command on BLIP's files: to a work directory and back with the optimiser, and what it says of what does not fit."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, init_from, optim, paths, sharding
from jaxvqa.convert import __main__ as command
from jaxvqa.convert import adam, blip, files, workdir
from jaxvqa.convert.original import Checkpoint
from jaxvqa.convert.towers import bert as bert_keys
from jaxvqa.convert.towers import efficientnet_lite
from jaxvqa.data.blip_text import CaptionTokenizer
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import weights
from jaxvqa.models.towers.bert import BERT
from jaxvqa.models.towers.efficientnet_lite import EfficientNetLite
from jaxvqa.models.towers.med import MED
from jaxvqa.runs import Run
from jaxvqa.state import TrainState
from jaxvqa.tasks import task_without_data
from tests.checkpoint_files import load
from tests.made_up import made_up, variables_of
from tests.oracle import torch

GOLDEN = Path(__file__).parent.parent / "golden" / "blip"
MANIFEST = json.loads((GOLDEN / "blip_pretrain_small.manifest.json").read_text())
RATE, STEPS = 2.7e-4, 3
"""Of an epoch in the middle of a training."""


def given_to_the_optimiser():
    """`model.parameters()` of the original: by its state's keys, each tensor once, without buffers."""
    again = {key for group in MANIFEST["tied"] for key in group[1:]}
    keys = [entry["key"] for entry in MANIFEST["tensors"]]
    return [k for k in keys if k not in again and "queue" not in k and not k.endswith("position_ids")]


def adamw(tensors):
    """The state of a torch.optim.AdamW as the original has it, with made-up moments; momentum copies have none."""
    rng, keys = np.random.default_rng(0), given_to_the_optimiser()
    trained = {i: tensors[key].shape for i, key in enumerate(keys) if "_m." not in key}
    assert [keys[i] for i in trained] == MANIFEST["names_of_out_grad_norms"]
    state = {
        i: {
            "step": np.asarray(STEPS, np.float32),
            "exp_avg": np.asarray(rng.standard_normal(shape), np.float32),
            "exp_avg_sq": np.asarray(rng.random(shape), np.float32),
        }
        for i, shape in trained.items()
    }
    settings = {**adam.ADAMW, "lr": RATE, "weight_decay": 0.05}
    return {"state": state, "param_groups": [{**settings, "params": list(range(len(keys)))}]}


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    tensors = weights.checkpoint(MANIFEST["tensors"])
    for group in MANIFEST["tied"]:
        tensors |= dict.fromkeys(group, tensors[group[-1]])
    path = tmp_path_factory.mktemp("blip") / "model.pth"
    extra = {"optimizer": adamw(tensors), "config": {"init_lr": 3e-4}, "epoch": 19}
    files.write(path, files.TorchFile(tensors, extra=extra, weights_entry="model"))
    return path, tensors


@pytest.fixture(scope="module")
def folder(pretraining, tmp_path_factory):
    target = tmp_path_factory.mktemp("run") / "run"
    vocabulary = GOLDEN / "small_vocab.txt"
    assert (
        convert(("system", "blip_pretrain"), ("from", pretraining[0]), ("to", target), ("tokenizer", vocabulary)) == 0
    )
    return target


def convert(*arguments):
    return command.main([f"--{name}={value}" for name, value in arguments])


def assert_same(ours, theirs, where=""):
    """Of contents of files: the same order, types and bits."""
    assert type(ours) is type(theirs), where
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}/{key}")
    elif isinstance(theirs, list):
        assert_same(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), where
    else:
        assert ours == theirs, where


def test_there_and_back(pretraining, folder, tmp_path):
    run, back = Run.open(folder), tmp_path / "back.pth"
    assert run.config.loss.queue == 16
    assert run.config.data.image_size == 32
    assert run.step == STEPS
    assert CaptionTokenizer(run.assets["tokenizer"]).decode_begin == 98
    assert convert(("system", "blip_pretrain"), ("from", folder), ("to", back)) == 0
    assert_same(load(back), load(pretraining[0]))


def test_a_judge_of_two_images_there_and_back(tmp_path):
    manifest = json.loads((GOLDEN / "blip_nlvr_small.manifest.json").read_text())
    kept = [entry for entry in manifest["tensors"] if not re.search(r"layer\.[1-5]\.", entry["key"])]
    tensors = {key.replace("layer.6.", "layer.1."): value for key, value in weights.checkpoint(kept).items()}
    path, folder, back = tmp_path / "nlvr.pth", tmp_path / "run", tmp_path / "back.pth"
    files.write(path, files.TorchFile(tensors, extra={"epoch": 3}, weights_entry="model"))
    given = ("system", "blip_nlvr"), ("tokenizer", GOLDEN / "small_vocab.txt")
    assert convert(*given, ("from", path), ("to", folder)) == 0
    run = Run.open(folder)
    assert (run.config.task, run.config.model.merge_from, run.config.model.text_sizes.depth) == ("image_pairs", 1, 2)
    assert convert(("system", "blip_nlvr"), ("from", folder), ("to", back)) == 0
    assert_same(load(back)["model"], load(path)["model"])


@pytest.mark.parametrize(("step", "epoch"), [(0, -1), (11, -1), (12, 0), (40, 2)])
def test_a_file_says_the_last_epoch_that_is_done(step, epoch):
    config = configs.load("configs/blip_pretrain.py:small")  # of 16 examples a step
    data = {"size": 200, "step": step}
    contents = workdir.Contents(config, {}, {"data": data}, None, {}, None)
    of_run = blip.SYSTEMS["blip_pretrain"].of_run
    assert of_run(contents, {}) == {"epoch": epoch}
    assert of_run(contents, {"epoch": 19}) == {}  # as the file said from which it comes


@pytest.mark.oracle
def test_a_step_from_the_folder_is_that_of_pytorch(pretraining, folder):
    path, tensors = pretraining
    keys = given_to_the_optimiser()
    values = {key: torch.nn.Parameter(torch.from_numpy(tensors[key].copy()), "_m." not in key) for key in keys}
    optimizer = torch.optim.AdamW(values.values(), lr=1.0, weight_decay=0.0)
    optimizer.load_state_dict(torch.load(path, weights_only=True)["optimizer"])
    contents, run = workdir.read(folder), Run.open(folder)
    state, layout = run.training_state(), blip.layout(contents.config.model.to_dict() | {"positives": "pair"})
    rng = np.random.default_rng(1)
    grads = {key: np.asarray(rng.standard_normal(v.shape), np.float32) for key, v in values.items() if v.requires_grad}
    for key, grad in grads.items():
        values[key].grad = torch.from_numpy(grad.copy())
    optimizer.step()
    ours = optim.make_optimizer(contents.config.optim, state.params)
    tree = layout.read(grads, {"params": state.params})[0]["params"]
    updates, _ = jax.jit(ours.update)(tree, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - np.float32(RATE) * u, state.params, updates)
    written = layout.tensors({"params": params})
    for key in grads:
        np.testing.assert_allclose(written[key], values[key].detach().numpy(), rtol=2e-6, atol=1e-7, err_msg=key)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == RATE


@pytest.fixture(scope="module")
def loaded(pretraining):
    return blip.ORIGINALS["pair"].load(pretraining[0])


@pytest.mark.oracle
@pytest.mark.parametrize("stepped", [True, False])
def test_pytorch_goes_on_from_our_file(loaded, tmp_path, stepped):
    """As the original resumes: a strict state of the model, and the optimiser's; here of one that may not have stepped."""
    adam_state = loaded.adam if stepped else None
    blip.ORIGINALS["pair"].save(
        tmp_path / "x.pth", blip.Checkpoint(loaded.variables, loaded.config, loaded.entries, adam_state)
    )
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert list(content) == ["model", "optimizer", "config", "epoch"]
    values = [torch.nn.Parameter(content["model"][key].clone(), "_m." not in key) for key in given_to_the_optimiser()]
    theirs = torch.optim.AdamW(values, lr=3e-4, weight_decay=0.05)
    assert list(content["optimizer"]["param_groups"][0]) == list(theirs.state_dict()["param_groups"][0])
    if not stepped:
        assert content["optimizer"] == theirs.state_dict()
    theirs.load_state_dict(content["optimizer"])
    for value in values:
        value.grad = torch.ones_like(value) if value.requires_grad else None
    theirs.step()
    assert {int(entry["step"]) for entry in theirs.state.values()} == {STEPS + 1 if stepped else 1}
    assert len(theirs.state) == len(MANIFEST["names_of_out_grad_norms"])


def test_an_optimiser_that_does_not_fit_is_refused_in_one_message(pretraining, loaded):
    tensors = pretraining[1]
    copies = [i for i, key in enumerate(given_to_the_optimiser()) if "_m." in key]

    def said(change):
        entry = adamw(tensors)
        change(entry)
        with pytest.raises(CheckpointError) as error:
            blip.ENTRIES["optimizer"].read(entry, tensors, loaded.layout, loaded.params)
        assert str(error.value).endswith("A file with the tensors alone converts without it.")
        return str(error.value)

    assert "holds 207 parameters, the checkpoint 208" in said(lambda entry: entry["param_groups"][0]["params"].pop())
    without = said(lambda entry: (entry["state"].pop(0), entry["state"][1].pop("exp_avg_sq")))
    assert "no moments for temp (number 0), visual_encoder.cls_token (number 1)" in without
    copied = said(lambda entry: entry["state"].update({copies[0]: entry["state"][0]}))
    assert f"moments for visual_encoder_m.cls_token (number {copies[0]}), which no gradient trains" in copied
    other = said(lambda entry: entry["state"][1].update(exp_avg=np.zeros((1, 1, 3), np.float32)))
    assert "The optimiser's exp_avg are those of other parameters" in other
    assert "visual_encoder.cls_token [1, 1, 3]" in other
    late = said(lambda entry: entry["state"][2].update(step=np.asarray(9.0, np.float32)))
    assert f"different steps [{STEPS}, 9]" in late


def test_a_tokenizer_of_another_size_says_so(pretraining, tmp_path, capsys):
    path, _ = pretraining
    few = tmp_path / "vocab.txt"
    few.write_text("\n".join((GOLDEN / "small_vocab.txt").read_text().split("\n")[:60]))
    assert convert(("system", "blip_pretrain"), ("from", path), ("to", tmp_path / "run"), ("tokenizer", few)) == 2
    error = capsys.readouterr().err
    assert "100 tokens" in error
    assert "62" in error
    assert not (tmp_path / "run").exists()


# --- towers that were trained each for itself ---------------------------------------------------------------------------

SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 24, "positions": 10}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A BERT of 30 tokens without types of text, and an EfficientNet-Lite0, as files; what they hold by our paths."""
    folder = tmp_path_factory.mktemp("parts")
    bert, text = BERT(30, **SIZES), jnp.ones((1, 3), jnp.int32)
    found = {"bert": made_up(jax.eval_shape(lambda key: bert.init(key, text), jax.random.key(0)))}
    found["bert"]["params"]["type"]["embedding"] *= 0  # MED has none
    network, image = EfficientNetLite(), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda key: network.init(key, image, train=False, method="stages"), jax.random.key(0))
    found["efficientnet_lite0"] = made_up(shapes)
    names = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = names | {"intermediate_size": 24, "max_position_embeddings": 10, "type_vocab_size": 2}
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    originals = {"bert": (bert_keys.TOWER.original, folder / "bert" / "model.safetensors", {})}
    originals["efficientnet_lite0"] = (efficientnet_lite.ORIGINAL, folder / "lite0.pth", {})
    for name, (original, path, fields) in originals.items():
        original.save(path, Checkpoint(found[name], fields))
    files_of = {"bert": folder / "bert", "efficientnet_lite0": folder / "lite0.pth"}
    for name, source in files_of.items():
        assert convert(("system", name), ("from", source), ("to", folder / "runs" / name)) == 0
    return folder / "runs", found


def test_blip_starts_from_a_bert_and_a_network(parts):
    folder, found = parts
    config = configs.load("configs/blip_retrieval.py:vqa_med_2019,small")
    config.model.text_sizes.update(SIZES)
    config.model.writes = True
    config.compile.vocab_size = 32
    config.data.max_tokens = SIZES["positions"]
    task = task_without_data(config)
    params, collections = variables_of(task)
    state = TrainState(jnp.zeros((), jnp.int32), params, collections, None)
    for row, name in (("text", "bert"), ("vision", "efficientnet_lite0")):
        theirs = Run.open(folder / name).variables(sharding.make_mesh(config.mesh, jax.devices()[:1]))
        state = init_from.take(row, name, theirs, state, config.init_from[row].table, task.kinds)

    text, bert = state.params["text_tower"], found["bert"]["params"]
    np.testing.assert_array_equal(text["embed"]["embedding"][:30], bert["embed"]["embedding"])
    np.testing.assert_array_equal(text["embed"]["embedding"][30:], params["text_tower"]["embed"]["embedding"][30:])
    for i in range(2):
        for name in ("attention", "decoder_attention"):
            jax.tree.map(np.testing.assert_array_equal, text[f"block_{i}"][name], bert[f"block_{i}"]["attention"])
        cross = params["text_tower"][f"block_{i}"]["cross_attention"]
        jax.tree.map(np.testing.assert_array_equal, text[f"block_{i}"]["cross_attention"], cross)
    tokens = jnp.asarray([[3, 7, 29, 4, 11]])
    states, _ = jax.jit(MED(32, **SIZES, dropout=0.0).apply, static_argnames="method")(
        {"params": text}, tokens, method="encode"
    )
    expected, _ = jax.jit(BERT(30, **SIZES, dropout=0.0).apply)(found["bert"], tokens)
    np.testing.assert_allclose(states, expected, atol=1e-5)
    mirror = state.collections["momentum"]["text_tower"]["block_0"]["attention"]
    jax.tree.map(np.testing.assert_array_equal, mirror, bert["block_0"]["attention"])

    for collection, tree in (("params", state.params), ("batch_stats", state.collections["batch_stats"])):
        network = found["efficientnet_lite0"][collection]
        jax.tree.map(np.testing.assert_array_equal, tree["vision_tower"]["network"], network)


@pytest.mark.parametrize("start", ["words", "network"])
def test_answers_about_radiographs_start_from_the_phantoms_text_models_and_from_a_network(parts, start):
    folder, found = parts
    config = configs.load("configs/blip_vqa.py:vqa_rad,frozen,small")
    task = task_without_data(config)
    params, collections = variables_of(task)
    state = TrainState(jnp.zeros((), jnp.int32), params, collections, None)
    expected = dict(params)
    if start == "words":
        theirs, others = variables_of(task_without_data(configs.load("configs/blip_vqa.py:shared_words,small")))
        theirs = jax.tree.map(lambda x: x + 1, theirs)
        row, given = "model", {"params": theirs, **others}
        expected["answer_tower"] = theirs["answer_tower"]
        # How it looks at images begins anew.
        looks = {"cross_attention": params["question_tower"]["block_0"]["cross_attention"]}
        expected["question_tower"] = theirs["question_tower"] | {"block_0": theirs["question_tower"]["block_0"] | looks}
    else:
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        row, given = "vision", Run.open(folder / "efficientnet_lite0").variables(mesh)
        expected["vision_tower"] = params["vision_tower"] | {"network": found["efficientnet_lite0"]["params"]}
    state = init_from.take(row, "runs/other", given, state, config.init_from[row].table, task.kinds)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    fixed = paths.flatten(paths.lookup(config.optim.freeze, state.params, "optim.freeze"))
    assert {"vision_tower/network" in path for path, frozen in fixed.items() if frozen} == {True}
