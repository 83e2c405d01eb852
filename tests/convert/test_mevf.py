"""BAN's and SAN's checkpoints there and back, and the files that MEVF published."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import checkpoints, models, optim
from jaxvqa.convert import __main__ as convert
from jaxvqa.convert import files, mevf, to_jax, to_torch, workdir
from jaxvqa.convert.original import TOKEN, Checkpoint, image
from jaxvqa.errors import CheckpointError
from jaxvqa.golden import runner, weights
from jaxvqa.state import TrainState
from tests.checkpoint_files import load, save
from tests.oracle import torch

GOLDEN = Path(__file__).parents[1] / "golden/cmsa"
SMALL = {
    "vocab_size": 7,
    "num_answers": 4,
    "embed_width": 3,
    "width": 8,
    "maml_width": 4,
    "autoencoder_width": 8,
    "code_width": 5,
    "branch": "resnet18",
    "branch_sizes": {"width": 2},
    "organ_width": 3,
    "organ_hidden": 6,
    "image_width": 5,
}
IMAGES = {"image_128": (16, 16), "image": (32, 32)}


def made_up(config, **images):
    """Variables of a model of this config, every leaf with values of its own."""
    rng = np.random.default_rng(0)
    inputs = {"question": TOKEN, "image_84": image(16, 16, 1)}
    inputs |= {name: image(*size, 3 if name == "image" else 1) for name, size in (IMAGES | images).items()}
    shapes = mevf.ORIGINAL.shapes(config, {name: inputs[name] for name in models.build(config).inputs})
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


def assert_equal(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


VARIANTS = [
    {"name": "ban", "image_branches": "mevf", "glimpses": 3, "attention_rank": 2},
    {"name": "ban", "image_branches": "maml", "rnn": "gru", "tables": 1},
    {"name": "ban", "image_branches": "autoencoder", "self_attention": True},
    {"name": "ban", "image_branches": "distmodal"},
    {"name": "ban", "image_branches": "distmodal", "pool": True, "image_width": 0},
    {"name": "san", "image_branches": "mevf", "stacks": 1},
    {"name": "san", "image_branches": "autoencoder", "stacks": 4},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_variant_goes_both_ways_and_tells_its_sizes(variant, tmp_path):
    config = SMALL | variant
    if variant.get("self_attention"):
        config["embed_width"] = 4
    variables = made_up(config)
    path = tmp_path / "model_epoch3.pth"
    mevf.ORIGINAL.save(path, Checkpoint(variables, config, {"batches": 5}))
    content = load(path)["model_state"]
    assert {int(value) for key, value in content.items() if "num_batches" in key} <= {5}
    save({"epoch": 3, "model_state": content, "optimizer_state": {"state": {}}}, path)
    loaded = mevf.ORIGINAL.load(path, {})  # the file tells everything
    assert_equal(loaded.variables, variables)
    assert loaded.entries["epoch"] == 3
    defaults = {
        field: models.build({"name": config["name"], "vocab_size": 1, "num_answers": 1}).__dict__.get(field)
        for field in loaded.config
    }
    for field, value in loaded.config.items():
        assert value == config.get(field, defaults[field]), field
    again = tmp_path / "again.pth"
    mevf.ORIGINAL.save(again, loaded)
    written = load(again)["model_state"]
    assert list(written) == list(content)
    assert all(np.array_equal(written[key], content[key]) for key in content)


def stepped(tensors, lr):
    """The original's Adamax over a checkpoint's tensors after three steps, and the parameters by key."""
    buffers = ("running_mean", "running_var", "num_batches_tracked", "pos_table")
    values = {k: torch.nn.Parameter(v.clone()) for k, v in tensors.items() if k.rpartition(".")[2] not in buffers}
    groups = [{"params": list(values.values())}]
    if any(key.startswith("q_emb.layer_stack.") for key in values):
        slower = [value for key, value in values.items() if key.startswith(("w_emb.", "q_emb."))]
        others = [value for key, value in values.items() if not key.startswith(("w_emb.", "q_emb."))]
        groups = [{"params": others}, {"params": slower, "lr": 0.2 * lr}]
    optimizer = torch.optim.Adamax(groups, lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for value in values.values():
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()
    return optimizer, values


def assert_same_state(ours, theirs):
    assert ours["param_groups"] == theirs["param_groups"]
    assert list(ours["state"]) == sorted(theirs["state"])
    for i, entry in theirs["state"].items():
        assert list(ours["state"][i]) == list(entry)
        assert all(torch.equal(ours["state"][i][name], value) for name, value in entry.items())


SELF_ATTENTION = {"name": "san", "image_branches": "maml", "self_attention": True, "embed_width": 4}


@pytest.mark.oracle
@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[5], SELF_ATTENTION], ids=["ban", "san", "two groups"])
def test_the_optimiser_goes_both_ways(variant, tmp_path):
    config, path = SMALL | variant, tmp_path / "model_epoch3.pth"
    mevf.ORIGINAL.save(path, Checkpoint(made_up(config), config))
    content = torch.load(path, weights_only=True)
    assert sorted(content) == ["epoch", "model_state", "optimizer_state"]
    assert mevf.ORIGINAL.load(path, {}).adam is None
    optimizer, values = stepped(content["model_state"], 0.0075)
    state = optimizer.state_dict()
    torch.save(content | {"optimizer_state": state}, path)
    loaded = mevf.ORIGINAL.load(path, {})
    assert (loaded.adam.step, loaded.adam.settings["lr"]) == (3, 0.0075)
    moment = optimizer.state[values["classifier.main.3.weight_v"]]["exp_inf"]
    np.testing.assert_array_equal(loaded.adam.nu["classifier"]["down"]["v"], moment.numpy().T)
    mevf.ORIGINAL.save(tmp_path / "again.pth", loaded)
    assert_same_state(torch.load(tmp_path / "again.pth", weights_only=True)["optimizer_state"], state)
    optimizer.load_state_dict(content["optimizer_state"])  # PyTorch takes one that has not made a step, too
    # An optimiser over other parameters, or grouped otherwise, is refused.
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][1:]
    torch.save(content | {"optimizer_state": state}, path)
    with pytest.raises(CheckpointError, match=r"The optimiser holds \d+.*A file with the tensors alone"):
        mevf.ORIGINAL.load(path, {})
    torch.save(content | {"optimizer_state": state | {"param_groups": 3 * state["param_groups"]}}, path)
    with pytest.raises(CheckpointError, match=r"expected `state` and .* group"):
        mevf.ORIGINAL.load(path, {})


@pytest.mark.oracle
def test_a_step_from_the_commands_folder_is_that_of_pytorch(tmp_path):
    file, run = tmp_path / "model_epoch3.pth", tmp_path / "run"
    config = SMALL | SELF_ATTENTION | {"stacks": 3}
    mevf.ORIGINAL.save(file, Checkpoint(made_up(config), config))
    content = torch.load(file, weights_only=True)
    optimizer, values = stepped(content["model_state"], 0.005)
    tensors = content["model_state"] | {key: value.detach() for key, value in values.items()}
    torch.save(content | {"model_state": tensors, "optimizer_state": optimizer.state_dict()}, file)
    for name, count in (("vocabulary", "vocab_size"), ("answers", "num_answers")):
        (tmp_path / name).write_text(json.dumps([f"{name}{i}" for i in range(SMALL[count])]))
    lists = [f"--{name}={tmp_path / name}" for name in ("vocabulary", "answers")]
    assert convert.main(["--system=san", f"--from={file}", f"--to={run}", *lists]) == 0
    assert convert.main(["--system=san", f"--from={run}", f"--to={tmp_path / 'again.pth'}"]) == 0
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert_same_state(again["optimizer_state"], optimizer.state_dict())
    assert again["epoch"] == content["epoch"]
    assert all(torch.equal(again["model_state"][key], value) for key, value in tensors.items() if "num_b" not in key)

    contents = workdir.read(run)
    assert contents.config.model.stacks == 3  # not the model's default, which the config leaves out
    ours = optim.make_optimizer(contents.config.optim, contents.params)
    shapes = jax.eval_shape(lambda: contents_state(contents, ours.init(contents.params)))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shapes)
    saved = checkpoints.Checkpoints(run, read_only=True)
    state = saved.restore(shapes)
    saved.close()
    rng = np.random.default_rng(1)
    for value in values.values():
        value.grad = torch.from_numpy(rng.standard_normal(value.shape, np.float32))
    originals = {key: value.grad.numpy().copy() for key, value in values.items()}
    grads = to_jax(originals, mevf.KEYS["san"], {"params": contents.params})[0]["params"]
    updates, _ = jax.jit(ours.update)(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - np.float32(0.005) * u, state.params, updates)
    torch.nn.utils.clip_grad_norm_(values.values(), contents.config.optim.clip_norm)
    optimizer.step()
    for key, value in to_torch({"params": params}, mevf.KEYS["san"]).items():
        np.testing.assert_allclose(value, values[key].detach().numpy(), rtol=2e-6, atol=1e-7, err_msg=key)


def contents_state(contents, opt_state):
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=contents.params, collections=contents.collections, opt_state=opt_state
    )


def test_images_that_are_not_square(tmp_path):
    config = SMALL | {"name": "ban", "image_branches": "mevf"}
    variables = made_up(config, image_128=(16, 24))
    inputs = {"question": TOKEN, "image_84": image(16, 16, 1), "image_128": image(16, 24, 1)}
    mevf.ORIGINAL.save(tmp_path / "x.pth", Checkpoint(variables, config))
    assert_equal(mevf.ORIGINAL.load(tmp_path / "x.pth", config, inputs).variables, variables)
    with pytest.raises(CheckpointError, match=r"wrong shape: convert.weight"):
        mevf.ORIGINAL.load(tmp_path / "x.pth", config)


def test_all_faults_come_at_once(tmp_path):
    config = SMALL | {"name": "ban", "image_branches": "mevf"}
    mevf.ORIGINAL.save(tmp_path / "x.pth", Checkpoint(made_up(config), config))
    tensors = files.read(tmp_path / "x.pth", "model_state").tensors
    del tensors["q_prj.1.main.1.weight_g"]
    tensors["q_prj.1.main.1.weight"] = np.zeros((8, 8), np.float32)
    tensors["v_att.logits.h_bias"] = np.zeros((1, 3, 1, 1), np.float32)
    files.write(tmp_path / "y.pth", files.TorchFile(tensors))
    with pytest.raises(CheckpointError) as error:
        mevf.ORIGINAL.load(tmp_path / "y.pth", config | {"glimpses": 2})
    for part in (
        "3 faults",
        "missing q_prj.1.main.1.weight_g for params/fusion/merge_1/g",
        "unexpected q_prj.1.main.1.weight [8, 8]",
        "wrong shape: v_att.logits.h_bias [1, 3, 1, 1]",
    ):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match=r"missing v_att\.fc11\.weight"):
        mevf.ORIGINAL.load(tmp_path / "x.pth", {"name": "san"})
    with pytest.raises(CheckpointError, match="neither 'ban' nor 'san'"):
        mevf.ORIGINAL.load(tmp_path / "x.pth", {"name": "cmsa"})
    with pytest.raises(CheckpointError, match="ResNet-50"):
        mevf.ORIGINAL.load(tmp_path / "x.pth", {"name": "ban", "image_branches": "resnet50"})


# --- the files that MEVF published -----------------------------------------------------------------------------------------


def test_pickled_arrays_become_the_maml_branch(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"conv{i}": rng.standard_normal((3, 3, 1 if i == 1 else 4, 4)).astype(np.float32) for i in range(1, 5)}
    arrays |= {f"b{i}": rng.standard_normal(4).astype(np.float32) for i in range(1, 5)}
    path = tmp_path / "pretrained_maml.weights"
    path.write_bytes(pickle.dumps(arrays))
    loaded = mevf.MAML_ORIGINAL.load(path)
    variables = loaded.variables
    assert len(loaded.report.used) == 8
    params = variables["params"]
    for i in range(1, 5):
        np.testing.assert_array_equal(params[f"conv_{i}"]["kernel"], arrays[f"conv{i}"])
        np.testing.assert_array_equal(params[f"conv_{i}"]["bias"], arrays[f"b{i}"])
        assert (params[f"norm_{i}"]["scale"] == 1).all()
        assert (variables["batch_stats"][f"norm_{i}"]["var"] == 1).all()
    whole = made_up(SMALL | {"name": "ban"})
    assert jax.tree.map(np.shape, variables["params"]) == jax.tree.map(np.shape, whole["params"]["image"]["maml"])
    del arrays["b3"]
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(CheckpointError, match="missing b3 for params/conv_3/bias"):
        mevf.MAML_ORIGINAL.load(path)


def test_the_autoencoders_file(tmp_path):
    manifest = json.loads((GOLDEN / "ban_mevf_full.manifest.json").read_text())
    tensors = weights.checkpoint([t for t in manifest["tensors"] if t["key"].startswith("ae_v_emb.")])
    tensors = {key.removeprefix("ae_v_emb."): value for key, value in tensors.items()}
    files.write(tmp_path / "pretrained_ae.pth", files.TorchFile(tensors))
    loaded = mevf.AUTOENCODER_ORIGINAL.load(tmp_path / "pretrained_ae.pth")
    assert len(loaded.report.used) == len(tensors) == 14
    np.testing.assert_array_equal(loaded.params["up_1"]["kernel"], tensors["tran_conv1.weight"].transpose(2, 3, 0, 1))


def test_the_published_files_give_the_published_numbers(jaxvqa_data, monkeypatch):
    rows = runner.run(GOLDEN / "mevf_published.manifest.json")
    assert [row.passed for row in rows] == [True] * 4
    # They hold nothing but what the branches take.
    folder = jaxvqa_data / "reference/cmsa"
    report = mevf.MAML_ORIGINAL.load(folder / "pretrained_maml.weights").report
    assert sum(np.prod(shape) for _, _, shape in report.used) == 111_424
    monkeypatch.delenv("JAXVQA_DATA")
    assert {row.passed for row in runner.run(GOLDEN / "mevf_published.manifest.json")} == {None}
